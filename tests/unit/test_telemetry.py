"""Counters, gauges, groups and deltas."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from interleave import at_every_line

from harness.telemetry import PROMETHEUS, Counter, Deltas, MetricGroup, Registry

tags = st.lists(st.sampled_from(["a:1", "b:2", "c"]), unique=True)


@given(tags, st.randoms(use_true_random=False))
def test_one_object_whatever_the_order_of_tags(given_tags: list[str], dice: object) -> None:
    registry = Registry()
    first = registry.counter("n", *given_tags, PROMETHEUS)
    dice.shuffle(given_tags)  # type: ignore[attr-defined]
    again = registry.counter("n", *given_tags, "_other")
    assert first is again
    assert first.tags == tuple(sorted(given_tags))
    assert first.options == {PROMETHEUS}
    assert registry.counter("n", *given_tags, "more") is not first
    assert registry.counter("m", *given_tags) is not first


def test_another_kind_is_an_error() -> None:
    registry = Registry()
    registry.counter("n", "a:1")
    with pytest.raises(TypeError, match=r"n\['a:1'\] is a Counter, not a Gauge"):
        registry.gauge("n", "a:1")
    registry.gauge("n", "a:2")


amounts = st.lists(st.integers(-5, 5))
steps = st.lists(st.one_of(st.integers(1, 9), st.sampled_from(["one", "two"])))


@given(amounts)
def test_counters_only_go_up_and_gauges_anywhere(amounts: list[int]) -> None:
    registry = Registry()
    counter, gauge = registry.counter("c"), registry.gauge("g")
    for amount in amounts:
        before = counter.value
        counter.add(amount)
        assert counter.value == before + max(amount, 0)
        gauge.add(amount)
    assert gauge.value == sum(amounts)
    gauge.set(-3)
    assert gauge.value == -3


def test_a_group_names_and_tags_its_children() -> None:
    registry = Registry()
    group = MetricGroup("usm.part", "program:x", PROMETHEUS, registry=registry)
    child = group.counter("hits", "b:1")
    assert child is registry.counter("usm.part.hits", "b:1", "program:x")
    assert child.identity == ("usm.part.hits", ("b:1", "program:x"))
    assert child.options == {PROMETHEUS}
    assert MetricGroup("", registry=registry).gauge("bare").name == "bare"
    assert registry.metrics(PROMETHEUS) == [child]
    assert [metric.name for metric in registry.metrics()] == ["usm.part.hits", "bare"]
    assert registry.metrics(PROMETHEUS, "_statsd") == []


@given(steps)
def test_what_a_client_got_adds_up_to_the_value(steps: list[int | str]) -> None:
    registry = Registry()
    deltas = Deltas(registry, clock=lambda: 0.0)
    counter, gauge = registry.counter("c"), registry.gauge("g")
    got = {"one": 0, "two": 0}
    for step in steps:
        if isinstance(step, int):
            counter.add(step)
            gauge.set(step)
        else:
            taken = deltas.take(step)
            got[step] += taken[counter.identity]
            assert taken[gauge.identity] == gauge.value
            assert got[step] == counter.value


def test_a_client_that_stays_away_is_forgotten() -> None:
    now = 0.0
    registry = Registry()
    deltas = Deltas(registry, clock=lambda: now)
    counter = registry.counter("c", PROMETHEUS)
    counter.add(7)
    registry.gauge("g")
    assert deltas.take("me", PROMETHEUS) == {counter.identity: 7}
    now = 299.0
    assert deltas.take("me", PROMETHEUS) == {counter.identity: 0}
    now = 598.0
    assert deltas.take("me") == {counter.identity: 0, ("g", ()): 0}
    now = 898.0
    assert deltas.take("me")[counter.identity] == 7


def test_threads_lose_no_count_and_make_no_second_object() -> None:
    registry = Registry()

    def work(_: int) -> Counter:
        for _ in range(50):
            registry.counter("c").add()
        return registry.counter("c")

    with at_every_line("harness.telemetry", 0.1), ThreadPoolExecutor(4) as pool:
        made = set(pool.map(work, range(4)))
    assert [counter.value for counter in made] == [200]
