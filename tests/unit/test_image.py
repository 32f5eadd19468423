import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kmt.config import Config
from kmt.errors import ConfigError
from kmt.roots import image, rootfs

RECIPE = rootfs.recipe()
PACKAGES = ("python3", "kmod")
PINS = ("pytest==9.2.0", "pluggy==1.7.0")
KEY = image.key(RECIPE, PACKAGES, PINS)


def test_the_name_does_not_depend_on_order():
    assert image.key(RECIPE, PACKAGES[::-1], PINS[::-1]) == KEY


@pytest.mark.parametrize(
    "other",
    [
        (RECIPE, (*PACKAGES, "gdb"), PINS),
        (RECIPE, PACKAGES, ("pytest==9.2.1", "pluggy==1.7.0")),
        (RECIPE, PACKAGES, PINS[:1]),
        (replace(RECIPE, suites=("trixie",)), PACKAGES, PINS),
        (replace(RECIPE, python="3.14"), PACKAGES, PINS),
    ],
)
def test_the_name_changes_with_whatever_goes_in(other):
    assert image.key(*other) != KEY


def test_the_compilers_packages_are_not_the_images():
    assert image.key(replace(RECIPE, compiler=("gcc",)), PACKAGES, PINS) == KEY


def test_a_raised_layout_gives_another_name(monkeypatch):
    monkeypatch.setattr(image, "LAYOUT", image.LAYOUT + 1)
    assert image.key(RECIPE, PACKAGES, PINS) != KEY


def test_guests_get_the_pytest_and_hypothesis_that_run_here():
    import hypothesis

    pins = image.wanted_python(Config(Path()), RECIPE)
    assert f"pytest=={pytest.__version__}" in pins
    assert f"hypothesis=={hypothesis.__version__}" in pins


def test_a_requirement_that_is_none_is_named_before_anything_is_made():
    with pytest.raises(ConfigError, match="'a b c' is no requirement"):
        image.ensure(Config(Path(), requirements=("a b c",)))


def test_wheels_are_fetched_by_this_pythons_pip_for_the_guests_python():
    words = image.pip_command(Path("/t"), "3.13", ["a==1", "b"])
    assert words[:3] == [sys.executable, "-m", "pip"]
    assert words[-2:] == ["a==1", "b"]
    assert words[words.index("--python-version") + 1] == "3.13"
    assert "--only-binary=:all:" in words
    platforms = [words[n + 1] for n, word in enumerate(words) if word == "--platform"]
    assert {"manylinux_2_17_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64"} <= set(platforms)
    assert not any("linux_2_42" in p for p in platforms), "newer than the guest's libc"


def test_what_pip_says_is_wrong_is_what_is_shown():
    said = (
        "WARNING: something else\n"
        "ERROR: Could not find a version that satisfies the requirement nothere==1 (from versions: none)\n"
        "ERROR: No matching distribution found for nothere==1\n"
    )
    error = str(image.pip_failure(said))
    assert "No matching distribution found for nothere==1" in error
    assert "WARNING" not in error
    assert "[tool.kmt] requirements" in error


def test_a_python_without_pip_is_told_how_to_get_one():
    assert "ensurepip" in str(image.pip_failure("/usr/bin/python3: No module named pip\n"))
