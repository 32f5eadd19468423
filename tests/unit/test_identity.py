"""A file's identity: its forms, and that it does not depend on the path."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.watcher.errors import InvalidPathError
from harness.watcher.identity import PathIdentifier, host_path

MASK = 2**64 - 1


def murmur3_of_16_bytes(low: int, high: int) -> int:
    """First half of murmur3 x64 128, seed 0, of two words: the algorithm's one block and its finish, from its paper."""

    def rotate(word: int, by: int) -> int:
        return (word << by | word >> 64 - by) & MASK

    def finish(word: int) -> int:
        word = (word ^ word >> 33) * 0xFF51AFD7ED558CCD & MASK
        word = (word ^ word >> 33) * 0xC4CEB9FE1A85EC53 & MASK
        return word ^ word >> 33

    one, two = 0x87C37B91114253D5, 0x4CF5AD432745937F
    h1 = rotate(low * one & MASK, 31) * two & MASK
    h1 = (rotate(h1, 27) * 5 + 0x52DCE729) & MASK
    h2 = rotate(high * two & MASK, 33) * one & MASK
    h2 = ((rotate(h2, 31) + h1) * 5 + 0x38495AB5) & MASK
    h1, h2 = h1 ^ 16, h2 ^ 16
    h1 = (h1 + h2) & MASK
    return (finish(h1) + finish(h2 + h1 & MASK)) & MASK


@given(st.integers(0, MASK), st.integers(0, MASK))
def test_key(dev: int, inode: int) -> None:
    key = PathIdentifier(dev, inode).key()
    assert "/" not in key
    assert int.from_bytes(base64.b64decode(key.replace("@", "/")), "little") == murmur3_of_16_bytes(dev, inode)


def test_words() -> None:
    assert str(PathIdentifier(os.makedev(8, 1), 42)) == "dev/inode 8.1/42"


def test_paths_to_one_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "hard").hardlink_to(file)
    (tmp_path / "soft").symlink_to("hard")
    (tmp_path / "other").touch()
    stat = file.stat()
    here = PathIdentifier(stat.st_dev, stat.st_ino)
    seen = {PathIdentifier.of_file(tmp_path / name) for name in ("file", "hard", "soft")}
    seen.add(PathIdentifier.of_file(f"/proc/self/root{file}"))
    assert seen == {here}
    assert PathIdentifier.of_file(tmp_path / "other") != here


def test_paths_to_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PathIdentifier.of_file(tmp_path / "missing")
    with pytest.raises(InvalidPathError, match="null"):
        PathIdentifier.of_file("a\0b")


def test_where_the_host_sees_it() -> None:
    assert host_path("/proc", 7, "/lib/x.so") == "/proc/7/root/lib/x.so"
    assert host_path("/host/proc", 7, "x/../y.so") == "/host/proc/7/cwd/x/../y.so"
    with pytest.raises(InvalidPathError, match="process 7"):
        host_path("/proc", 7, "")
