"""Style, format and types are tests like any other; ``./inv lint`` runs the same commands."""

from pathlib import Path

import pytest

from kmt import proc
from kmt.commands.checks import COMMANDS, check

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_tree_is_clean(command):
    done = check(ROOT, command)
    assert done.status == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", ["inv", "kmt/guest/init.sh", "kmt/guest/initramfs.sh"])
def test_shell_scripts_parse(script):
    done = proc.run(["sh", "-n", script], cwd=ROOT, check=False)
    assert done.status == 0, done.stderr


def test_inv_pleases_shellcheck():
    """Where it is installed; ``sh -n`` above is what runs everywhere."""
    if proc.which("shellcheck"):
        done = proc.run(["shellcheck", "inv"], cwd=ROOT, check=False)
        assert done.status == 0, done.stdout
