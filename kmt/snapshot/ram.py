"""Files that guest memory lies in: made sparse, copied sparse, hashed where there is something.

Laws: a file system that cannot hold such a file is found out before a machine is started on it; holes stay holes in
a copy; equal content gives an equal digest wherever its holes are.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from kmt.errors import NoPlaceError

_PIECE = 1 << 20
_TRIED = 64 << 20
"""Size of the file that a file system is tried with."""


def check_place(directory: Path, size: int) -> None:
    """Raise NoPlaceError unless a file of ``size`` bytes can lie here: sparse, mapped shared, with room to fill.

    A write into a shared mapping that finds no room is a SIGBUS in QEMU, so the room is asked for before.
    """
    try:
        status = os.statvfs(directory)
        free = status.f_bavail * status.f_frsize
        if free < size:
            raise NoPlaceError(f"{directory} has {free >> 20} MiB free; memory of {size >> 20} MiB may need them all")
        with tempfile.TemporaryFile(dir=directory) as file:
            os.ftruncate(file.fileno(), _TRIED)
            if os.fstat(file.fileno()).st_blocks * 512 > _TRIED // 2:
                raise NoPlaceError(f"{directory} is on a file system without sparse files")
            with mmap.mmap(file.fileno(), mmap.PAGESIZE, mmap.MAP_SHARED) as page:
                page[:1] = b"\1"
    except OSError as error:
        what = "cannot map files shared" if error.errno in (errno.ENODEV, errno.EINVAL) else str(error.strerror)
        raise NoPlaceError(f"{directory}: {what}") from None


def pieces(fd: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that hold data: (offset, length), in order."""
    offset, end = 0, os.fstat(fd).st_size
    while offset < end:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole behind it
                return
            raise
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, offset - start


def digest(fd: int) -> str:
    """SHA-256 over the size and every piece that is not all zeros, with its offset."""
    zeros = bytes(_PIECE)
    found = hashlib.sha256(f"{os.fstat(fd).st_size}".encode())
    for start, length in _aligned(fd):
        data = os.pread(fd, length, start)
        if data != zeros[: len(data)]:
            found.update(f" {start} ".encode() + data)
    return found.hexdigest()


def _aligned(fd: int) -> Iterator[tuple[int, int]]:
    """Whole pieces of ``_PIECE`` bytes that hold data somewhere, each once: where holes lie does not matter."""
    size, after = os.fstat(fd).st_size, 0
    for start, length in pieces(fd):
        first = max(after, start - start % _PIECE)
        for offset in range(first, start + length, _PIECE):
            yield offset, min(_PIECE, size - offset)
            after = offset + _PIECE


def copy(source: int, directory: Path) -> IO[bytes]:
    """A copy of the file as one without a name in ``directory``: it goes when it is closed, or with this process."""
    size = os.fstat(source).st_size
    try:
        with ExitStack() as stack:
            target = stack.enter_context(tempfile.TemporaryFile(dir=directory))
            os.ftruncate(target.fileno(), size)
            for start, length in pieces(source):
                _copy_piece(source, target.fileno(), start, length)
            stack.pop_all()
    except OSError as error:
        raise NoPlaceError(f"{directory}: guest memory could not be copied: {error.strerror}") from None
    return target


def _copy_piece(source: int, target: int, start: int, length: int) -> None:
    while length:
        done = os.copy_file_range(source, target, length, offset_src=start, offset_dst=start)
        if not done:
            raise OSError(errno.EIO, "the file ended early")
        start, length = start + done, length - done
