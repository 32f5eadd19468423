import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.results import KernelResult
from kmt.run.ledger import Ledger, reason


def phases(*outcomes, nodeid="t.py::test", **more):
    for when, outcome in zip(("setup", "call", "teardown"), outcomes, strict=True):
        if outcome is not None:
            yield {"nodeid": nodeid, "when": when, "outcome": outcome, "duration": 1.0, "longrepr": None} | more


def entered(*outcomes, **more):
    result = KernelResult("6.1")
    ledger = Ledger(result)
    for data in phases(*outcomes, **more):
        ledger.report(data, is_property=False)
    return result


@pytest.mark.parametrize(
    ("outcomes", "wanted"),
    [
        (("passed", "passed", "passed"), "passed"),
        (("passed", "failed", "passed"), "failed"),
        (("failed", None, "passed"), "error"),
        (("passed", "passed", "failed"), "error"),
        (("passed", "failed", "failed"), "error"),
        (("skipped", None, "passed"), "skipped"),
        (("passed", "skipped", "passed"), "skipped"),
    ],
)
def test_phases_become_one_outcome(outcomes, wanted):
    (test,) = entered(*outcomes).tests
    assert test.outcome == wanted
    assert test.seconds == sum(o is not None for o in outcomes)


def test_a_test_is_entered_when_its_last_phase_is_in():
    result = KernelResult("6.1")
    ledger = Ledger(result)
    reports = list(phases("passed", "passed", "passed"))
    for data in reports[:2]:
        ledger.report(data, is_property=True)
        assert result.tests == []
    ledger.report(reports[2], is_property=True)
    assert result.properties() == (1, 1)


def test_properties_become_facts_and_others_do_not():
    result = entered("passed", "passed", "passed", user_properties=[["kmt.tracer", "fentry"], ["x", 1], "bad", [1, 2]])
    assert result.facts == {"tracer": "fentry"}


def test_a_lost_test_forgets_its_half_told_story():
    result = KernelResult("6.1")
    ledger = Ledger(result)
    ledger.report(next(iter(phases("passed", None, None))), is_property=False)
    ledger.lost("t.py::test", "the guest panicked\nmore")
    assert [(t.outcome, t.reason, t.lost) for t in result.tests] == [("error", "the guest panicked", True)]


@pytest.mark.parametrize(
    ("longrepr", "wanted"),
    [
        (None, ""),
        ("one\ntwo", "one"),
        ({"reprcrash": {"message": "assert 1 == 2\n more"}}, "assert 1 == 2"),
        ({"reprcrash": None}, ""),
        (["f.py", 3, "Skipped: no"], "Skipped: no"),
    ],
)
def test_the_line_that_matters(longrepr, wanted):
    assert reason({"longrepr": longrepr}) == wanted


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.sampled_from(["nodeid", "when", "outcome", "duration", "longrepr", "user_properties"]), JSON))
def test_no_report_of_a_hostile_guest_breaks_the_ledger(data):
    Ledger(KernelResult("6.1")).report(data, is_property=False)


@pytest.mark.parametrize(
    ("outcomes", "simulated", "tests", "left"),
    [
        (("passed", "skipped", "passed"), True, [], ["t.py::test"]),
        (("skipped", None, "passed"), True, [], ["t.py::test"]),
        (("passed", "skipped", "failed"), True, ["error"], []),
        (("passed", "skipped", "passed"), False, ["skipped"], []),
    ],
)
def test_what_a_simulated_kernel_could_not_tell_is_no_test_and_no_real_one_may_say_so(outcomes, simulated, tests, left):
    result = KernelResult("6.1", simulated=simulated)
    ledger = Ledger(result)
    for data in phases(*outcomes, longrepr=["t.py", 1, "cannot tell: x"]):
        if data["outcome"] == "skipped":
            data["kmt_outcome"] = "not applicable"
        ledger.report(data, is_property=False)
    assert [test.outcome for test in result.tests] == tests
    assert result.not_applicable == dict.fromkeys(left, "cannot tell: x")
