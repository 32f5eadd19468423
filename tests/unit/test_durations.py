import json

import pytest

from kmt.results import KernelResult, TestResult
from kmt.run import durations


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))


def result(**seconds):
    return KernelResult("6.1", tests=[TestResult(name, "passed", taken) for name, taken in seconds.items()])


def test_the_slowest_kernel_counts_and_projects_do_not_meet(tmp_path):
    durations.record(tmp_path, [result(a=1.0, b=2.0), result(a=3.0)])
    assert durations.load(tmp_path) == {"a": 3.0, "b": 2.0}
    assert durations.load(tmp_path / "other") == {}


def test_what_did_not_run_is_not_learnt(tmp_path):
    durations.record(tmp_path, [result(a=1.0)])
    gone = KernelResult("6.1", tests=[TestResult("a", "error", 0.0, lost=True), TestResult("b", "skipped", 0.0)])
    durations.record(tmp_path, [gone])
    assert durations.load(tmp_path) == {"a": 1.0}


def test_it_is_bounded_and_keeps_what_was_seen_last(tmp_path, monkeypatch):
    monkeypatch.setattr(durations, "TESTS", 2)
    monkeypatch.setattr(durations, "PROJECTS", 3)
    durations.record(tmp_path, [result(a=1.0, b=1.0)])
    durations.record(tmp_path, [result(c=1.0)])
    assert durations.load(tmp_path) == {"b": 1.0, "c": 1.0}
    for number in range(5):
        durations.record(tmp_path / str(number), [result(a=1.0)])
    assert len(list(durations._file(tmp_path).parent.glob("*.json"))) == 3
    assert durations.load(tmp_path / "4") == {"a": 1.0}


@pytest.mark.parametrize(
    "text", ["", "[", "[1]", '{"a": "x", "b": null, "c": true, "d": -1, "e": NaN, "f": 1e400, "g": [2]}', "[" * 99999]
)
def test_nonsense_is_nothing_known(tmp_path, text):
    durations._file(tmp_path).write_text(text)
    assert durations.load(tmp_path) == {}


def test_a_cache_that_cannot_be_written_fails_nobody(tmp_path):
    durations._file(tmp_path).mkdir()
    durations.record(tmp_path, [result(a=1.0)])
    assert durations.load(tmp_path) == {}


def test_it_is_json_that_people_can_read(tmp_path):
    durations.record(tmp_path, [result(a=1.23456)])
    assert json.loads(durations._file(tmp_path).read_text()) == {"a": 1.235}
