"""Every metric of ours says what it counts, and is named as Prometheus' conventions want: what promtool would check."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser as text
from prometheus_client.openmetrics import parser as openmetrics

from harness.ebpf.live import LiveKernel
from harness.ebpf.settings import BpfSettings
from harness.errors import NotSupportedError
from harness.processes.monitor import ProcessMonitor
from harness.processes.source import Source
from harness.telemetry import PROMETHEUS, MetricGroup, Registry
from harness.telemetry.exposition import scrape
from harness.watcher import tls
from harness.watcher.tls import TlsCounters
from harness.watcher.watcher import Watcher

ROOT = Path(__file__).parents[2]
SOURCES = [path for path in (ROOT / "harness").rglob("*.py") if path.parent.name != "telemetry"]


def makings(source: str) -> Iterator[tuple[int, str | None]]:
    """Calls that make a metric: the line, and the help as it is written (what a format puts in is a word)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MAKERS:
            given = next((keyword.value for keyword in node.keywords if keyword.arg == "help"), None)
            parts = given.values if isinstance(given, ast.JoinedStr) else [given]
            words = [part.value if isinstance(part, ast.Constant) else "word" for part in parts if part]
            yield node.lineno, "".join(map(str, words)) if given else None


MAKERS = ("counter", "gauge")


def is_said(help: str | None) -> bool:
    """A sentence, in a line."""
    return help is not None and re.fullmatch(r"[A-Z][^\n]{8,110}\.", help) is not None


def test_every_metric_that_is_made_says_what_it_counts() -> None:
    made = [(path, line, help) for path in SOURCES for line, help in makings(path.read_text())]
    assert len(made) > 30
    assert [f"{path.relative_to(ROOT)}:{line}: {help}" for path, line, help in made if not is_said(help)] == []


@pytest.mark.parametrize(
    "wrong",
    ['g.counter("a")', 'g.gauge("a", help="")', 'g.counter("a", help="no sentence")', "g.counter('a', help='Short.')"],
)
def test_one_that_does_not_is_seen(wrong: str) -> None:
    assert [is_said(help) for _, help in makings(wrong)] == [False]


def no_source() -> Source:
    raise NotSupportedError("nothing is started here")


@pytest.fixture
def registry() -> Registry:
    """With the metrics of the whole watcher: registry, monitor, TLS."""
    metrics = Registry()
    Watcher(
        LiveKernel(),
        BpfSettings(Path("/none")),
        [],
        metrics=metrics,
        monitor=ProcessMonitor(no_source, metrics=metrics),
    )
    tls._Totals(metrics)
    return metrics


def families(registry: Registry, accept: str = "") -> list[Any]:
    parser = openmetrics if accept else text
    return list(parser.text_string_to_metric_families(scrape(registry, accept)[0].decode()))


def faults(family: Any) -> list[str]:
    """What promtool's linter says of counters and gauges (prometheus/client_golang, testutil/promlint)."""
    name, found = family.name, []
    if not is_said(family.documentation) or family.documentation.startswith(f"The {family.type} "):  # the default
        found.append("no help")
    if name.endswith("_total") or (family.type == "counter") != all(s.name == f"{name}_total" for s in family.samples):
        found.append("_total is for counters, and for all of them")
    if re.search(r"_(bucket|count|sum|info|created)$", name):
        found.append("a suffix of other kinds")
    if re.search(r"(^|_)(counter|gauge|metric)(_|$)", name):
        found.append("its kind in its name")
    if re.search(r"(^|_)(ms|us|ns|milliseconds|kb|mb|kilobytes|kilobyte|minutes|hours)(_|$)", name):
        found.append("no base unit")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        found.append("not in snake case")
    for sample in family.samples:
        if not all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in sample.labels):
            found.append("a label not in snake case")
    return found


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_the_watchers_metrics_pass_the_linter(registry: Registry, accept: str) -> None:
    shown = families(registry, accept)
    assert len(shown) == len(registry.metrics(PROMETHEUS)) > 25
    assert {family.name: faults(family) for family in shown if faults(family)} == {}
    units = {family.name: family.unit for family in shown if family.unit}
    assert units == (
        {} if not accept else {f"usm__tls__{side}_bytes": "bytes" for side in ("received", "sent", "lost")}
    )


def test_the_linter_finds_what_is_wrong() -> None:
    registry = Registry()
    group = MetricGroup("x", PROMETHEUS, registry=registry)
    group.counter("fine", help="Things that are fine.")
    group.counter("untold")
    group.gauge("of_total", help="A gauge that looks like a counter.")
    group.gauge("wait_ms", help="A time in no base unit.")
    group.gauge("some_gauge", help="A kind in a name.")
    group.gauge("Camel", "someLabel:1", help="A name that is written wrong.")
    said = {family.name: faults(family) for family in families(registry)}
    assert said == {
        "x__fine": [],
        "x__untold": ["no help"],
        "x__of_total": ["_total is for counters, and for all of them"],
        "x__wait_ms": ["no base unit"],
        "x__some_gauge": ["its kind in its name"],
        "x__Camel": ["not in snake case", "a label not in snake case"],
    }


def test_totals_of_the_kernel_are_the_metrics_whoever_reads_when() -> None:
    registry = Registry()
    totals = tls._Totals(registry)
    now = [TlsCounters(1, 20, 300, 4, 5)]
    end = registry.before_reading(lambda: totals.be(now[0]))

    def values() -> dict[str, int]:
        return {metric.name.removeprefix("usm.tls."): metric.value for metric in registry.metrics()}

    first = {"calls": 1, "received_bytes": 20, "sent_bytes": 300, "lost_bytes": 4, "unread_calls": 5}
    assert values() == values() == first
    now[0] = TlsCounters(2, 21, 302, 4, 5)
    later = values()
    assert later == first | {"calls": 2, "received_bytes": 21, "sent_bytes": 302}
    totals.be(TlsCounters(1, 20, 300, 4, 5))  # of a reader who was held up
    totals.be(now[0])
    assert values() == later
    end()
    end()
    now[0] = TlsCounters(9, 9, 9, 9, 9)
    assert values() == later


def test_a_reading_goes_on_where_something_cannot_be_brought_up_to_date(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    counter = registry.counter("a")
    registry.before_reading(lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    registry.before_reading(counter.add)
    assert [metric.value for metric in registry.metrics()] == [1]
    assert "could not be brought up to date" in caplog.text
