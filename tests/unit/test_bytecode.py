"""Compiled modules: what a guest makes of sources, and what the host keeps of it, for whom and how long."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kmt
from kmt.run import bytecode
from kmt.run.bytecode import Bytecode

TAILS = {"plain": ".cpython-313.pyc", "rewritten": ".cpython-313-pytest-9.2.0.pyc"}

MAKE = """
import json, sys, pytest
import _pytest.assertion.rewrite
from kmt_guest import bytecode
rests = []
made = list(bytecode.compiled(sys.argv[1], json.loads(sys.argv[2]), lambda: rests.append(1)))
print(json.dumps({"names": [name for name, _ in made], "sizes": [len(c) for _, c in made], "rests": len(rests),
                  "loaded": [n for n in sys.modules if n in ("helper", "test_it", "broken")]}))
"""

# Compiling anything of the project is an error here, so what runs was compiled before.
CONFTEST = """
import sys

def refuse(event, args):
    if event == "compile" and str(args[1]).endswith(("helper.py", "test_it.py")):
        raise RuntimeError(f"{args[1]} is compiled")

sys.addaudithook(refuse)
"""
TEST = """
import helper

def test_it():
    assert helper.VALUE == 2
"""


@pytest.fixture
def theirs(tmp_path):
    root = tmp_path / "theirs"
    root.mkdir()
    (root / "helper.py").write_text("VALUE = 1\n")
    (root / "test_it.py").write_text(TEST)
    (root / "conftest.py").write_text(CONFTEST)
    return root


def make(root, files):
    """What a guest makes of ``files``; its agent's package has another name there."""
    agent = root.parent / "agent"
    if not agent.exists():
        agent.mkdir()
        (agent / "kmt_guest").symlink_to(Path(kmt.__file__).parent / "guest")
    words = [sys.executable, "-BP", "-c", MAKE, str(root), json.dumps(files)]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(agent)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def session(root):
    words = [sys.executable, "-Bm", "pytest", "-p", "no:kmt", "-p", "no:cacheprovider", str(root)]
    return subprocess.run(words, cwd=root, capture_output=True, text=True).stdout


def test_python_and_pytest_find_what_a_guest_compiled(theirs):
    assert "test_it.py is compiled" in session(theirs)
    said = make(theirs, [("helper.py", False), ("test_it.py", True)])
    assert len(said["names"]) == said["rests"] == 2
    assert said["loaded"] == []
    assert "assert 1 == 2" in session(theirs)  # with pytest's words: it was rewritten


