"""Tars that a guest sends: hostile until they are checked.

Laws: sizes and counts are bounded before anything is kept; no name leads out of the directory that was meant; what
is not taken is named; the stream is read to its end, so that the next frame is the next answer.
"""

from __future__ import annotations

import errno
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from kmt.errors import AgentError
from kmt.guest.wire import Frame
from kmt.hints import task

LIMIT = 512 << 20
"""Bytes that a guest may send in one tar."""
COUNT = 10_000
"""Files in it."""

_OF_ITS_NAME = frozenset({errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST})
"""No such file can be below the directory, whatever its content."""

Receive = Callable[[], Frame]
"""Gives the next DATA frame."""


def unpack(receive: Receive, dest: Path) -> tuple[list[Path], list[str]]:
    """Write the regular files below ``dest``; returns them, and what was not taken, in words."""
    left = []
    with _tar(receive) as (tar, members):
        for member in members:
            if not _kept(tar, member, dest):
                left.append(f"artefact {member.name!r}: {_kind(member)}")
    return sorted(p for p in dest.rglob("*") if p.is_file()), left


def contents(receive: Receive, *, limit: int) -> list[tuple[str, bytes]]:
    """Names and contents of the regular files of at most ``limit`` bytes."""
    found = []
    with _tar(receive) as (tar, members):
        for member in members:
            if member.isreg() and not member.issparse() and member.size <= limit:
                content = tar.extractfile(member)
                assert content is not None
                found.append((member.name, content.read()))
    return found


@contextmanager
def _tar(receive: Receive) -> Iterator[tuple[tarfile.TarFile, Iterator[tarfile.TarInfo]]]:
    stream = _Stream(receive)
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
            yield tar, _bounded(tar)
    # ValueError, OverflowError: what int() and seek() say to numbers in a header that tarfile does not check.
    except (tarfile.TarError, ValueError, OverflowError, OSError) as error:
        raise AgentError(f"what the guest sent is no tar: {error}") from None
    finally:
        stream.drain()


def _bounded(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    total = 0
    for number, member in enumerate(tar):
        total += member.size
        if total > LIMIT or number > COUNT:
            raise _too_much()
        yield member


def _too_much() -> AgentError:
    return AgentError(f"what the guest sends is over the limit of {LIMIT >> 20} MiB or {COUNT} files")


def _kept(tar: tarfile.TarFile, member: tarfile.TarInfo, dest: Path) -> bool:
    """``_keep``, with this machine's own troubles told as such."""
    try:
        dest.mkdir(parents=True, exist_ok=True)
        return _keep(tar, member, dest)
    except OSError as error:
        if error.errno in _OF_ITS_NAME:
            return False
        hint = f"{task('doctor')} looks at the disk"
        raise AgentError(f"{dest}: what the guest sent cannot be kept: {error.strerror}", hint=hint) from None


def _keep(tar: tarfile.TarFile, member: tarfile.TarInfo, dest: Path) -> bool:
    """Write a regular file below ``dest``; False for anything else, and for any name that points elsewhere.

    By hand, because the extraction filters came with Python 3.11.4 and Debian 12 has 3.11.2.
    """
    if member.isdir():
        return True
    target, before = _inside(dest, member.name), _inside(dest, member.linkname)
    # A sparse file of a few bytes may say that it has terabytes.
    if target is None or member.issparse() or not (member.isreg() or member.islnk()):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.islnk():  # the second name of a file that came before it: a copy, of nothing but what is ours
        if before is None or not before.is_file():
            return False
        if before != target:
            shutil.copyfile(before, target)
        return True
    content = tar.extractfile(member)
    assert content is not None
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)
    return True


def _inside(dest: Path, name: str) -> Path | None:
    """Where that name of a tar is below ``dest``; None when it points elsewhere."""
    path = PurePosixPath(name)
    return None if path.is_absolute() or ".." in path.parts or "\0" in name else dest / path


def _kind(member: tarfile.TarInfo) -> str:
    kinds = {"a symbolic link": member.issym(), "a sparse file": member.issparse(), "a link to nowhere": member.islnk()}
    fits = [words for words, is_it in kinds.items() if is_it]
    return f"{fits[0] if fits else 'no regular file, or a name that leads elsewhere'}; it stays in the guest"


class _Stream:
    """DATA frames as a bounded file to read from."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._buffer = bytearray()
        self._total = 0
        self._ended = False

    def _more(self) -> None:
        frame = self._receive()
        self._ended = not frame.raw
        self._buffer += frame.raw
        self._total += len(frame.raw)
        if self._total > LIMIT:
            raise _too_much()

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; fewer at the end."""
        while not self._ended and len(self._buffer) < size:
            self._more()
        given = bytes(self._buffer[:size])
        del self._buffer[:size]
        return given

    def drain(self) -> None:
        """Read on to the end and forget it."""
        while not self._ended:
            self._buffer.clear()
            self._more()
