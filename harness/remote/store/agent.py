"""The store itself: an update goes through both repositories and the comparison of the two, or changes nothing.

Laws:

- ``update`` keeps the files sent, follows the director, then the config repository, forgets the files that the
  director does not list, and verifies the whole; if any of it fails, memory and disk are as before, and the error is
  the caller's;
- nothing is read that was not verified in the last minute (``FRESH``); an update forgets that it was;
- what was kept is verified again, from the roots that the program was given, when the store is opened;
- the organisation's uuid is asked for once for each version of the config root, and only if a snapshot names one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from types import TracebackType

from tuf.api.metadata import TargetFile

from harness.remote import tuf
from harness.remote.errors import RemoteError, StoreError, TamperedError, TargetError
from harness.remote.serve.repository import Content, Published
from harness.remote.store import uptane
from harness.remote.store.database import Database
from harness.remote.store.repository import Metadata, TrustedRepository

FRESH = 60.0
"""Seconds that a verification holds."""


@dataclass(frozen=True, slots=True)
class Received:
    """What a backend sent; a repository that is not in it stays as it is."""

    director: Metadata = field(default_factory=Metadata)
    config: Metadata = field(default_factory=Metadata)
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Content by path."""


def _version(entry: TargetFile) -> int:
    """The file's own version, 0 where the director gives none; the client is the one to mind."""
    version = entry.custom.get("v") if isinstance(entry.custom, dict) else None
    return version if isinstance(version, int) else 0


def _no_uuid() -> str:
    raise StoreError("a snapshot names an organisation, and nobody said which is ours")


class AgentStore:
    """See the module. ``director`` and ``config`` are the first root of each; a context manager."""

    def __init__(
        self,
        path: Path,
        *,
        director: bytes,
        config: bytes,
        org: int | None = None,
        org_uuid: Callable[[], str] = _no_uuid,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._org, self._org_uuid = org, org_uuid
        self._clock, self._monotonic = clock, monotonic
        self._lock = RLock()
        self._verified: float | None = None
        self._shown: Published | None = None
        self._database = Database(path)
        try:
            self._director = self._restore("director", director)
            self._config = self._restore("config", config)
        except RemoteError as error:
            self._database.close()
            hint = "find out who wrote it; remove it to begin again"
            raise TamperedError(f"{path} does not follow from the first roots: {error}", hint=hint) from None

    def update(self, received: Received) -> None:
        """Take in what a backend sent."""
        now = self._clock()
        with self._lock:
            self._verified = None
            with self._database.transaction():
                self._database.keep_files(received.files)
                director = self._director.update(received.director, now)
                config = self._config.update(received.config, now)
                self._database.prune_files(director.targets)
                self._check(director, config)
                self._database.keep_metadata("director", director.kept)
                self._database.keep_metadata("config", config.kept)
            self._director, self._config, self._shown = director, config, None
            self._verified = self._monotonic()

    def versions(self) -> dict[str, dict[str, int]]:
        """Version by repository and role; 0 before any."""
        with self._lock:
            return {"director": self._director.versions, "config": self._config.versions}

    def targets(self) -> Mapping[str, TargetFile]:
        """What the director lists, by path."""
        with self._fresh():
            return dict(self._director.targets)

    def file(self, path: str) -> bytes:
        """The content of a file that the director lists."""
        with self._fresh():
            entry, raw = self._director.targets.get(path), self._database.file(path)
            if entry is None or raw is None:
                raise TargetError(f"{path}: the director does not list this file")
            tuf.verify_file(path, raw, entry)
            return raw

    def published(self) -> Published:
        """All that the director has for clients, as the serving side shows it; the same value until an update.

        Roots older than the store's first one are empty: it never had them.
        """
        with self._fresh():
            if self._shown is None:
                self._shown = self._publish()
            return self._shown

    def _publish(self) -> Published:
        director = self._director
        older = director.versions["root"] - len(director.kept.roots)
        files = {path: Content(self.file(path), _version(entry)) for path, entry in director.targets.items()}
        return Published(
            roots=(b"",) * older + director.kept.roots,
            targets=director.kept.targets,
            targets_version=director.versions["targets"],
            files=files,
            entries={path: {"length": e.length, "hashes": e.hashes} for path, e in director.targets.items()},
        )

    def close(self) -> None:
        """Close the database; twice is once."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> AgentStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _restore(self, name: str, root: bytes) -> TrustedRepository:
        return TrustedRepository.restored(name, root, self._database.metadata(name))

    @contextmanager
    def _fresh(self) -> Iterator[None]:
        """Hold the lock over something that is verified, again if need be."""
        with self._lock:
            if self._director.filled and (self._verified is None or self._monotonic() - self._verified >= FRESH):
                self._verified = None
                self._check(self._director, self._config)
                self._verified = self._monotonic()
            yield

    def _check(self, director: TrustedRepository, config: TrustedRepository) -> None:
        def ours() -> str:
            version = config.versions["root"]
            known = self._database.organisation(version)
            if known is None:
                known = self._org_uuid()
                self._database.keep_organisation(version, known)
            return known

        for repository in (director, config):
            uptane.check_organisation(repository, ours)
        uptane.check_files(director, config, self._database.file, self._org)
