"""Verified roots and targets on disk, so that a server cannot roll back a client that was restarted. Off by default.

One file in a directory of its own, replaced as a whole. Laws:

- when ``save`` has returned, a later ``load`` gives that state's root and refuses targets older than its own, whatever
  the machine does in between; when it has not, ``load`` gives the state of this save or of the one before;
- what is loaded is verified from the client's own root on, as if a server had sent it, dates apart;
- a file in which any byte differs, which somebody else could have written, or whose signatures do not lead from the
  client's root to its targets is refused with ``TamperedError``: never taken for no file at all;
- one process at a time: the directory is locked from ``StateFile`` to ``close``.

Not prevented: whoever may write as this user can put back the whole file of an earlier day, or remove it.
Configuration files are not kept: the server sends them again to a client that has none.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from harness.remote.errors import RemoteError, StoreError, TamperedError
from harness.remote.ownership import check_owner
from harness.remote.state import PRODUCTS, Kept, State

FILE, LOCK, NEW = "state.json", "lock", "state.json.new"
MAX_FILE = 64 * 2**20
"""Bytes of a file that is read at all."""
_FORMAT = 1
_REMOVE = "find out who wrote it; remove the directory to begin again from the client's own root"


class Disk(Protocol):
    """The steps that a crash can come between."""

    def write(self, path: Path, data: bytes) -> None:
        """Make or overwrite a file of mode 0600."""

    def sync(self, path: Path) -> None:
        """Return when the file, or the names in the directory, have reached the disk."""

    def rename(self, old: Path, new: Path) -> None:
        """Replace ``new`` by ``old`` in one step."""


class RealDisk:
    """``Disk`` by the operating system."""

    def write(self, path: Path, data: bytes) -> None:
        """See ``Disk``."""
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(data)

    def sync(self, path: Path) -> None:
        """See ``Disk``."""
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """See ``Disk``."""
        old.replace(new)


class StateFile:
    """What one client keeps in ``directory``, which is made if need be. A context manager; ``close`` unlocks."""

    def __init__(self, directory: Path, *, disk: Disk | None = None) -> None:
        self._directory = directory
        self._disk = disk or RealDisk()
        self._on_disk: Kept | None = None
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_owner(directory.stat(), directory)
            self._lock: int | None = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _store_error("opened", directory, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise StoreError(f"{directory} is in use by another process", hint="one directory a client") from None

    def load(self, root: bytes, *, products: frozenset[str] = PRODUCTS) -> State:
        """The state to begin with: what was kept, verified from ``root`` on, or that of ``root`` where nothing was."""
        path = self._directory / FILE
        raw = _read(path)
        if raw is None:
            return State.verified(root, products=products)
        kept = _decode(raw, path)
        try:
            state = State.restored(root, kept, products=products)
        except RemoteError as error:
            raise TamperedError(f"{path} does not follow from the client's own root: {error}", hint=_REMOVE) from None
        self._on_disk = kept
        return state

    def save(self, state: State) -> None:
        """Keep a verified state; nothing is written if the same is on disk already."""
        kept = state.kept
        if kept is None:
            raise StoreError("an unverified state has nothing worth keeping", hint="keep verified states only")
        if kept == self._on_disk:
            return
        data = _encode(kept)
        path, new = self._directory / FILE, self._directory / NEW
        if len(data) > MAX_FILE:
            raise StoreError(f"{path} would have {len(data)} bytes, more than {MAX_FILE}")
        try:
            self._disk.write(new, data)
            self._disk.sync(new)
            self._disk.rename(new, path)
            self._disk.sync(self._directory)
        except OSError as error:
            raise _store_error("written", path, error) from None
        self._on_disk = kept

    def close(self) -> None:
        """Let another process have the directory; twice is once."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> StateFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _encode(kept: Kept) -> bytes:
    whole: dict[str, Any] = {
        "format": _FORMAT,
        "roots": [base64.b64encode(root).decode() for root in kept.roots],
        "targets": base64.b64encode(kept.targets).decode(),
    }
    return _text(whole | {"sha256": _digest(whole)})


def _decode(raw: bytes, path: Path) -> Kept:
    """The inverse of ``_encode``, and of nothing else."""
    try:
        whole = json.loads(raw)
        digest = whole.pop("sha256")
        if digest != _digest(whole):
            raise ValueError("its digest does not fit")
        if whole["format"] != _FORMAT:
            raise StoreError(f"{path} has format {str(whole['format'])[:40]!r}, not {_FORMAT}", hint="a newer one?")
        kept = Kept(tuple(_bytes(root) for root in whole["roots"]), _bytes(whole["targets"]))
        if not kept.roots or _encode(kept) != raw:
            raise ValueError("it is not as this program writes it")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise TamperedError(f"{path} is damaged: {type(error).__name__}: {str(error)[:200]}", hint=_REMOVE) from None
    return kept


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _digest(whole: dict[str, Any]) -> str:
    return hashlib.sha256(_text(whole)).hexdigest()


def _text(whole: dict[str, Any]) -> bytes:
    return json.dumps(whole, sort_keys=True).encode()


def _read(path: Path) -> bytes | None:
    """A file that only this user can have written; None if there is none."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            check_owner(status, path)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
                raise TamperedError(f"{path} is no file of up to {MAX_FILE} bytes", hint=_REMOVE)
            return file.read(MAX_FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _store_error("read", path, error) from None


def _store_error(verb: str, path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path} cannot be {verb}: {error.strerror or error}")
