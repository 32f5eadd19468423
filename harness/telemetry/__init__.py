"""Telemetry: counters and gauges, what changed in them since a client last asked, and how that is told.

``metrics`` has the things counted, ``deltas`` what each reader has seen of them; ``exposition`` shows them to
Prometheus, ``reports`` to logs, payloads and statsd.
"""

from harness.telemetry.deltas import Deltas
from harness.telemetry.metrics import (
    DEFAULT,
    PAYLOAD,
    PROMETHEUS,
    STATSD,
    Counter,
    Gauge,
    Metric,
    MetricGroup,
    Registry,
)

__all__ = [
    "DEFAULT",
    "PAYLOAD",
    "PROMETHEUS",
    "STATSD",
    "Counter",
    "Deltas",
    "Gauge",
    "Metric",
    "MetricGroup",
    "Registry",
]
