"""What Prometheus scrapes, read by Prometheus' own parsers, and the other reports."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import parser as text
from prometheus_client.openmetrics import parser as openmetrics

from harness.telemetry import PAYLOAD, PROMETHEUS, STATSD, Deltas, MetricGroup, Registry
from harness.telemetry.exposition import labels_of, scrape
from harness.telemetry.reports import Summary, payload, to_statsd

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def read(registry: Registry, accept: str = "") -> list[Any]:
    body, content_type = scrape(registry, accept)
    parser = openmetrics if content_type.startswith("application/openmetrics-text") else text
    return list(parser.text_string_to_metric_families(body.decode()))


def test_what_a_scrape_says() -> None:
    registry = Registry()
    group = MetricGroup("usm.file_registry", "program:shared_libraries", PROMETHEUS, registry=registry)
    group.counter("registered", help="Files activated.").add(7)
    group.gauge("total_files").set(3)
    registry.counter("not.shown").add()
    registry.counter("usm.tls.read_bytes", PROMETHEUS, "side:a").add(10)
    registry.counter("usm.tls.read_bytes", PROMETHEUS, "kind:b").add(20)
    assert scrape(registry)[0].decode().splitlines() == [
        "# HELP usm__file_registry__registered_total Files activated.",
        "# TYPE usm__file_registry__registered_total counter",
        'usm__file_registry__registered_total{program="shared_libraries"} 7.0',
        "# HELP usm__file_registry__total_files The gauge usm.file_registry.total_files.",
        "# TYPE usm__file_registry__total_files gauge",
        'usm__file_registry__total_files{program="shared_libraries"} 3.0',
        "# HELP usm__tls__read_bytes_total The counter usm.tls.read_bytes.",
        "# TYPE usm__tls__read_bytes_total counter",
        'usm__tls__read_bytes_total{kind="",side="a"} 10.0',
        'usm__tls__read_bytes_total{kind="b",side=""} 20.0',
    ]
    body, content_type = scrape(registry, OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert b"# UNIT usm__tls__read_bytes bytes\n" in body
    assert body.endswith(b"# EOF\n")


# Names that are hard on the mapping: dots, other alphabets, line ends, suffixes that Prometheus keeps for itself, and
# some that come to the same name; a lone surrogate is what ``os.fsdecode`` makes of a byte that is no UTF-8.
hard = st.one_of(
    st.sampled_from(
        ["a.b", "a__b", "a_b", "a", "a_total", "a.total", "a_total_total", "a_created", "a_bytes", "a_2", ":"]
    ),
    st.text(st.characters() | st.just("\udcff"), max_size=6),
)
tags = st.lists(
    st.one_of(st.builds("{}:{}".format, hard, hard), hard).filter(lambda t: not t.startswith("_")), max_size=3
)
makings = st.lists(st.tuples(st.booleans(), hard, tags, st.integers(0, 2**53), hard), max_size=8)


def build(made: list[tuple[bool, str, list[str], int, str]]) -> Registry:
    registry = Registry()
    for is_counter, name, own, value, help in made:
        try:
            metric = (registry.counter if is_counter else registry.gauge)(name, *own, PROMETHEUS, help=help)
        except TypeError:  # the other kind
            continue
        metric.add(value)
    return registry


@given(makings, st.sampled_from(["", OPENMETRICS]))
@example([(True, "a", [], 1, ""), (False, "a_total", [], 2, ""), (False, "a", ["x"], 3, "")], OPENMETRICS)
@example([(True, "a", ["x:1", "bare"], 1, ""), (True, "a", ["x:1"], 2, "")], "")
@example([(False, "a.b", ["é:1"], 1, "é\n\\"), (False, "a__b", ["ü:1"], 2, "")], OPENMETRICS)
def test_any_metrics_make_a_valid_scrape_with_every_value_in_it(made: Any, accept: str) -> None:
    registry = build(made)
    families = read(registry, accept)
    assert len({family.name for family in families}) == len(families)
    samples = [sample for family in families for sample in family.samples]
    keys = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in samples]
    assert len(set(keys)) == len(keys)
    assert sum(int(sample.value) for sample in samples) == pytest.approx(
        sum(metric.value for metric in registry.metrics()), rel=1e-12
    )
    for family in families:
        assert family.type in ("counter", "gauge")
        assert family.documentation
        for sample in family.samples:
            assert (family.type == "counter") == (sample.name == f"{family.name}_total")


def test_tags_without_a_key_are_no_labels_and_values_that_then_look_alike_are_added_up() -> None:
    registry = Registry()
    registry.gauge("g", PROMETHEUS, "k:1", "bare").set(5)
    registry.gauge("g", PROMETHEUS, "k:1", ":lead").set(6)
    (family,) = read(registry)
    assert [(dict(s.labels), s.value) for s in family.samples] == [({"k": "1"}, 11)]
    assert labels_of(["__a:1", "9b:2", "c-d:3:4", "e:"]) == {"_a": "1", "_9b": "2", "c_d": "3:4", "e": ""}


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "application/openmetrics-text; version=abc",
        "text/plain; version=1.x",
        "a/b;;;=,,",
        "text/plain;escaping",
    ],
)
def test_no_accept_header_breaks_a_scrape(accept: str) -> None:
    registry = Registry()
    registry.counter("c", PROMETHEUS).add()
    (family,) = read(registry, accept)
    assert family.samples[0].value == 1


def test_the_first_help_that_is_given_stays() -> None:
    registry = Registry()
    registry.counter("c")
    assert registry.counter("c", help="one").help == "one"
    assert registry.counter("c", help="two").help == "one"


def test_a_summary_shows_what_was_added_and_how_fast() -> None:
    now = 0.0
    registry = Registry()
    group = MetricGroup("usm.part", "program:x", registry=registry)
    hits, files = group.counter("hits", "kind:a"), group.gauge("files")
    summary = Summary(group, clock=lambda: now)
    hits.add(6)
    files.set(4)
    assert summary.line() == "hits[kind:a]=6(6.00/s) files=4", "no time has passed: by the second"
    now = 4.0
    hits.add(10)
    assert summary.line() == "hits[kind:a]=10(2.50/s) files=4"
    now = 5.0
    assert summary.line() == "hits[kind:a]=0(0.00/s) files=4"
    assert Summary(MetricGroup("empty", registry=registry)).line() == "n/a"


def test_a_summary_of_many_leaves_out_zeros() -> None:
    registry = Registry()
    group = MetricGroup("", registry=registry)
    gauges = [group.gauge(f"g{n}") for n in range(6)]
    summary = Summary(group)
    assert summary.line() == "n/a"
    gauges[1].set(1)
    assert summary.line() == "g1=1 ", "a space may be left at the end"
    gauges[5].set(-5)
    assert summary.line() == "g1=1 g5=-5"
    gauges.pop()
    assert [metric.name for metric in group.children] == [f"g{n}" for n in range(6)]


def test_a_payload_has_growth_by_name_the_last_tag_wins() -> None:
    registry = Registry()
    deltas = Deltas(registry)
    for n, tag in enumerate(["a:1", "a:2"]):
        registry.counter("c", tag, PAYLOAD).add(n + 5)
    registry.gauge("g", PAYLOAD).set(2)
    registry.gauge("other").set(9)
    assert payload(deltas, "me") == {"c": 6, "g": 2}
    assert payload(deltas, "me") == {"c": 0, "g": 2}


class Statsd:
    def __init__(self) -> None:
        self.heard: list[tuple[str, str, int, list[str]]] = []

    def gauge(self, metric: str, value: int, tags: list[str]) -> None:
        self.heard.append(("gauge", metric, value, tags))

    def increment(self, metric: str, value: int, tags: list[str]) -> None:
        self.heard.append(("count", metric, value, tags))


def test_statsd_hears_gauges_always_and_counters_that_have_grown() -> None:
    registry, statsd = Registry(), Statsd()
    deltas = Deltas(registry)
    registry.counter("c", "k:1", STATSD).add(3)
    registry.gauge("g", STATSD)
    registry.gauge("other")
    to_statsd(deltas, "me", None)
    to_statsd(deltas, "me", statsd)
    to_statsd(deltas, "me", statsd)
    prefix = "datadog.network_tracer."
    gauge = ("gauge", f"{prefix}g", 0, [])
    assert statsd.heard == [("count", f"{prefix}c", 3, ["k:1"]), gauge, gauge]
