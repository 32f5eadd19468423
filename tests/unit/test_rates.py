"""How often tests fail: the counting, and the interval against what the textbooks have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.explain import rates
from kmt.explain.rates import Rate
from kmt.results import KernelResult, Outcome, TestResult


@pytest.mark.parametrize(
    ("failed", "of", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(failed, of, low, high):
    assert Rate(failed, of).interval() == pytest.approx((low, high), abs=0.0001)


counts = st.integers(0, 500).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of)))


@given(counts)
def test_an_interval_holds_its_rate_and_more_runs_never_widen_it(count):
    failed, of = count
    low, high = Rate(failed, of).interval()
    assert 0 <= low <= (failed / of if of else 0) <= high <= 1
    more_low, more_high = Rate(failed * 3, of * 3).interval()
    assert more_high - more_low <= high - low + 1e-12


def kernel(name="6.1", outcome="ok", **tests):
    result = KernelResult(name, outcome=Outcome(outcome))
    result.tests = [
        TestResult(f"t.py::{n}", o.removeprefix("lost "), 0.0, lost=o.startswith("lost")) for n, o in tests.items()
    ]
    return result


def test_runs_are_counted_by_kernel_and_test_and_what_was_lost_counts_neither_way():
    found = rates.tally([
        [kernel(a="passed", b="failed", c="skipped"), kernel("7.3", a="passed")],
        [kernel(a="passed", b="passed"), kernel("7.3", outcome="panic", a="lost error")],
        [kernel(a="error", b="passed"), kernel("7.3", a="passed")],
        [kernel(a="passed", b="passed"), kernel("7.3", a="passed")],
    ])  # fmt: skip
    assert found.runs == Rate(2, 4)
    assert found.tests == {
        ("6.1", "t.py::a"): Rate(1, 4), ("6.1", "t.py::b"): Rate(1, 4), ("7.3", "t.py::a"): Rate(0, 3),
    }  # fmt: skip
    assert found.lost["7.3"] == Rate(1, 4)
    lines = rates.lines(found)
    assert lines[0] == "6.1: t.py::a: 1 of 4 failed: 25.0% (4.6% to 69.9% with 95 % confidence)"
    assert "7.3: guests lost: 1 of 4 failed" in lines[2]
    assert lines[3] == "1 test never failed; in 3 runs that leaves up to 56.1%"
    assert lines[4].startswith("runs with a failed test: 2 of 4 failed: 50.0%")
