"""Waiting times: bounds, recovery, and the schedule before and after the first success."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import SettingsError
from harness.remote.backoff import Backoff, Schedule

uniforms = st.floats(0, 1, exclude_max=True)


def test_the_usual_policy() -> None:
    policy = Backoff(5)
    assert policy.max_errors == 5
    low = [policy.seconds(n, lambda: 0.0) for n in range(7)]
    assert low == [0, 5, 10, 20, 40, 90, 90]
    assert [policy.seconds(n, lambda: 0.5) for n in range(1, 5)] == [7.5, 15, 30, 60]


@pytest.mark.parametrize(("base", "count"), [(1, 7), (5, 5), (45, 2), (90, 1), (90.1, 0), (200, 0), (0.001, 17)])
def test_number_of_errors_that_count(base: float, count: int) -> None:
    assert Backoff(base).max_errors == count
    if base <= 90:
        assert count == math.floor(math.log2(90 / base)) + 1


@given(st.floats(0.01, 1000), st.integers(0, 40), uniforms)
def test_a_wait_lies_in_its_interval(base: float, errors: int, uniform: float) -> None:
    policy = Backoff(base)
    wait, top = policy.seconds(errors, lambda: uniform), base * 2.0**errors
    if errors == 0:
        assert wait == 0
    elif top > 90:
        assert wait == 90
    else:
        assert top / 2 <= wait < top


@given(st.floats(0.01, 1000), st.lists(st.booleans(), max_size=30))
def test_the_count_stays_in_bounds_and_recovers(base: float, outcomes: list[bool]) -> None:
    policy, errors = Backoff(base), 0
    for good in outcomes:
        errors = policy.dec(errors) if good else policy.inc(errors)
        assert 0 <= errors <= policy.max_errors
    for _ in range(math.ceil(policy.max_errors / 2)):
        errors = policy.dec(errors)
    assert errors == 0


@given(st.lists(st.booleans(), max_size=15), uniforms)
def test_nothing_counts_before_the_first_success(outcomes: list[bool], uniform: float) -> None:
    schedule = Schedule.every(5)
    for n, good in enumerate(outcomes):
        schedule = schedule.success() if good else schedule.failure(f"reason {n}")
        if not any(outcomes[: n + 1]):
            assert (schedule.errors, schedule.last_error) == (0, "")
            assert schedule.wait(lambda: uniform) <= 1
        else:
            assert schedule.last_error == ("" if good else f"reason {n}")
            extra = schedule.wait(lambda: uniform) - 5
            top = 5 * 2**schedule.errors
            assert extra == 0 if schedule.errors == 0 else top / 2 <= extra < top or extra == 90


@pytest.mark.parametrize("base", [0, -1, math.inf, math.nan])
def test_senseless_settings(base: float) -> None:
    with pytest.raises(SettingsError):
        Backoff(base)
    with pytest.raises(SettingsError):
        Backoff(5, recovery=0)
