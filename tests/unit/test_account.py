"""The accounts of one kernel where guests are lost and tests run again: what is forgiven, and what never is."""

from dataclasses import replace
from pathlib import Path

import pytest

from kmt import backends, config, runs
from kmt.backends.base import Machine
from kmt.errors import VmLostError, VmPanickedError, VmTimedOutError
from kmt.matrix import Row
from kmt.results import Outcome
from kmt.run.account import Account
from kmt.run.events import Finished, Lost, Report
from kmt.run.examples import Examples
from kmt.run.expected import Expected
from kmt.run.guest import Plan
from kmt.run.link import CancelledError
from kmt.run.shared import Job, Shared
from kmt.run.spread import Unit

IDS = ("t.py::a", "t.py::b")


@pytest.fixture
def account(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    settings = replace(config.load(tmp_path), retries=1)
    said = []
    plan = Plan(Path(tmp_path), "", (), {}, False, {})
    with runs.start(["6.1"], []) as run:
        shared = Shared(settings, plan, run, Examples(tmp_path, 1), said.append, lambda _: False, Expected())
        backend = backends.get("host", config=settings, accel="auto", progress=lambda *_: None)
        made = Account(Job(Row("6.1"), backend, False, IDS, (Unit(Machine(), IDS),)), shared)
        made.said = said
        yield made


def says(account, nodeid, outcome):
    for when in ("setup", "call", "teardown"):
        word = outcome if when == "call" else "passed"
        longrepr = {"reprcrash": {"message": "E"}} if word == "failed" else None
        account.emit(Report("6.1", {"nodeid": nodeid, "when": when, "outcome": word, "longrepr": longrepr}))


def dies(account, error, *, number=1, ids=IDS):
    account.misfortune(error, ids, number=number)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (VmLostError("gone"), Outcome.OK),
        (VmTimedOutError("silent"), Outcome.OK),
        (VmPanickedError("Oops"), Outcome.PANIC),
    ],
)
def test_a_guest_whose_tests_all_ran_in_another_is_a_remark_and_a_panic_stays_one(account, error, outcome):
    dies(account, error)
    assert account.again() == IDS
    for nodeid in IDS:
        says(account, nodeid, "passed")
    assert account.again() == ()
    account.close(1.0)
    result = account.result
    assert result.outcome is outcome
    assert [(t.id, t.outcome, t.retries) for t in result.tests] == [(i, "passed", (error.message,)) for i in IDS]
    forgiven = [f"guest 1: {error.outcome}: {error.message}"] if outcome is Outcome.OK else []
    assert result.recovered == forgiven
    assert isinstance(account.said[-1], Finished)


def test_a_guest_that_is_lost_twice_is_lost(account):
    dies(account, VmLostError("gone"))
    account.again()
    says(account, IDS[0], "passed")
    dies(account, VmLostError("gone again"), number=2)
    assert account.again() == ()
    account.close(1.0)
    assert account.result.outcome is Outcome.LOST
    assert [(t.outcome, t.lost) for t in account.result.tests] == [("passed", False), ("error", True)]
    lost = [event for event in account.said if isinstance(event, Lost)]
    assert [event.id for event in lost] == [IDS[1]]
    assert "run again 1 time; before that: gone" in lost[0].reason


def test_what_had_failed_and_waits_to_run_again_is_not_lost_with_its_guest(account):
    says(account, IDS[0], "failed")
    dies(account, VmLostError("gone"))
    assert set(account.again()) == set(IDS)
    for nodeid in IDS:
        says(account, nodeid, "passed")
    account.close(1.0)
    assert [t.retries for t in account.result.tests] == [("E",), ("gone",)]


def test_a_run_that_is_stopped_keeps_the_failure_that_would_have_run_again(account):
    says(account, IDS[0], "failed")
    dies(account, CancelledError("stopped"))
    account.close(1.0)
    assert [(t.id, t.outcome) for t in account.result.tests] == [(IDS[0], "failed")]
    assert (account.result.not_run, account.result.outcome) == (1, Outcome.FAILED)


def test_a_second_attempt_that_is_cut_off_leaves_the_first_ones_failure(account):
    says(account, IDS[0], "failed")
    says(account, IDS[1], "passed")
    assert account.again() == IDS[:1]
    dies(account, CancelledError("stopped"), number=2, ids=IDS[:1])
    account.close(1.0)
    assert [(t.outcome, t.retries) for t in account.result.tests] == [("failed", ()), ("passed", ())]
    assert (account.result.not_run, account.result.outcome) == (0, Outcome.FAILED)


def test_a_kernel_that_never_was_there_is_not_tried_again(account):
    dies(account, VmLostError("no machine"), number=0)
    assert account.again() == ()
    account.close(1.0)
    assert account.result.outcome is Outcome.LOST
    assert [t.retries for t in account.result.tests] == [(), ()]


def test_pytest_that_ends_in_the_second_attempt_is_entered_once_and_what_it_said_before_is_told(account):
    says(account, IDS[0], "failed")
    says(account, IDS[1], "passed")
    assert account.again() == IDS[:1]
    account.emit(Report("6.1", {"nodeid": IDS[0], "when": "setup", "outcome": "passed", "sections": [["out", "here"]]}))
    account.emit(Lost("6.1", IDS[0], "pytest ended with status 9", again=True))
    assert account.again() == ()
    account.close(1.0)
    (test,) = (test for test in account.result.tests if test.id == IDS[0])
    assert (test.outcome, test.lost, test.cause, test.retries) == ("error", True, "failed", ("E",))
    told = [event for event in account.said if isinstance(event, Report) and event.data["nodeid"] == IDS[0]]
    assert [event.data.get("sections") for event in told] == [[["out", "here"]]]


def test_what_is_over_while_it_was_to_run_again_is_not_entered_a_second_time(account):
    says(account, IDS[0], "failed")
    says(account, IDS[1], "passed")
    assert account.again() == IDS[:1]
    account.emit(Lost("6.1", IDS[0], "not collected in the guest"))
    account.close(1.0)
    assert sorted(test.id for test in account.result.tests) == sorted(IDS)


def test_tests_are_lost_by_their_own_guests_misfortune(account):
    account._retries._most = 0
    dies(account, VmLostError("gone"), ids=IDS[:1])
    dies(account, VmPanickedError("Oops"), number=2, ids=IDS[1:])
    account.close(1.0)
    assert account.result.outcome is Outcome.PANIC
    assert [(test.cause, test.reason) for test in account.result.tests] == [("lost", "gone"), ("panic", "Oops")]


@pytest.mark.parametrize("phase", ["setup", "call"])
def test_an_expected_failure_says_nothing_of_a_test_that_is_skipped(account, phase):
    for nodeid, outcome in zip(IDS, ("skipped", "failed"), strict=True):
        ended = False
        for when in ("setup", "call", "teardown"):
            word = outcome if when == phase else "passed"
            if not ended or when == "teardown":
                more = {"wasxfail": "why"} if word == "failed" else {}
                account._ledger.report({"nodeid": nodeid, "when": when, "outcome": word, **more}, is_property=False,
                                       expected="why")  # fmt: skip
            ended = ended or word != "passed"
    assert [test.expected for test in account.result.tests] == ["", "why"]
