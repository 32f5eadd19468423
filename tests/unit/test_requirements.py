import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.errors import ConfigError
from kmt.roots.requirements import Installed, environment, pinned

GUEST = environment("3.13")
HOST = {
    "pytest": Installed(
        "9.2.0", ("pluggy<2,>=1.5", "tomli>=1; python_version < '3.11'", "argcomplete; extra == 'dev'")
    ),
    "pluggy": Installed("1.7.0"),
    "argcomplete": Installed("3.6"),
    "securesystemslib": Installed("1.6.0", ("cryptography>=40; extra == 'crypto'",)),
    "cryptography": Installed("50.0.2", ("cffi>=2; platform_python_implementation != 'PyPy'",)),
    "cffi": Installed("2.1.1"),
    "backport": Installed("1.0", ("newer; python_version >= '3.13'",)),
    "newer": Installed("4.2"),
    "loop-a": Installed("1", ("loop_b",)),
    "loop-b": Installed("2", ("Loop.A",)),
}


def pins(*wanted):
    return pinned(wanted, HOST.get, GUEST)


def test_what_the_host_has_is_pinned_with_all_it_needs():
    assert pins("pytest>=8") == ["pluggy==1.7.0", "pytest==9.2.0"]


def test_an_extra_brings_what_it_needs_and_only_then():
    assert pins("securesystemslib") == ["securesystemslib==1.6.0"]
    assert pins("securesystemslib[crypto]") == ["cffi==2.1.1", "cryptography==50.0.2", "securesystemslib==1.6.0"]


def test_markers_are_the_guests_not_the_hosts():
    assert pins("backport") == ["backport==1.0", "newer==4.2"]
    assert pins("cffi; python_version < '3.13'") == []
    assert pins("cffi; sys_platform == 'win32'") == []


def test_what_the_host_lacks_is_left_to_pip():
    assert pins("flask>=3; python_version >= '3.9'") == ["flask>=3"]
    (pin,) = pins("cffi @ https://example.org/cffi.whl")
    assert pin.replace(" @", "@") == "cffi@ https://example.org/cffi.whl"


def test_packages_that_need_each_other_end():
    assert pins("LOOP-A") == ["loop-a==1", "loop-b==2"]


@given(st.permutations(["pytest", "securesystemslib[crypto]", "backport", "flask", "loop_a"]))
def test_the_order_of_what_is_wanted_is_no_matter(wanted):
    assert pins(*wanted, wanted[0]) == pins("flask", "pytest", "loop_a", "backport", "securesystemslib[crypto]")


@pytest.mark.parametrize("text", ["", "not a requirement", "./wheels/own", "pytest>=", "-r other.txt"])
def test_what_is_no_requirement_is_named(text):
    with pytest.raises(ConfigError, match="requirements") as caught:
        pins(text)
    assert repr(text) in str(caught.value)
