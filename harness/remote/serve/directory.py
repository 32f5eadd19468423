"""A directory of configurations as a repository: a file's path below it is its configuration path.

``DIR/.tuf`` (or another folder ``inside``) holds what makes it one: ``keys`` (made on first use, readable by their
owner alone), ``roots`` (``N.json``) and ``index.json`` (versions, names of keys, dates). Laws:

- whatever changes (a file, a root, a date) gives the targets a higher version; a file's own version grows with its
  content; both survive a restart;
- every file of ``.tuf`` is published by rename, the index last, so a crash between two writes leaves the old one;
- several processes may work on one directory (a server, and the commands that rotate and expire).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey

from harness.errors import HarnessError
from harness.remote import paths
from harness.remote.errors import PathError
from harness.remote.serve.files import publish
from harness.remote.serve.repository import Content, Published, Repository

INSIDE = ".tuf"
CONFIG = f"{INSIDE}/config"
"""Where the second repository over the same files is, for an agent's store (``stored``)."""
ROLES = ("root", "targets")
ONLINE_KEYS = ("snapshot-1", "timestamp-1")
TARGETS_LAST, ROOT_LAST = timedelta(days=90), timedelta(days=365)
_log = logging.getLogger(__name__)


class DirectoryError(HarnessError):
    """The directory, or what is in its ``.tuf``, cannot be read, written or understood."""


class _Listed(NamedTuple):
    """What the index remembers of a file: enough to tell whether it has changed."""

    sha256: str
    version: int


@dataclass
class _Index:
    """What ``index.json`` holds."""

    root: list[str] = field(default_factory=lambda: ["root-1"])
    targets: list[str] = field(default_factory=lambda: ["targets-1"])
    roots: int = 0
    targets_version: int = 0
    expires: str = "1970-01-01T00:00:00+00:00"
    expired: bool = False
    """On purpose."""
    files: dict[str, _Listed] = field(default_factory=dict)

    @classmethod
    def load(cls, raw: bytes) -> _Index:
        """From JSON; TypeError, ValueError or KeyError if it is none of ours."""
        made = cls(**json.loads(raw))
        made.files = {path: _Listed(*listed) for path, listed in made.files.items()}
        return made


