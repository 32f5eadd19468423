"""Metrics for readers other than Prometheus: a line for a log, a payload, a statsd client.

All of them report by ``Deltas``, so each reader has a name of its own and misses nothing that others were told.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Protocol

from harness.telemetry.deltas import Deltas
from harness.telemetry.metrics import PAYLOAD, STATSD, Counter, Gauge, MetricGroup

STATSD_PREFIX = "datadog.network_tracer."
_BRIEF = 5
"""A group with more metrics than that leaves out those that are 0."""


class Summary:
    """A group in a line: ``hits=12(3.00/s) files[kind:x]=4``, of what has changed since the line before.

    A counter is shown as what was added, and that by the second; a gauge as it is. Nothing to show is ``n/a``. The
    names are without the group's namespace, the tags without the group's own.
    """

    def __init__(self, group: MetricGroup, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._group = group
        self._clock = clock
        self._lock = Lock()
        self._then = clock()
        self._seen: dict[Counter, int] = {}

    def line(self) -> str:
        """The next line. Behind an entry that is not the group's last metric stands a space, even if no other comes."""
        with self._lock:
            now = self._clock()
            seconds = now - self._then or 1.0
            self._then = now
            children = self._group.children
            written = ""
            for n, metric in enumerate(children):
                value = metric.value
                if isinstance(metric, Counter):
                    total, value = value, value - self._seen.get(metric, 0)
                    self._seen[metric] = total
                if value == 0 and len(children) > _BRIEF:
                    continue
                own = ",".join(tag for tag in metric.tags if tag not in self._group.tags)
                written += metric.name.removeprefix(f"{self._group.namespace}.") + (f"[{own}]" if own else "")
                written += f"={value}" + (f"({value / seconds:.2f}/s)" if isinstance(metric, Counter) else "")
                written += "" if n == len(children) - 1 else " "
            return written or "n/a"


def payload(deltas: Deltas, client: str) -> dict[str, int]:
    """What the metrics with the option ``PAYLOAD`` tell that client, by name: of several with one name the last."""
    return {name: value for (name, _), value in deltas.take(client, PAYLOAD).items()}


class StatsdClient(Protocol):
    """What is used of a statsd client; datadog's and others have it."""

    def gauge(self, metric: str, value: int, tags: list[str]) -> object:
        """Say a value."""

    def increment(self, metric: str, value: int, tags: list[str]) -> object:
        """Add to a count."""


def to_statsd(deltas: Deltas, client: str, statsd: StatsdClient | None) -> None:
    """Tell the metrics with the option ``STATSD``: gauges always, counters that have grown. Without one, nothing."""
    if statsd is None:
        return
    taken = deltas.take(client, STATSD)
    gauges = {metric.identity for metric in deltas.registry.metrics(STATSD) if isinstance(metric, Gauge)}
    for identity, value in taken.items():
        name, tags = STATSD_PREFIX + identity[0], list(identity[1])
        if identity in gauges:
            statsd.gauge(name, value, tags)
        elif value:
            statsd.increment(name, value, tags)
