"""What the tracer's programs counted, losses among it, as the metrics ``tracer.*``: they grow by what it has grown by.

Law: a reading that another thread's has overtaken changes nothing. ``events_lost`` may say up to a batch a CPU too many
until the next loss: what a lost event held is read from its batch a moment later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock
from typing import Protocol

from harness.ebpf.events import TracerCounters
from harness.errors import HarnessError
from harness.telemetry import PROMETHEUS, MetricGroup, Registry

_log = logging.getLogger(__name__)


class Counted(Protocol):
    """A tracer, as far as it counts."""

    def counters(self) -> TracerCounters:
        """What the programs counted."""
        ...

    def missed(self) -> int:
        """How often one could not run."""
        ...


def publish(tracer: Counted, metrics: Registry) -> Callable[[], None]:
    """Have the metrics brought up to date before each reading. The function returned does it a last time: call it when
    the tracer listens no more, before its close; what cannot be read then is logged."""
    totals = Totals(metrics)

    def read() -> None:
        totals.be(tracer.counters(), tracer.missed())

    read_no_more = metrics.before_reading(read)

    def end() -> None:
        read_no_more()
        try:
            read()
        except HarnessError as error:
            _log.warning("tracer: what was counted last cannot be read: %s", error)

    return end


class Totals:
    """The metrics."""

    def __init__(self, metrics: Registry) -> None:
        group = MetricGroup("tracer", PROMETHEUS, registry=metrics)
        self._lock = Lock()
        self._seen = (0,) * (len(TracerCounters._fields) + 1)
        self._metrics = (
            group.counter("tcp_closed", help="TCP connections whose end the programs saw."),
            group.counter("udp_closed", help="UDP sockets whose end the programs saw."),
            group.counter("events_lost", help="Closed connections that found no room on the way out of the kernel."),
            group.counter("stats_lost", help="Updates of connections that found no room in the kernel."),
            group.counter("sent_lost_bytes", help="Sent bytes of connections that found no room in the kernel."),
            group.counter("received_lost_bytes", help="Received bytes of connections that found no room."),
            group.counter("connects_lost", help="Connections begun whose process found no room in the kernel."),
            group.counter("udp_sends_missed", help="Datagrams whose addresses the programs could not tell."),
            group.counter("unbatched_tcp_closes", help="Ends of TCP connections that were told one by one."),
            group.counter("unbatched_udp_closes", help="Ends of UDP sockets that were told one by one."),
            group.counter("udp_dropped_connections", help="Ends of UDP sockets without a flow, which are not told."),
            group.counter("missed", help="Runs of the programs that the kernel left out."),
        )

    def be(self, counters: TracerCounters, missed: int) -> None:
        """What has been counted by now."""
        now = (*counters, missed)
        with self._lock:
            for metric, value, seen in zip(self._metrics, now, self._seen, strict=True):
                metric.add(value - seen)
            self._seen = tuple(map(max, now, self._seen))
