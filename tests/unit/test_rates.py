"""How often tests fail: the counting, and the interval against what the textbooks have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.commands import soaking
from kmt.explain import rates
from kmt.explain.rates import Rate
from kmt.results import GONE, KernelResult, Outcome, TestResult


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


def test_runs_are_counted_by_kernel_and_test_and_what_a_dead_guest_took_counts_neither_way():
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
    assert "7.3: guests lost or nothing built: 1 of 4 failed" in lines[2]
    assert lines[3] == "1 test never failed; in 3 runs that leaves up to 56.1%"
    assert lines[4].startswith("runs with a failed test: 2 of 4 failed: 50.0%")


@pytest.mark.parametrize("outcome", sorted({*GONE} - {Outcome.UNAVAILABLE}))
def test_a_test_that_ended_pytest_failed_and_one_that_was_lost_with_its_kernel_did_not(outcome):
    crash = TestResult("t.py::a", "error", 0.0, lost=True, cause="failed")
    behind = TestResult("t.py::b", "error", 0.0, lost=True, cause=str(outcome))
    for kernel_outcome in (outcome, Outcome.FAILED):
        found = rates.tally([[KernelResult("6.1", outcome=kernel_outcome, tests=[crash, behind])]])
        assert found.tests == {("6.1", "t.py::a"): Rate(1, 1)}
        assert found.runs == Rate(1, 1)
    assert rates.tally([[kernel(outcome=outcome, a="lost error")]]).runs == Rate(0, 1), "a file without causes"
    assert rates.tally([[kernel(outcome="failed", a="lost error")]]).runs == Rate(1, 1)
    assert rates.tally([[kernel(a="not applicable", b="skipped")]]).tests == {}
    assert rates.tally([[kernel(outcome=outcome)]]).lost == {"6.1": Rate(1, 1)}


@pytest.mark.parametrize(
    ("runs", "status"),
    [
        ([(7, "build"), (7, "build")], 7),
        ([(0, "ok"), (6, "lost"), (7, "build")], 6),
        ([(0, "ok"), (-9, "ok")], 6),
        ([(0, "ok"), (2, None)], 2),
        ([(4, None)], 4),
        ([(0, "ok"), (0, "ok")], 0),
    ],
)
def test_a_soak_ends_with_the_gravest_status_of_its_runs(monkeypatch, tmp_path, runs, status):
    made = [(said, [KernelResult("6.1", outcome=Outcome(word))] if word else None) for said, word in runs]
    monkeypatch.setattr(soaking, "_runs", lambda *_: iter(made))
    assert soaking.repeat(tmp_path, ["6.1"], times=len(made), args=[]) == status
