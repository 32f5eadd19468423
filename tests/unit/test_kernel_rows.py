"""Which kernels a session has, and which of them are simulated: by what was asked for, and by what can be had."""

import pytest

from kmt import matrix
from kmt.backends import simulated
from kmt.errors import CannotTellError, ConfigError, ProfileError
from kmt.plugin.rows import choose
from kmt.simulator import fence, session

CATALOGUE = matrix.load()


def chosen(*words, backend="auto", said=None, strict=False):
    return choose(words, CATALOGUE, backend, said=said, strict=strict)


@pytest.fixture
def machine(monkeypatch):
    """There is a QEMU, whatever this machine has."""
    monkeypatch.setattr("kmt.backends.simulated.no_machine", lambda: "")


@pytest.mark.parametrize(
    ("words", "options", "names"),
    [
        (("5.15",), {}, ["5.15-simulated"]),
        (("5.15", "6.1"), {}, ["5.15-simulated", "6.1"]),
        (("5.15",), {"backend": "qemu"}, ["5.15"]),
        (("5.15",), {"strict": True}, ["5.15"]),
        (("5.15-simulated",), {"backend": "qemu"}, ["5.15-simulated"]),
        (("5.15", "5.15-simulated"), {}, ["5.15-simulated"]),
        (("6.1", "host"), {"backend": "simulated"}, ["host", "6.1-simulated"]),
        (("6.1", "6.1-simulated"), {}, ["6.1", "6.1-simulated"]),
        (("/boot/vmlinuz-5.15.9",), {}, ["5.15.9"]),
    ],
)
def test_names_say_what_is_simulated(machine, words, options, names):
    assert chosen(*words, **options).names == names


def test_why_is_said_of_what_was_not_asked_for(machine):
    found = chosen("5.15", "6.6-simulated", "6.1")
    assert found.instead == {"5.15-simulated": "in no Debian archive"}
    assert found.fall_back
    assert [found.may_be_simulated(row) for row in found.rows] == [False, False, True]


def test_no_name_is_given_twice_however_late_a_row_turns_out_not_to_be_had(machine):
    found = chosen("6.1", "6.1-simulated", "6.12")
    assert [found.may_be_simulated(row) for row in found.rows] == [False, False, True]


def test_without_a_machine_all_are_simulated_but_images_and_this_one(monkeypatch, tmp_path):
    monkeypatch.setattr("kmt.backends.simulated.no_machine", lambda: "no QEMU")
    image = tmp_path / "vmlinuz-6.6"
    found = chosen("6.1", "5.15", "host", str(image))
    assert found.names == ["host", "6.1-simulated", "5.15-simulated", "6.6"]
    assert set(found.instead.values()) == {"no QEMU"}
    assert not any(found.may_be_simulated(row) for row in found.rows)


def test_a_row_that_is_named_must_be_there(machine):
    assert chosen("5.15", "6.1").strict == {"5.15-simulated", "6.1"}
    assert chosen("default").strict == frozenset()
    assert chosen("default", strict=True).strict == {row.name for row in CATALOGUE.rows if row.default}


def test_a_series_that_nobody_can_tell_of_is_left_as_it_is(machine):
    catalogue = matrix.parse('[[kernel]]\nname = "9.9"\nseries = "9.9"\n', CATALOGUE.path)
    assert choose(["9.9"], catalogue, "auto", said=None, strict=False).names == ["9.9"]


def test_on_a_machine_that_the_fence_does_not_know_nothing_is_simulated(machine, monkeypatch):
    assert all(fence.program(name) for name in simulated.MACHINES)
    monkeypatch.setattr(simulated.platform, "machine", lambda: "riscv64")
    assert not fence.close("riscv64")
    with pytest.raises(ConfigError, match="nothing is simulated on a machine that is riscv64"):
        chosen("6.1-simulated")
    found = chosen("6.1", "5.15")
    assert found.names == ["6.1", "5.15"]
    assert not any(found.may_be_simulated(row) for row in found.rows)


def test_a_process_without_a_fence_is_none(monkeypatch):
    monkeypatch.setattr(fence, "close", lambda: False)
    with pytest.raises(pytest.UsageError, match="keep tests away"):
        session.pytest_addoption()


@pytest.mark.parametrize(
    ("words", "options", "error", "said"),
    [
        (("5.15-simulated",), {"backend": "qemu", "said": "qemu"}, ConfigError, "never does"),
        (("8.0",), {"backend": "simulated"}, CannotTellError, "what is known goes from"),
        (("3.2-simulated",), {}, CannotTellError, "Linux 3.2 cannot be simulated"),
        (("5.77-simulated",), {}, CannotTellError, "there is no Linux 5.77"),
        ((), {}, ConfigError, "names no kernel"),
    ],
)
def test_what_cannot_be_is_a_typed_error(machine, words, options, error, said):
    with pytest.raises(error, match=said):
        chosen(*words, **options)


def test_a_damaged_profile_is_said_as_such(machine, monkeypatch):
    from kmt.simulator import profile

    def broken(*_):
        raise ProfileError("6.1.json: format 2, not 1: of a newer version of this project")

    monkeypatch.setattr(profile, "recorded", broken)
    simulated._described.cache_clear()
    with pytest.raises(ProfileError, match="of a newer version"):
        chosen("6.1-simulated")
