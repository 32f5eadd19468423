"""Memory files: what a file system must offer, holes that stay holes, digests that see every byte."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.errors import NoPlaceError
from kmt.snapshot import ram

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "tests" / "direct_io.py"
SIZE = 8 << 20
WRITES = st.lists(st.tuples(st.integers(0, SIZE - 70), st.binary(min_size=1, max_size=64)), max_size=6)


def written(writes):
    file = tempfile.TemporaryFile()  # noqa: SIM115
    os.ftruncate(file.fileno(), SIZE)
    for offset, data in writes:
        os.pwrite(file.fileno(), data, offset)
    return file


@given(WRITES)
def test_a_copy_is_equal_and_as_sparse(writes):
    with written(writes) as source, ram.copy(source.fileno(), tempfile.gettempdir()) as copied:
        assert os.pread(copied.fileno(), SIZE, 0) == os.pread(source.fileno(), SIZE, 0)
        assert os.fstat(copied.fileno()).st_blocks <= os.fstat(source.fileno()).st_blocks
        assert ram.digest(copied.fileno()) == ram.digest(source.fileno())


@given(WRITES)
def test_a_digest_does_not_depend_on_holes(writes):
    with written(writes) as sparse, tempfile.TemporaryFile() as full:
        full.write(os.pread(sparse.fileno(), SIZE, 0))
        full.flush()
        assert ram.digest(full.fileno()) == ram.digest(sparse.fileno())


@given(WRITES, st.integers(0, SIZE - 1), st.integers(1, 255))
def test_a_digest_sees_every_byte(writes, offset, change):
    with written(writes) as file:
        before = ram.digest(file.fileno())
        (byte,) = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte ^ change]), offset)
        assert ram.digest(file.fileno()) != before


def test_a_digest_sees_the_size():
    with written([]) as file:
        before = ram.digest(file.fileno())
        os.ftruncate(file.fileno(), SIZE - 1)
        assert ram.digest(file.fileno()) != before


class TestPlace:
    def test_a_good_one(self, tmp_path):
        ram.check_place(tmp_path, 1 << 20)
        assert list(tmp_path.iterdir()) == []

    def test_no_room(self, tmp_path):
        with pytest.raises(NoPlaceError, match="MiB free; memory of 1125899906842624 MiB"):
            ram.check_place(tmp_path, 1 << 70)

    def test_without_sparse_files(self, tmp_path, monkeypatch):
        # As vfat does it: what a file gains in size it takes from the disk.
        monkeypatch.setattr(os, "ftruncate", lambda fd, size: os.posix_fallocate(fd, 0, size))
        with pytest.raises(NoPlaceError, match="file system without sparse files"):
            ram.check_place(tmp_path, 1 << 20)

    def test_without_shared_mappings(self, tmp_path):
        words = ["unshare", *([] if os.geteuid() == 0 else ["-Ur"]), "-m", sys.executable, SERVER, tmp_path]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout == f"{tmp_path}: cannot map files shared\n", done.stdout + done.stderr

    def test_that_is_not_there(self, tmp_path):
        with pytest.raises(NoPlaceError, match="No such file"):
            ram.check_place(tmp_path / "gone", 1 << 20)


def test_a_copy_where_no_file_can_be_made_says_so(tmp_path):
    with written([(5, b"x")]) as source, pytest.raises(NoPlaceError, match="gone: guest memory could not be copied"):
        ram.copy(source.fileno(), tmp_path / "gone")


def test_a_copy_that_finds_no_room_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", full)
    with written([(5, b"x")]) as source, pytest.raises(NoPlaceError, match="No space left"):
        ram.copy(source.fileno(), tmp_path)
    assert list(tmp_path.iterdir()) == []
