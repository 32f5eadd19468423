"""Files of expected failures and their ranges; retries as values."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.errors import ConfigError
from kmt.run.events import Lost, Report
from kmt.run.expected import Entry, Expected, Range, load
from kmt.run.retries import Retries

TODAY = date(2026, 6, 1)
GOOD = {"test": '"a.py::*"', "kernels": '">=5.10"', "reason": '"why"', "until": "2026-06-01"}


def written(tmp_path, text):
    (tmp_path / "known.toml").write_text(text)
    return tmp_path / "known.toml"


def entry(**changes):
    return "[[expected]]\n" + "".join(f"{k} = {v}\n" for k, v in {**GOOD, **changes}.items() if v)


@pytest.mark.parametrize(
    ("text", "release", "holds"),
    [
        ("*", "6.1.0-33-cloud-amd64", True),
        ("*", "mine", True),
        (">=5.10", "mine", False),
        (">=5.10, <6.1", "5.10.0-40-cloud-amd64", True),
        (">=5.10, <6.1", "6.1.0-33", False),
        ("<=6.12", "6.12.117+deb13", True),
        ("<6.12", "6.12.117+deb13", False),
        (">6.12", "6.12.117+deb13", False),
        ("==6.12", "6.12.117", True),
        ("!=6.12", "6.12.117", False),
        (">=6.12.100", "6.12.117", True),
        (">=6.12.100", "6.12.99", False),
        (">6.9", "6.12", True),
        ("==7.3", "7.3-rc4", True),
    ],
)
def test_ranges(text, release, holds):
    assert Range.parse(text).holds(release) is holds


versions = st.tuples(st.integers(2, 9), st.integers(0, 30))


@given(versions, versions, st.integers(0, 200))
def test_a_range_and_its_opposite_never_both_hold(bound, kernel, patch):
    release = f"{kernel[0]}.{kernel[1]}.{patch}-x"
    for sign, opposite in (("<", ">="), ("<=", ">"), ("==", "!=")):
        one, other = (Range.parse(f"{s}{bound[0]}.{bound[1]}").holds(release) for s in (sign, opposite))
        assert one != other


def test_a_whole_file_is_read(tmp_path):
    found = load(written(tmp_path, entry() + entry(test='"b.py::x"', kernels='"*"')), TODAY)
    assert [e.test for e in found.entries] == ["a.py::*", "b.py::x"]
    assert found.of("a.py::x[1]", "6.1.9").reason == "why"
    assert found.of("a.py::x[1]", "4.19.9") is None
    assert found.of("c.py::x", "6.1.9") is None
    assert load(written(tmp_path, ""), TODAY).entries == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[expected]\n", "known.toml: "),
        ("[expected]\n", "[[expected]] tables only"),
        ("[[excepted]]\n", "[[expected]] tables only"),
        ("expected = [1]\n", "expected 1: no table"),
        (entry(reason=""), "expected 1: reason: unknown or missing"),
        (entry() + entry(why='"x"'), "expected 2: why: unknown or missing"),
        (entry(reason='""'), "reason must be a string that is not empty"),
        (entry(test="7"), "test must be a string"),
        (entry(until='"2026-01-01"'), "until must be a date such as"),
        (entry(until="2026-01-01T00:00:00"), "until must be a date such as"),
        (entry(kernels='"6.1"'), "'6.1' is no range of kernels"),
        (entry(kernels='">=6"'), "'>=6' is no range"),
        (entry(kernels='">=6.1,"'), "'' is no range"),
        (entry(kernels='"~=6.1"'), "no range"),
    ],
)
def test_a_wrong_entry_is_a_typed_error_that_names_file_and_entry(tmp_path, text, said):
    with pytest.raises(ConfigError, match=r"known\.toml") as caught:
        load(written(tmp_path, text), TODAY)
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "known.toml", TODAY)


def phase(when, outcome, nodeid="a.py::x", why="E"):
    longrepr = {"reprcrash": {"message": why}} if outcome == "failed" else None
    return Report("6.1", {"nodeid": nodeid, "when": when, "outcome": outcome, "longrepr": longrepr})


@pytest.mark.parametrize(
    ("when", "outcome", "today", "becomes"),
    [
        ("call", "failed", TODAY, "skipped"),
        ("setup", "failed", TODAY, "skipped"),
        ("teardown", "failed", TODAY, "failed"),
        ("call", "failed", date(2026, 6, 2), "failed"),
        ("call", "passed", TODAY, "passed"),
        ("setup", "passed", TODAY, "passed"),
    ],
)
def test_a_failure_is_expected_until_its_day_and_not_while_tearing_down(when, outcome, today, becomes):
    known = Expected((Entry("a.py::x", Range.parse("*"), "why", TODAY),), today)
    data = known.apply(phase(when, outcome).data, "6.1")
    assert data["outcome"] == becomes
    assert ("wasxfail" in data) == (becomes == "skipped" or (when, outcome) == ("call", "passed"))


# Retries


def story(*outcomes):
    return [phase(when, outcome) for when, outcome in zip(("setup", "call", "teardown"), outcomes, strict=True)]


attempts = st.lists(st.sampled_from(["passed", "failed", "lost"]), min_size=1, max_size=6)


@given(attempts, st.integers(0, 4))
def test_the_last_attempt_counts_once_with_the_reasons_of_all_before(outcomes, most):
    retries, counted, ran = Retries(most), [], 0
    for outcome in outcomes:
        ran += 1
        if outcome == "lost":
            counted += retries.report(phase("setup", "passed")) + retries.lost(
                Lost("6.1", "a.py::x", "gone", again=True)
            )
        else:
            counted += [one for event in story("passed", outcome, "passed") for one in retries.report(event)]
        if retries.due() != ("a.py::x",):
            break
    counted += retries.given_up()
    assert ran <= most + 1
    assert len(retries.before("a.py::x")) == ran - 1
    assert len(counted) in (2, 3), "one attempt, whole, also what it said before it was lost"
    assert retries.given_up() == []


def test_what_nobody_runs_again_counts_after_all():
    retries = Retries(1)
    assert [retries.report(event) for event in story("passed", "failed", "passed")] == [[], [], []]
    assert retries.holds("a.py::x")
    assert [one.data["when"] for one in retries.given_up()] == ["setup", "call", "teardown"]
    assert not retries.holds("a.py::x")


def test_a_test_that_was_skipped_with_its_kernel_is_not_tried_again():
    retries = Retries(3)
    assert len(retries.lost(Lost("6.1", "a.py::x", "unavailable", "skipped", again=True))) == 1
    assert retries.due() == ()


def test_what_is_lost_for_good_while_it_waits_to_run_again_counts_once():
    retries = Retries(1)
    for event in story("passed", "failed", "passed"):
        retries.report(event)
    lost = Lost("6.1", "a.py::x", "no such test there")
    (counted,) = retries.lost(lost)
    assert counted.id == "a.py::x"
    assert (retries.due(), retries.given_up()) == ((), [])