class Directory:
    """See the module."""

    def __init__(
        self, path: Path, *, inside: str = INSIDE, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.path = path
        self._inside = path / inside
        self._index = self._inside / "index.json"
        self._clock = clock
        self._lock = Lock()
        self._seen: object = None
        self._warned: set[str] = set()
        if not path.is_dir():
            raise DirectoryError(f"{path} is no directory", hint="make it, and put configurations below it")
        with self._alone():
            self._published = self._refresh(self._load())

    @property
    def root(self) -> Path:
        """The first root: what a client is to be born with."""
        return self._inside / "roots" / "1.json"

    def published(self) -> Published:
        """What there is to serve now."""
        with self._lock:
            if self._look() != self._seen:
                with self._alone():
                    self._published = self._refresh(self._load())
            return self._published

    def rotate(self, role: str) -> None:
        """A new key for the role, and a root that says so, signed by the old keys and the new."""
        self._change(role, lambda index, repository: self._rotate(index, repository, role))

    def expire(self, role: str) -> None:
        """Let the targets, or the root, be past their date."""

        def change(index: _Index, repository: Repository) -> None:
            if role == "root":
                repository.rotate(expires=self._past())
            index.expired = index.expired or role == "targets"

        self._change(role, change)

    def renew(self) -> None:
        """A root and targets with new dates."""

        def change(index: _Index, repository: Repository) -> None:
            repository.rotate()
            index.expired = False

        self._change("root", change)

    def _rotate(self, index: _Index, repository: Repository, role: str) -> None:
        names: list[str] = getattr(index, role)
        names[:] = [f"{role}-{1 + max(int(name.rpartition('-')[2]) for name in names)}"]
        repository.rotate(root=tuple(index.root), targets=tuple(index.targets))

    def _change(self, role: str, change: Callable[[_Index, Repository], None]) -> None:
        if role not in ROLES:
            raise DirectoryError(f"there is no role {role!r}", hint=f"one of {', '.join(ROLES)}")
        with self._lock, self._alone():
            index = self._load()
            repository = self._repository(index)
            change(index, repository)
            self._save_roots(index, repository)
            self._published = self._refresh(index, changed=True)

    def _refresh(self, index: _Index, *, changed: bool = False) -> Published:
        """Take in what has changed among the files and the time, save it, and sign."""
        seen, day = self._look()
        contents = self._contents(index)
        listed = {path: _Listed(_sha256(raw), version) for path, (raw, version) in contents.items()}
        stale = not index.expired and self._clock() > datetime.fromisoformat(index.expires) - TARGETS_LAST / 4
        if changed or stale or listed != index.files or not index.roots:
            index.files = listed
            index.targets_version += 1
            index.expires = (self._past() if index.expired else self._clock() + TARGETS_LAST).isoformat()
            self._save_roots(index, self._repository(index))
            publish(self._index, json.dumps(asdict(index), indent=1).encode())
            # Not a look at all of them: what was edited since it was read is to be seen as changed the next time.
            seen[str(self._index)] = _stamp(self._index)
        self._seen = seen, day
        repository = self._repository(index)
        repository.files = contents
        return repository.publish()

    def _repository(self, index: _Index) -> Repository:
        roots = [(self._inside / "roots" / f"{n}.json").read_bytes() for n in range(1, index.roots + 1)]
        return Repository(
            root_keys=tuple(index.root),
            targets_keys=tuple(index.targets),
            online_keys=ONLINE_KEYS,
            targets_version=index.targets_version,
            roots=roots,
            keyring=self._key,
            expires=datetime.fromisoformat(index.expires),
            root_expires=self._clock() + ROOT_LAST,
        )

    def _contents(self, index: _Index) -> dict[str, Content]:
        """The files to serve; one whose bytes are not those listed has a higher version."""
        found = {}
        for file in sorted(self._walk()):
            path = file.relative_to(self.path).as_posix()
            try:
                paths.parse(path)
            except PathError as error:
                if path not in self._warned:
                    _log.warning("not served: %s", error)
                self._warned.add(path)
                continue
            try:
                raw = file.read_bytes()
            except FileNotFoundError:
                continue  # Removed since the walk.
            old = index.files.get(path)
            version = 1 if old is None else old.version + (old.sha256 != _sha256(raw))
            found[path] = Content(raw, version)
        return found

    def _walk(self) -> Iterator[Path]:
        for top, directories, files in os.walk(self.path):
            directories[:] = [name for name in directories if not name.startswith(".")]
            found = (Path(top, name) for name in files if not name.startswith("."))
            yield from (file for file in found if file.is_file())

    def _look(self) -> tuple[dict[str, tuple[int, ...]], date]:
        """What is different whenever something has changed; of the time, whether the targets grow stale."""
        files = {}
        for file in [*self._walk(), self._index]:
            with contextlib.suppress(FileNotFoundError):
                files[str(file)] = _stamp(file)
        return files, self._clock().date()

    def _load(self) -> _Index:
        file = self._index
        try:
            return _Index.load(file.read_bytes()) if file.exists() else _Index()
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise DirectoryError(f"{file} is no index of ours: {error}", hint=f"remove {self._inside}") from None

    def _key(self, name: str) -> CryptoSigner:
        """The key of that name, made when it is first asked for."""
        file = self._inside / "keys" / f"{name}.pem"
        if not file.exists():
            made = Ed25519PrivateKey.generate()
            publish(file, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        private = load_pem_private_key(file.read_bytes(), None)
        if not isinstance(private, Ed25519PrivateKey):
            raise DirectoryError(f"{file} is no ed25519 key")
        return CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))

    def _save_roots(self, index: _Index, repository: Repository) -> None:
        for number in range(index.roots + 1, len(repository.roots) + 1):
            publish(self._inside / "roots" / f"{number}.json", repository.roots[number - 1])
        index.roots = len(repository.roots)

    def _past(self) -> datetime:
        return self._clock() - timedelta(days=1)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Among all processes that work on this directory; what the system refuses is a ``DirectoryError``."""
        try:
            for folder in (self.path / INSIDE, self._inside, self._inside / "keys", self._inside / "roots"):
                folder.mkdir(mode=0o700, exist_ok=True)
            with (self._inside / "lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise DirectoryError(f"{self.path}: {error}") from None


def _stamp(file: Path) -> tuple[int, ...]:
    status = file.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
