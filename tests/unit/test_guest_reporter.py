"""No test is lost for what it says: sessions that collect and tell a great deal, in processes of their own."""

import json

import pytest
from guest_sessions import told

from kmt.guest.reporter import ERRORS_LIMIT, PROPERTIES_LIMIT, SECTION_LIMIT
from kmt.guest.wire import LIMIT, Kind

MANY = """
import pytest

@pytest.mark.requires("btf")
@pytest.mark.parametrize("value", [f"{number:0100}" for number in range(600)])
def test_one(value):
    pass
"""


@pytest.mark.parametrize("collect_only", [False, True])
def test_each_of_many_parameters_does_not_bring_all_the_others(tmp_path, collect_only):
    frames = told(tmp_path, MANY, collect_only=collect_only)
    (collected,) = frames[Kind.COLLECTED]
    assert len(collected["items"]) == 600
    assert len(json.dumps(collected)) < 1000 * 600
    marks = [{"name": "requires", "args": ["btf"], "kwargs": {}}] if collect_only else []
    assert all(item["markers"] == marks for item in collected["items"])


BROKEN = """
raise ValueError("\u20ac" * 90_000)
"""


@pytest.mark.parametrize("collect_only", [False, True])
def test_many_large_errors_of_a_collection_all_travel(tmp_path, collect_only):
    names = [f"test_{number}.py" for number in range(40)]
    frames = told(
        tmp_path, MANY, collect_only=collect_only, files=["test_it.py", *names], others=dict.fromkeys(names, BROKEN)
    )
    (collected,) = frames[Kind.COLLECTED]
    assert len(collected["items"]) == 600
    assert [error["id"] for error in collected["errors"]] == names
    for error in collected["errors"]:
        assert "characters left out" in error["text"]
        assert len(error["text"]) > ERRORS_LIMIT // len(names)
    assert len(json.dumps(collected)) < LIMIT


HUGE = f"{LIMIT} + 1000"
TALKING = f"""
import pytest

def test_message():
    raise AssertionError("x" * ({HUGE}))

def test_compared():
    assert "x" * ({HUGE}) == "y"

def test_properties(record_property):
    record_property("small", 1)
    record_property("large", "x" * ({HUGE}))
    for number in range(1000):
        record_property("some", number)

def test_prints():
    for _ in range(40):
        print("x" * 100)

def test_skipped():
    pytest.skip("x" * ({HUGE}))

@pytest.mark.xfail
def test_expected():
    raise AssertionError("x" * ({HUGE}))

def test_after_them_all():
    pass
"""
OUTCOMES = {
    "test_message": "failed",
    "test_compared": "failed",
    "test_properties": "passed",
    "test_prints": "passed",
    "test_skipped": "skipped",
    "test_expected": "skipped",
    "test_after_them_all": "passed",
}


def test_a_report_over_the_limit_keeps_its_outcome_and_those_behind_it_run(tmp_path):
    frames = told(tmp_path, TALKING, ids=[f"test_it.py::{name}" for name in OUTCOMES])
    calls = {
        body["report"]["nodeid"].rpartition("::")[2]: body["report"]
        for body in frames[Kind.REPORT]
        if body["report"]["when"] == "call"
    }
    assert {name: report["outcome"] for name, report in calls.items()} == OUTCOMES
    reason = calls["test_message"]["longrepr"]
    assert "raise AssertionError" in reason
    assert "characters left out" in reason
    assert len(reason) < SECTION_LIMIT + 100
    assert "over the limit" in calls["test_message"]["sections"][0][1]
    kept = calls["test_properties"]["user_properties"]
    assert kept[:2] == [["small", 1], ["some", 0]]
    assert len(kept) == PROPERTIES_LIMIT
    path, line, why = calls["test_skipped"]["longrepr"]
    assert path.endswith("test_it.py")
    assert line > 0
    assert "characters left out" in why
    assert calls["test_prints"]["sections"] == [["Captured stdout call", ("x" * 100 + "\n") * 40]]


ATTACHING = f"""
import pytest

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    report.attached = "x" * ({HUGE})  # travels, and is not pytest's
    return report
"""
SHORT = """
import pytest

def test_passes():
    pass

def test_fails():
    raise AssertionError

def test_skipped():
    pytest.skip()

@pytest.mark.xfail
def test_expected():
    raise AssertionError
"""


def test_a_report_that_cannot_be_reduced_leaves_its_outcome(tmp_path):
    outcomes = {"test_passes": "passed", "test_fails": "failed", "test_skipped": "skipped", "test_expected": "skipped"}
    frames = told(tmp_path, SHORT, ATTACHING, ids=[f"test_it.py::{name}" for name in outcomes])
    reports = [body["report"] for body in frames[Kind.REPORT]]
    assert len(reports) == 3 * len(outcomes)
    calls = {each["nodeid"].rpartition("::")[2]: each for each in reports if each["when"] == "call"}
    assert {name: each["outcome"] for name, each in calls.items()} == outcomes
    assert all("over the limit" in each["sections"][0][1] for each in reports)
    assert "over the limit" in calls["test_fails"]["longrepr"]
    assert "over the limit" in calls["test_skipped"]["longrepr"][2]
    assert "wasxfail" in calls["test_expected"]
    assert "wasxfail" not in calls["test_skipped"]
