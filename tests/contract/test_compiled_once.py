"""A project's modules are compiled in one guest, for all that come after it: real sessions in real guests."""

import os
import subprocess
import sys

import pytest

from kmt.paths import cache

pytestmark = pytest.mark.host_only

# What compiles anything of the project, in a session that was to find everything compiled, fails.
CONFTEST = """
import os, sys

def refuse(event, args):
    if event == "compile" and str(args[1]).endswith(("helper.py", "test_it.py")):
        raise RuntimeError(f"{args[1]} is compiled")

if "KMT_GUEST" in os.environ and os.environ["LANG"] == "refuse":
    sys.addaudithook(refuse)
"""
TEST = """
import helper

def test_it():
    assert helper.VALUE == 1
"""


def run(root, lang):
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--kernel", "6.1"]
    environment = {**os.environ, "LANG": lang}
    return subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=300).stdout


def test_the_second_run_compiles_nothing_and_sees_every_change(tmp_path):
    root = tmp_path / "theirs"
    root.mkdir()
    (root / "helper.py").write_text("VALUE = 1\n")
    (root / "test_it.py").write_text(TEST)
    (root / "conftest.py").write_text(CONFTEST)
    before = set(cache("bytecode").iterdir())
    assert "1 passed" in run(root, "C")
    (shelf,) = set(cache("bytecode").iterdir()) - before
    try:
        assert "1 passed" in run(root, "refuse")
        (root / "helper.py").write_text("VALUE = 3\n")
        assert "assert 3 == 1" in run(root, "C")
    finally:
        shelf.unlink()
