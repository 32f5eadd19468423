"""A directory behind an agent's store: what clients are served has gone through two repositories and a database.

The directory plays the backend. The files in it are signed twice, as the director's and as the config repository's,
each with keys of its own and all roles of TUF; the store takes both in, compares them and keeps them. Laws: what is
served is what the store last took in whole; what it refuses is said once and changes nothing, until the directory
changes again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from harness.remote.errors import RemoteError, StoreError
from harness.remote.failures import FailureLog
from harness.remote.serve.directory import Directory
from harness.remote.serve.repository import Published
from harness.remote.store.agent import AgentStore, Received
from harness.remote.store.repository import Metadata

_log = logging.getLogger(__name__)


class StoredDirectory:
    """See the module. A ``host.Publisher``; ``close`` it, or use it as a context manager.

    ``director`` and ``config`` are two repositories over one directory.
    """

    def __init__(
        self,
        director: Directory,
        config: Directory,
        database: Path,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._sides = (director, config)
        roots = [side.root.read_bytes() for side in self._sides]
        self.store = AgentStore(database, director=roots[0], config=roots[1], clock=clock)
        self._taken: list[Published] = []
        self._failures = FailureLog(_log, time.monotonic)
        self._lock = Lock()

    def published(self) -> Published:
        """What the store has for clients, after what is new in the directory."""
        with self._lock:  # from the reading on: what was read first must come first
            sent = [side.published() for side in self._sides]
            if [id(each) for each in sent] != [id(each) for each in self._taken]:
                self._take_in(sent)
        return self.store.published()

    def close(self) -> None:
        """Close the database; a second time does nothing."""
        self.store.close()

    def __enter__(self) -> StoredDirectory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _take_in(self, sent: list[Published]) -> None:
        versions = self.store.versions()
        director, config = (
            Metadata(each.roots[versions[name]["root"] :], each.timestamp, each.snapshot, each.targets)
            for name, each in zip(("director", "config"), sent, strict=True)
        )
        files = {path: content.raw for path, content in sent[0].files.items()}
        try:
            self.store.update(Received(director, config, files))
        except RemoteError as error:
            self._failures.say(error, first=False)
        except StoreError as error:
            # The disk's fault and not the directory's: to be tried again.
            self._failures.say(error, first=False)
            return
        else:
            self._failures.over()
        self._taken = sent