def test_a_source_that_changed_is_compiled_again(theirs):
    make(theirs, [("helper.py", False), ("test_it.py", True)])
    times = (theirs / "helper.py").stat()
    (theirs / "helper.py").write_text("VALUE = 2\n")
    os.utime(theirs / "helper.py", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "helper.py is compiled" in session(theirs)
    (theirs / "conftest.py").write_text("")
    assert "1 passed" in session(theirs)


def test_what_cannot_be_compiled_is_left_out(theirs):
    (theirs / "broken.py").write_text("def (:\n")
    (theirs / "zero.py").write_bytes(b"a = 1\0\n")
    files = [(name, kind) for name in ("broken.py", "zero.py", "gone.py") for kind in (False, True)]
    said = make(theirs, [*files, ("helper.py", False)])
    assert [Path(name).parent.name for name in said["names"]] == ["__pycache__"]
    assert said["rests"] == 7


OLDER = """
from _pytest.assertion import rewrite
rewrite._write_pyc_fp = lambda fp, *_: fp.write(rewrite.importlib.util.MAGIC_NUMBER + bytes(12))
"""


def test_what_pytest_would_check_by_time_and_size_is_left_out(theirs, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "MAKE", OLDER + MAKE)
    said = make(theirs, [("helper.py", False), ("test_it.py", True)])
    assert [Path(name).name.split(".")[0] for name in said["names"]] == ["helper"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "project"
    (root / "sub").mkdir(parents=True)
    (root / "sub/a.py").write_text("A = 1\n")
    (root / "test_b.py").write_text("B = 1\n")
    return root


A, B = "sub/__pycache__/a.cpython-313.pyc", "__pycache__/test_b.cpython-313-pytest-9.2.0.pyc"
MODULES = {"sub/a.py": False, "test_b.py": True}


def run(root, modules=MODULES, tails=TAILS):
    made = Bytecode(root, modules)
    return made, made.ready(tails, list(modules))


def test_what_one_run_learns_the_next_one_has(project):
    first, ready = run(project)
    assert ready == {}
    assert first.claim(TAILS) == [("sub/a.py", False), ("test_b.py", True)]
    assert first.claim(TAILS) == []  # one guest is enough
    first.keep(TAILS, [(A, b"of a"), (B, b"of b")])
    assert first.ready(TAILS, MODULES) == {A: b"of a", B: b"of b"}
    second, ready = run(project)
    assert ready == {A: b"of a", B: b"of b"}
    assert second.claim(TAILS) == []


def test_only_what_changed_is_compiled_again(project):
    run(project)[0].keep(TAILS, [(A, b"of a"), (B, b"of b")])
    (project / "sub/a.py").write_text("A = 2\n")
    made, ready = run(project)
    assert ready == {B: b"of b"}
    assert made.claim(TAILS) == [("sub/a.py", False)]
    made.keep(TAILS, [(A, b"new")])
    assert run(project)[1] == {A: b"new", B: b"of b"}


def test_another_python_or_pytest_has_a_shelf_of_its_own(project):
    run(project)[0].keep(TAILS, [(A, b"of a"), (B, b"of b")])
    assert run(project, tails={**TAILS, "rewritten": ".cpython-313-pytest-9.3.0.pyc"})[1] == {}


def test_only_what_travels_counts(project):
    made = Bytecode(project, {**MODULES, "left.py": False})
    (project / "left.py").write_text("")
    made.ready(TAILS, MODULES)
    assert made.claim(TAILS) == [("sub/a.py", False), ("test_b.py", True)]


def test_a_guest_can_only_give_what_it_was_asked_for(project, monkeypatch):
    monkeypatch.setattr(bytecode, "LIMIT", 10)
    made, _ = run(project)
    made.keep(TAILS, [("../out.pyc", b"x"), ("/etc/x.pyc", b"x"), ("sub/a.py", b"x"), (B, b"too long for that")])
    assert made.ready(TAILS, MODULES) == {}
    assert run(project)[1] == {}


@pytest.mark.parametrize(
    "said",
    [None, {}, [], "x", {"plain": "../x.pyc", "rewritten": ".a.pyc"}, {"plain": ".a.pyc", "rewritten": ".b\n.pyc"}],
)
def test_a_guest_that_says_nothing_sound_gets_nothing(project, said):
    made, ready = run(project, tails=said)
    assert ready == {}
    assert made.claim(said) == []


def test_a_torn_or_foreign_file_in_the_cache_is_an_empty_one(project):
    run(project)[0].keep(TAILS, [(A, b"of a"), (B, b"of b")])
    (kept,) = (project.parent / "cache").rglob("*.zip")
    whole = kept.read_bytes()
    for broken in (b"", b"no zip", whole[:-40], whole[: len(whole) // 2]):
        kept.write_bytes(broken)
        assert run(project)[1] == {}
    with zipfile.ZipFile(kept, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(A, b"0" * 1000)
    assert run(project)[1] == {}
    made, _ = run(project)
    made.keep(TAILS, [(A, b"of a")])
    assert run(project)[1] == {A: b"of a"}


def test_old_projects_leave_the_cache(project, monkeypatch):
    monkeypatch.setattr(bytecode, "PROJECTS", 2)
    for number in range(4):
        tails = {**TAILS, "plain": f".cpython-{number}.pyc"}
        run(project, tails=tails)[0].keep(tails, [])
    assert len(list((project.parent / "cache").rglob("*.zip"))) == 2
