"""What has changed since a client last asked, for each client on its own.

Laws: the sum of the deltas that one client got of a counter is the counter's value at its last call, whatever other
clients and threads did; a gauge is always reported as it is; a client that has not asked for ``time_to_live``
seconds is forgotten, and gets full values when it comes again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

from harness.telemetry.metrics import DEFAULT, Counter, Identity, Registry

TIME_TO_LIVE = 300.0


class Deltas:
    """Remembers for each client what it has seen."""

    def __init__(
        self,
        registry: Registry = DEFAULT,
        *,
        time_to_live: float = TIME_TO_LIVE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self._time_to_live = time_to_live
        self._clock = clock
        self._lock = Lock()
        self._clients: dict[str, tuple[float, dict[Identity, int]]] = {}

    def take(self, client: str, *options: str) -> dict[Identity, int]:
        """Counters' growth since the client's last call and gauges' values, of metrics with all ``options``."""
        with self._lock:
            now = self._clock()
            self._clients = {c: s for c, s in self._clients.items() if now - s[0] < self._time_to_live}
            _, seen = self._clients.get(client, (now, {}))
            self._clients[client] = (now, seen)
            taken = {}
            for metric in self.registry.metrics(*options):
                value = metric.value
                taken[metric.identity] = value
                if isinstance(metric, Counter):
                    taken[metric.identity] -= seen.get(metric.identity, 0)
                    seen[metric.identity] = value
            return taken
