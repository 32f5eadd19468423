"""Counters and gauges that any part can make, find again and read, from any number of threads.

Laws: a metric is its name and the set of its tags, in whatever order they are given: the same identity is the same
object, process-wide or in one ``Registry``; asking for it as another kind is a TypeError; a counter never goes down
(negative amounts are ignored). Options (strings that begin with ``_``) say where a metric is to be shown; they are
no part of its identity, and those of the first maker stay. ``help`` says in a sentence what a metric counts; the first
that is given stays. What is counted elsewhere (in the kernel) is brought in with ``before_reading``, just before
anybody reads the registry's metrics. How they leave the process: ``exposition`` (Prometheus), ``reports`` (others).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from threading import Lock
from typing import TypeVar

STATSD = "_statsd"
PROMETHEUS = "_prometheus"
PAYLOAD = "_payload_telemetry"

Identity = tuple[str, tuple[str, ...]]

_log = logging.getLogger(__name__)


class Metric:
    """A named number. Make one with a ``Registry`` or a ``MetricGroup``."""

    def __init__(self, name: str, tags: tuple[str, ...], options: frozenset[str]) -> None:
        self.name = name
        self.tags = tags
        self.options = options
        self.help = ""
        self.lock = Lock()
        """Held while the value changes."""
        self._value = 0

    @property
    def identity(self) -> Identity:
        """The name and the sorted tags."""
        return self.name, self.tags

    @property
    def value(self) -> int:
        """The current value."""
        return self._value

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}{list(self.tags)} {self._value}>"


class Counter(Metric):
    """Counts things that have happened."""

    def add(self, amount: int = 1) -> None:
        """Count ``amount`` more; a negative one is ignored."""
        if amount > 0:
            with self.lock:
                self._value += amount

    def bump(self) -> None:
        """Count one more; only for who holds ``lock`` already, and so saves a second one on a hot path."""
        self._value += 1


class Gauge(Metric):
    """Says how many there are."""

    def set(self, value: int) -> None:
        """Say a new value."""
        with self.lock:
            self._value = value

    def add(self, amount: int) -> None:
        """Move the value, down too."""
        with self.lock:
            self._value += amount


_M = TypeVar("_M", Counter, Gauge)


class Registry:
    """All metrics of a process, or of a test."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._metrics: dict[Identity, Metric] = {}
        self._bringers: dict[object, Callable[[], None]] = {}

    def counter(self, name: str, *tags_and_options: str, help: str = "") -> Counter:
        """The counter of that name and those tags."""
        return self._find_or_make(Counter, name, tags_and_options, help)

    def gauge(self, name: str, *tags_and_options: str, help: str = "") -> Gauge:
        """The gauge of that name and those tags."""
        return self._find_or_make(Gauge, name, tags_and_options, help)

    def before_reading(self, bring: Callable[[], None]) -> Callable[[], None]:
        """Have ``bring`` set metrics before each reading, in the reader's thread; the function returned ends it.

        It may be called by several threads at once. What it raises is logged, and the reading goes on.
        """
        key = object()
        with self._lock:
            self._bringers[key] = bring

        def end() -> None:
            with self._lock:
                self._bringers.pop(key, None)

        return end

    def metrics(self, *options: str) -> list[Metric]:
        """The metrics that have all these options, in order of creation; without options, all."""
        with self._lock:
            bringers = list(self._bringers.values())
        for bring in bringers:
            try:
                bring()
            except Exception as error:
                _log.warning("metrics: some could not be brought up to date: %s", error)
        with self._lock:
            everything = list(self._metrics.values())
        return [metric for metric in everything if metric.options.issuperset(options)]

    def _find_or_make(self, kind: type[_M], name: str, words: Iterable[str], help: str) -> _M:
        words = set(words)
        options = frozenset(word for word in words if word.startswith("_"))
        tags = tuple(sorted(words - options))
        with self._lock:
            found = self._metrics.get((name, tags))
            if found is None:
                found = self._metrics[(name, tags)] = kind(name, tags, options)
            found.help = found.help or help
        if type(found) is not kind:
            raise TypeError(f"{name}{list(tags)} is a {type(found).__name__}, not a {kind.__name__}")
        return found


DEFAULT = Registry()
"""The process's own registry."""


class MetricGroup:
    """Metrics that share a namespace, tags and options; a child's name is ``namespace.name``."""

    def __init__(self, namespace: str, *tags_and_options: str, registry: Registry = DEFAULT) -> None:
        self.namespace = namespace
        self.tags = frozenset(word for word in tags_and_options if not word.startswith("_"))
        self._common = tags_and_options
        self._registry = registry
        self._lock = Lock()
        self._children: dict[Identity, Metric] = {}

    @property
    def children(self) -> list[Metric]:
        """The metrics made by this group, in the order they were first asked for."""
        with self._lock:
            return list(self._children.values())

    def counter(self, name: str, *tags_and_options: str, help: str = "") -> Counter:
        """A counter of this group."""
        return self._keep(self._registry.counter(self._full(name), *self._common, *tags_and_options, help=help))

    def gauge(self, name: str, *tags_and_options: str, help: str = "") -> Gauge:
        """A gauge of this group."""
        return self._keep(self._registry.gauge(self._full(name), *self._common, *tags_and_options, help=help))

    def _keep(self, metric: _M) -> _M:
        with self._lock:
            self._children.setdefault(metric.identity, metric)
        return metric

    def _full(self, name: str) -> str:
        return f"{self.namespace}.{name}" if self.namespace else name
