"""Hints name commands that are there: ``inv`` in a checkout of this project, ``python -m kmt`` in any other one."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kmt import __main__ as program
from kmt.hints import task

ROOT = Path(__file__).parents[2]


def test_a_checkout_has_inv_and_other_projects_the_module(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert task("doctor") == "./inv kmt.doctor"
    monkeypatch.chdir(tmp_path)
    assert task("doctor") == "python -m kmt doctor"
    (tmp_path / "inv").touch()  # somebody else's
    assert task("doctor") == "python -m kmt doctor"


NAMED = {
    words: path
    for path in (ROOT / "kmt").rglob("*.py")
    for words in re.findall(r"""\btask\(["'](\w+[^"']*)["']\)""", path.read_text())
}


@pytest.mark.parametrize("words", NAMED)
def test_every_hint_is_a_command_that_the_module_takes(words):
    program.parser().parse_args(shlex.split(words))


def test_no_error_names_inv_where_it_may_not_be():
    found = {path.name for path in (ROOT / "kmt").rglob("*.py") if re.search(r'"[^"\n]*\./inv kmt', path.read_text())}
    # What the tasks themselves say, and where the choice is made.
    assert found <= {"guest.py", "hints.py", "words.py"}
    assert len(NAMED) > 5


def kmt(*words, cwd):
    return subprocess.run([sys.executable, "-m", "kmt", *words], cwd=cwd, capture_output=True, text=True, timeout=60)


def test_the_module_works_in_a_foreign_project(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    done = kmt("status", cwd=tmp_path)
    assert done.returncode == 0
    done = kmt("stop", "nothing", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == "error: there is no run 'nothing' going on (python -m kmt status lists them)\n"
    assert kmt("clean", "--all", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "cache").exists()
    assert kmt("dance", cwd=tmp_path).returncode == 2
