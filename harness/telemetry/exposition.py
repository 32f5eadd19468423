"""Metrics as Prometheus scrapes them, text and OpenMetrics, by ``prometheus_client``.

Only metrics with the option ``PROMETHEUS`` are shown. Laws, whatever names, tags and values there are:

- what comes out is valid in both formats, by the library's own parsers, and every metric's value is in it once: in the
  sample of its labels, or added up with those that differ only in tags which are no labels;
- ``.`` in a name becomes ``__``, what is no letter, digit or ``_`` becomes ``_`` (colons are for recording rules), so
  that ``usm.file_registry.registered`` is the counter ``usm__file_registry__registered_total``; a name that is taken
  by then (another kind, another name that looks like it) gets a number;
- a tag ``key:value`` is a label; one without a key is none. A metric without one of its family's labels has it empty,
  which to Prometheus is the same as not having it;
- a name that ends in ``_bytes`` or ``_seconds`` has that unit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from prometheus_client import exposition
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from harness.telemetry.metrics import DEFAULT, PROMETHEUS, Counter, Metric, Registry

UNITS = ("bytes", "seconds")
"""Base units (of the many that Prometheus knows) that our names end with."""

_SUFFIXES = {"counter": ("", "_total", "_created"), "gauge": ("",)}
"""What may stand behind a family's name: no two families may meet in one of these."""


class MetricsCollector(Collector):
    """Shows a registry of ours to ``prometheus_client``."""

    def __init__(self, registry: Registry = DEFAULT) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Family]:
        """One family a name and kind, in order of creation."""
        return families(self._registry.metrics(PROMETHEUS))


def scrape(registry: Registry, accept: str = "") -> tuple[bytes, str]:
    """The answer to a scrape with that ``Accept`` header: the body and its content type."""
    try:
        encode, content_type = exposition.choose_encoder(accept)
    except (ValueError, TypeError):  # of a version that is no number (0.26)
        encode, content_type = exposition.choose_encoder("")
    return encode(MetricsCollector(registry)), content_type


def families(metrics: Iterable[Metric]) -> Iterator[Family]:
    """(pure) See the module."""
    alike: dict[tuple[str, str], list[Metric]] = {}
    for metric in metrics:
        alike.setdefault((metric.name, "counter" if isinstance(metric, Counter) else "gauge"), []).append(metric)
    taken: set[str] = set()
    for (name, kind), members in alike.items():
        family = Family(_free(family_name(name, kind), _SUFFIXES[kind], taken), _help(name, kind, members), kind)
        family.unit = next((unit for unit in UNITS if family.name.endswith(f"_{unit}")), "")
        for labels, value in _samples(members).items():
            family.add_sample(family.name + ("_total" if kind == "counter" else ""), dict(labels), value)
        yield family


def family_name(name: str, kind: str) -> str:
    """(pure) Prometheus' name of a family of ours, without the ``_total`` of a counter's samples."""
    known = re.sub(r"[^a-zA-Z0-9_]", "_", name.replace(".", "__"))
    known = known.removesuffix("_total") if kind == "counter" else known
    return known if re.match("[a-zA-Z_]", known) else f"_{known}"


def _free(base: str, suffixes: tuple[str, ...], taken: set[str]) -> str:
    """``base``, or with the first number that makes it and all it may appear as new; takes them."""
    name, number = base, 1
    while not taken.isdisjoint(name + suffix for suffix in suffixes):
        number += 1
        name = f"{base}_{number}"
    taken.update(name + suffix for suffix in suffixes)
    return name


def _help(name: str, kind: str, members: list[Metric]) -> str:
    said = next((member.help for member in members if member.help.strip()), f"The {kind} {name}.")
    return said.encode(errors="backslashreplace").decode()


def _samples(members: list[Metric]) -> dict[tuple[tuple[str, str], ...], int]:
    """Values by labels, all with the same label names in the same order."""
    labelled = [(labels_of(member.tags), member.value) for member in members]
    names = sorted({name for labels, _ in labelled for name in labels})
    added: dict[tuple[tuple[str, str], ...], int] = {}
    for labels, value in labelled:
        key = tuple((name, labels.get(name, "")) for name in names)
        added[key] = added.get(key, 0) + value
    return added


def labels_of(tags: Iterable[str]) -> dict[str, str]:
    """(pure) Labels of tags ``key:value``; of two that come to the same name the last counts."""
    labels = {}
    for tag in tags:
        key, colon, value = tag.partition(":")
        if not (key and colon):
            continue
        name = re.sub(r"[^a-zA-Z0-9_]", "_", key)
        name = re.sub(r"^_+", "_", name if re.match("[a-zA-Z_]", name) else f"_{name}")
        labels[name] = value.encode(errors="backslashreplace").decode()
    return labels
