"""A project of somebody else's, in which real pytest sessions are started."""

import os
import subprocess
import sys
import textwrap

import pytest
from sshd import serving

from kmt import proc
from kmt.vagrant.words import PACKAGES

NEEDED = ("vagrant", "libvirtd", "virsh", "qemu-img")
LEFT_OUT = pytest.StashKey[int]()


def why_without_vagrant():
    """Why its tests do not run here, and what would change that; empty where they do."""
    missing = ", ".join(program for program in NEEDED if not proc.which(program))
    if missing:
        return f"there is no {missing} (apt-get install {PACKAGES})"
    return "" if os.environ.get("KMT_VAGRANT") else "they take minutes; KMT_VAGRANT=1 runs them, as CI does"


def pytest_collection_modifyitems(config, items):
    """What needs Vagrant takes minutes, and stays out where nobody asks for it or it is not installed: loudly."""
    if not why_without_vagrant():
        return
    left = [item for item in items if item.get_closest_marker("vagrant")]
    config.stash[LEFT_OUT] = config.stash.get(LEFT_OUT, 0) + len(left)
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def pytest_terminal_summary(terminalreporter, config):
    """A line that nobody can miss."""
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.section("vagrant was not tested", yellow=True, bold=True)
        terminalreporter.line(f"{count} tests were left out: {why_without_vagrant()}")


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
    """A machine over SSH: a private sshd on a loopback port."""
    with serving(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of somebody else's in a directory with a space; ``run`` starts a real pytest in it."""
    root = tmp_path / "their project"
    root.mkdir()
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    # Of the CI that this runs in: its words are the tests' to expect, its files not theirs to write.
    for name in ("KMT_GUEST", "GITHUB_ACTIONS", "GITLAB_CI", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\ntestpaths = ['.']\n")
    return Project(root)


class Project:
    def __init__(self, root):
        self.root = root

    def write(self, text, name="test_theirs.py"):
        (self.root / name).write_text(textwrap.dedent(text))

    def command(self, *words):
        return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]

    def run(self, *words, kernel="host"):
        words = (*words, "--kernel", kernel) if kernel else words
        return subprocess.run(self.command(*words), cwd=self.root, capture_output=True, text=True, timeout=120)
