"""Where things are kept: one cache directory (XDG), its rooms, and how files are published into it.

Laws: nothing is written outside the cache directory; its layout has a version, so a cache of an older project is
never read; a file or directory appears by rename, whole or not at all; whoever makes a shared thing holds its
lock, and a second run waits for it and then finds it made; what a killed maker left is removed by the next one.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
from filelock import FileLock

PACKAGE = Path(__file__).parent
"""This package's own directory: its data is in ``vms/``, what travels into guests in ``guest/``."""

_NEW = 60.0

LAYOUT = "v1"
"""Raise it when what lies in the cache changes its meaning."""


def cache_base() -> Path:
    """The directory that ``kmt.clean --all`` removes: ``KMT_CACHE``, else ``kmt`` under the XDG cache directory."""
    named = os.environ.get("KMT_CACHE")
    return Path(named).absolute() if named else Path(platformdirs.user_cache_dir("kmt", appauthor=False))


def cache(*parts: str) -> Path:
    """A room of the cache, made (mode 0700 for the cache itself) when it is missing. ``parts`` are plain names."""
    base = cache_base()
    base.mkdir(parents=True, exist_ok=True, mode=0o700)
    room = base.joinpath(LAYOUT, *parts)
    room.mkdir(parents=True, exist_ok=True)
    return room


def older_layouts() -> list[Path]:
    """Rooms that an older version of the project left: never read, removed by ``kmt.clean``."""
    base = cache_base()
    return sorted(p for p in base.glob("v*") if p.name != LAYOUT) if base.is_dir() else []


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock of that name; two runs that make the same thing meet here. Ends with the process."""
    with FileLock(cache("locks") / f"{name}.lock", mode=0o600):
        yield


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """Give a fresh path beside ``target`` to write a file or make a directory at; rename it there on success.

    On any exception what was written is removed and ``target`` is untouched. A directory is replaced by a directory
    only: a file never takes the place of one (IsADirectoryError), for it may be the user's.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}."
    for left in target.parent.glob(f"{glob.escape(prefix)}*"):
        sweep(left)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield work / target.name
        if (work / target.name).is_dir() and target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        (work / target.name).replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def sweep(work: Path) -> bool:
    """Remove a directory of ``published`` whose maker was killed: nobody holds its lock. True when it was removed."""
    with suppress(OSError):
        # One that was made this moment may not be locked yet.
        if time.time() - work.stat().st_mtime < _NEW or not work.is_dir():
            return False
        lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(work, ignore_errors=True)
            return True
        finally:
            os.close(lock)
    return False


def leftovers() -> list[Path]:
    """What makers that were killed may have left anywhere in the cache, for ``sweep``."""
    return sorted(path for path in cache().glob("*/.*") if path.is_dir())


def digest(*parts: str | bytes) -> str:
    """A digest of the parts and of where each ends: what things are called that are named by their content."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()[:32]
