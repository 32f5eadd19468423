import pytest

from kmt.guest.wire import Frame, Kind
from kmt.run.events import Lost, Report, Started
from kmt.run.guest import Plan, Tally, _ended, _events, travelling_env


def plan(tmp_path, known=None):
    return Plan(tmp_path, "", (), {}, False, known or {})


def test_only_listed_variables_travel_and_never_ci():
    here = {"CI": "1", "LANG": "C", "LC_ALL": "C", "SECRET": "s", "MY_A": "1", "HYPOTHESIS_X": "1"}
    assert travelling_env(("MY_*", "CI"), here) == {"LANG": "C", "LC_ALL": "C", "MY_A": "1", "HYPOTHESIS_X": "1"}


def collected(*ids, errors=()):
    return Frame(Kind.COLLECTED, {"items": [{"id": i} for i in ids], "errors": list(errors)})


def test_what_only_the_host_can_see_is_lost_with_the_guests_words(tmp_path):
    tally = Tally(["a.py::x", "b.py::y"])
    frame = collected("a.py::x", errors=[{"id": "b.py", "text": "No module named z"}])
    (event,) = _events("6.1", plan(tmp_path), tally, frame, [])
    assert isinstance(event, Lost)
    assert event.id == "b.py::y"
    assert "No module named z" in event.reason
    assert tally.missing() == ["a.py::x"]


def test_what_only_the_guest_can_see_is_an_error_too(tmp_path):
    known = {"a.py": frozenset({"a.py::x", "a.py::deselected"})}
    frame = collected("a.py::x", "a.py::deselected", "a.py::new", "other.py::z")
    events = list(_events("6.1", plan(tmp_path, known), Tally(["a.py::x"]), frame, []))
    assert [e.id for e in events] == ["a.py::new"]


def test_a_report_counts_as_done_at_its_teardown(tmp_path):
    tally = Tally(["a.py::x"])
    for when in ("setup", "call", "teardown"):
        assert tally.missing() == ["a.py::x"]
        data = {"nodeid": "a.py::x", "when": when}
        (event,) = _events("6.1", plan(tmp_path), tally, Frame(Kind.REPORT, {"report": data}), [])
        assert event == Report("6.1", data)
    assert tally.missing() == []


@pytest.mark.parametrize("report", [None, [], {"nodeid": 3}, {"nodeid": []}, {}, {"nodeid": "b.py::forged"}])
def test_what_is_no_report_is_not_passed_on(tmp_path, report):
    assert list(_events("6.1", plan(tmp_path), Tally([]), Frame(Kind.REPORT, {"report": report}), [])) == []


def test_a_session_that_ends_early_names_the_test_that_ran(tmp_path):
    tally = Tally(["a.py::x", "a.py::y", "a.py::z"], done={"a.py::x"})
    (event,) = _events("6.1", plan(tmp_path), tally, Frame(Kind.STARTED, {"id": "a.py::z"}), [])
    assert event == Started("6.1", "a.py::z")
    told = []
    _ended("6.1", tally, Frame(Kind.EXIT, {"status": -11}), ["Fatal Python error\n"], told.append)
    assert [e.id for e in told] == ["a.py::z", "a.py::y"]
    assert "signal 11" in told[0].reason
    assert "while a.py::z ran" in told[1].reason
    assert "Fatal Python error" in told[1].reason
