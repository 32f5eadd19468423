"""Telemetry: counters and gauges, and what changed in them since a client last asked."""

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
