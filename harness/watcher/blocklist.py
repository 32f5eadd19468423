"""Files whose activation has failed, so that nobody tries them again and again.

Laws: at most ``capacity`` entries; a new one beyond that evicts the least recently used; adding and looking up (a
hit) count as use, listing does not; any number of threads.

The LRU is the standard library's OrderedDict: 4.8 million look-ups a second under its lock, beside cachetools' 3.2,
pylru's 3.4 and lru-dict's 5.1 (benchmarks/blocklist.py). lru-dict without a lock makes 19; but it is compiled, and
says nothing of threads.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from harness.errors import SettingsError
from harness.watcher.identity import PathIdentifier

CAPACITY = 2000


class Blocklist:
    """Identifiers with the host path each was blocked under."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        if capacity < 1:
            raise SettingsError(f"a blocklist for {capacity} files: at least 1 is needed")
        self.capacity = capacity
        self._lock = Lock()
        self._entries: OrderedDict[PathIdentifier, str] = OrderedDict()
        """Least recently used first."""

    def add(self, id: PathIdentifier, sample_path: str) -> None:
        """Block a file, or refresh it with another path."""
        with self._lock:
            self._entries[id] = sample_path
            self._entries.move_to_end(id)
            if len(self._entries) > self.capacity:
                self._entries.popitem(last=False)

    def sample_path(self, id: PathIdentifier) -> str | None:
        """The path a blocked file was blocked under, refreshing it; None for a file that is not blocked."""
        with self._lock:
            path = self._entries.get(id)
            if path is not None:
                self._entries.move_to_end(id)
            return path

    def entries(self) -> list[tuple[PathIdentifier, str]]:
        """All entries, least recently used first, refreshing none."""
        with self._lock:
            return list(self._entries.items())

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)
