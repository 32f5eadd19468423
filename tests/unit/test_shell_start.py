"""What ``kmt.shell`` does until there is a shell, against shells of this machine on terminals of their own."""

from pathlib import Path

import pytest

from kmt import proc
from kmt.backends.base import Machine
from kmt.backends.host import HostBackend
from kmt.commands import guest
from kmt.commands.guest import Chosen
from kmt.config import Config
from kmt.errors import VmNeverStartedError
from kmt.matrix import Row


class Slow(HostBackend):
    """A machine that needs ten times as long, as emulated ones do."""

    deadline_factor = 10.0


@pytest.fixture
def moved_in():
    """Have a console that a script of the shell stands for take the project in."""
    consoles = []

    def move(script, backend):
        chosen = Chosen("6.1", Config(root=Path("/project")), backend, backend.kernel(Row("6.1")), Machine())
        consoles.append(proc.terminal(["sh", "-c", script], size=(24, 200)))
        guest._move_in(consoles[-1], chosen, Path("/project"), 24, 80)

    yield move
    for console in consoles:
        console.close(force=True)


def test_a_machine_that_is_slow_has_its_time(moved_in, monkeypatch):
    monkeypatch.setattr(guest, "BOOT_SECONDS", 2)
    moved_in("read line; sleep 3; printf '# '; cat", Slow())


def test_a_shell_that_does_not_come_is_an_error(moved_in, monkeypatch):
    monkeypatch.setattr(guest, "BOOT_SECONDS", 0.3)
    with pytest.raises(VmNeverStartedError, match=r"no shell on the console of 6\.1: tar: it is short$"):
        moved_in("read line; echo tar: it is short; cat", HostBackend())


@pytest.mark.parametrize("script", ["exit 1", "read line; echo Kernel panic; exit 1"])
def test_a_console_that_ends_is_an_error(moved_in, script):
    with pytest.raises(VmNeverStartedError, match=r"no shell on the console of 6\.1"):
        moved_in(script, HostBackend())
