"""The store of warm snapshots: ``snapshots/<key>/`` in the cache, with ``ram``, ``state`` and ``record.json``.

Laws: a snapshot appears by rename, whole or not at all, and is made by one run while others wait for it; the device
state is hashed at every opening; the memory, hashed when it was made, is trusted while its inode, size, time and
mode are the recorded ones, hashed again when only they differ, and refused when its size does; the store keeps to
its limit by dropping what was used least recently, never what was just made; what a killed run left half made goes
when the next is made.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from kmt.errors import NoPlaceError, SnapshotError
from kmt.paths import cache, locked, published
from kmt.snapshot import ram

LIMIT_MIB = 8192
"""What all snapshots together may take on disk, unless the project says otherwise."""


@dataclass(frozen=True)
class Trust:
    """What tells that a memory file is the one that was hashed."""

    inode: int
    size: int
    mtime_ns: int
    mode: int


@dataclass(frozen=True)
class Record:
    """``record.json``. ``kernel``, ``machine`` and ``made`` (Unix time) are for people."""

    kernel: str
    machine: str
    made: float
    ram: Trust
    ram_sha256: str
    state_sha256: str


@dataclass(frozen=True)
class Entry:
    """A snapshot as the store lists it: ``bytes`` on disk, ``used`` in Unix time."""

    key: str
    record: Record
    bytes: int
    used: float


@dataclass(frozen=True)
class Opened:
    """A snapshot that was checked: a descriptor of its memory (the caller's while the ``with`` lasts), its state."""

    ram: int
    state: bytes


def rooms() -> Path:
    """The directory of all snapshots."""
    return cache("snapshots")


def exists(key: str) -> bool:
    """It has been made. Whether it is sound is found out when it is opened."""
    return (rooms() / key).is_dir()


@contextmanager
def opened(key: str) -> Iterator[Opened]:
    """Check a snapshot and give it; it counts as used. What the ``with`` holds stays whole if the store drops it.

    Raises SnapshotError when it is not there, or not as it was made.
    """
    room = rooms() / key
    try:
        fd = os.open(room / "ram", os.O_RDWR)
    except OSError as error:
        raise SnapshotError(f"{room / 'ram'}: {error.strerror}") from None
    try:
        yield Opened(fd, _checked(room, fd))
    finally:
        os.close(fd)


def _checked(room: Path, fd: int) -> bytes:
    """The device state of a snapshot whose files are as they were made."""
    with _readable(room):
        record = _record(room)
        _check_ram(room, fd, record)
        state = (room / "state").read_bytes()
    if hashlib.sha256(state).hexdigest() != record.state_sha256:
        raise SnapshotError(f"{room / 'state'} is damaged: its hash is not the recorded one")
    with suppress(OSError):
        os.utime(room / "record.json")
    return state


@contextmanager
def _readable(room: Path) -> Iterator[None]:
    """What cannot be read (another run drops it just now, the disk fails) is a snapshot that is broken."""
    try:
        yield
    except OSError as error:
        raise SnapshotError(f"{error.filename or room}: {error.strerror}") from None


def make(
    key: str, size: int, fill: Callable[[int, Path], bytes], *, kernel: str, machine: str, limit_mib: int = LIMIT_MIB
) -> None:
    """Make a snapshot with memory of ``size`` bytes, unless another run just has.

    ``fill`` is given a descriptor of the empty memory file and a directory for its logs, and returns the device
    state. Raises SnapshotError where there is no place for it, and what ``fill`` raises.
    """
    with locked(f"snapshot-{key}"):
        if exists(key):
            return
        _sweep(key)
        ram.check_place(rooms(), size)
        try:
            with published(rooms() / key) as work:
                work.mkdir()
                _fill(work, size, fill, kernel, machine)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
                raise
            raise NoPlaceError(f"{rooms()}: {error.strerror}") from None
        _shrink(limit_mib, keep=key)


def _fill(work: Path, size: int, fill: Callable[[int, Path], bytes], kernel: str, machine: str) -> None:
    logs = work.with_name("logs")
    logs.mkdir()
    fd = os.open(work / "ram", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(fd, size)
        state = fill(fd, logs)
        os.fsync(fd)  # or a machine that loses power could keep its size and time and lose what is in it
        digests = {"ram_sha256": ram.digest(fd), "state_sha256": hashlib.sha256(state).hexdigest()}
        record = Record(kernel, machine, time.time(), _trust(fd), **digests)
    finally:
        os.close(fd)
    (work / "state").write_bytes(state)
    (work / "record.json").write_text(json.dumps(asdict(record), indent=1))


def discard(key: str) -> None:
    """Drop a snapshot, all of it at once for whoever looks. Guests that run from it go on."""
    room = rooms() / key
    gone = room.with_name(f".{key}.{secrets.token_hex(4)}")
    try:
        room.rename(gone)
    except OSError:  # a disk that is full, say
        gone = room
    shutil.rmtree(gone, ignore_errors=True)


def entries() -> list[Entry]:
    """All snapshots, the least recently used first. One whose record cannot be read counts as oldest."""
    found = []
    for room in rooms().iterdir():
        if room.name.startswith(".") or not room.is_dir():
            continue
        try:
            record, used = _record(room), (room / "record.json").stat().st_mtime
        except (SnapshotError, OSError):
            record, used = Record("", "", 0.0, Trust(0, 0, 0, 0), "", ""), 0.0
        found.append(Entry(room.name, record, _bytes(room), used))
    return sorted(found, key=lambda entry: entry.used)


def verify(key: str) -> None:
    """Hash all of a snapshot, memory too. Raises SnapshotError when it is not as it was made."""
    with opened(key) as snapshot, _readable(rooms() / key):
        if ram.digest(snapshot.ram) != _record(rooms() / key).ram_sha256:
            raise SnapshotError(f"{rooms() / key / 'ram'} is damaged: its hash is not the recorded one")


def _record(room: Path) -> Record:
    try:
        said = json.loads((room / "record.json").read_text())
        return Record(**{**said, "ram": Trust(**said["ram"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SnapshotError(f"{room / 'record.json'}: {error}") from None


def _trust(fd: int) -> Trust:
    found = os.fstat(fd)
    return Trust(found.st_ino, found.st_size, found.st_mtime_ns, stat.S_IMODE(found.st_mode))


def _check_ram(room: Path, fd: int, record: Record) -> None:
    found = _trust(fd)
    if found == record.ram:
        return
    if found.size != record.ram.size:
        raise SnapshotError(f"{room / 'ram'} has {found.size} bytes and was made with {record.ram.size}")
    if found.mode != record.ram.mode or ram.digest(fd) != record.ram_sha256:
        raise SnapshotError(f"{room / 'ram'} was changed since it was made")
    # A copy of the cache, say: the same memory in another file.
    renewed = Record(**{**record.__dict__, "ram": found})
    with suppress(OSError), published(room / "record.json") as work:  # or it is hashed again next time
        work.write_text(json.dumps(asdict(renewed), indent=1))


def _bytes(room: Path) -> int:
    total = 0
    with suppress(OSError):
        for path in room.iterdir():
            total += path.stat().st_blocks * 512
    return total


def _shrink(limit_mib: int, keep: str) -> None:
    found = entries()
    total = sum(entry.bytes for entry in found)
    for entry in found:
        if total <= limit_mib << 20:
            return
        if entry.key != keep:
            discard(entry.key)
            total -= entry.bytes


def _sweep(held: str) -> None:
    """Remove what runs that were killed left half made: their locks are free, or it is the one we hold."""
    for left in rooms().glob(".*"):
        key = left.name[1:].partition(".")[0]
        if key == held:
            shutil.rmtree(left, ignore_errors=True)
            continue
        lock = FileLock(cache("locks") / f"snapshot-{key}.lock", mode=0o600)
        with suppress(Timeout, OSError), lock.acquire(timeout=0):
            shutil.rmtree(left, ignore_errors=True)
