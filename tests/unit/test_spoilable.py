"""The tree that differential situations spoil is whole again before the next; only what was spoilt is copied."""

import os
import shutil

import pytest
from chain_faults import Spoilable


@pytest.fixture
def tree(tmp_path):
    pristine = tmp_path / "pristine"
    (pristine / "runtime/compiled").mkdir(parents=True)
    (pristine / "a.o").write_bytes(b"object")
    (pristine / "runtime/compiled/b.o").write_bytes(b"compiled")
    (pristine / "runtime/h.h").write_bytes(b"header")
    made = Spoilable(pristine, tmp_path / "spoilt")
    made.restore()
    return made


def content(place):
    return {
        str(path.relative_to(place)): (path.stat().st_mode, path.read_bytes() if path.is_file() else None)
        for path in place.rglob("*")
    }


def overwritten(path):
    # The same length, at the same time of modification.
    before = path.stat()
    path.write_bytes(b"OBJECT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def a_directory(path):
    path.unlink()
    path.mkdir()
    (path / "inside").write_bytes(b"x")


SPOILING = {
    "gone": lambda place: (place / "a.o").unlink(),
    "overwritten": lambda place: overwritten(place / "a.o"),
    "a directory": lambda place: a_directory(place / "a.o"),
    "of another mode": lambda place: (place / "a.o").chmod(0o664),
    "a directory gone": lambda place: shutil.rmtree(place / "runtime/compiled"),
    "a directory's mode": lambda place: (place / "runtime").chmod(0o700),
    "a file more": lambda place: (place / "runtime/new.o").write_bytes(b"new"),
    "a directory more": lambda place: shutil.copytree(place / "runtime", place / "more"),
}


@pytest.mark.parametrize("how", SPOILING)
def test_what_was_spoilt_is_as_it_was(tree, how):
    SPOILING[how](tree.place)
    assert content(tree.place) != content(tree.pristine)
    tree.restore()
    assert content(tree.place) == content(tree.pristine)


def test_what_nobody_touched_is_not_copied_again(tree):
    before = (tree.place / "runtime/h.h").stat().st_ino, (tree.place / "runtime/h.h").stat().st_ctime_ns
    (tree.place / "a.o").unlink()
    tree.restore()
    assert ((tree.place / "runtime/h.h").stat().st_ino, (tree.place / "runtime/h.h").stat().st_ctime_ns) == before
