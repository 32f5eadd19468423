"""(pure) Test reports folded into results: phases of one test become one outcome, properties become facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kmt.explain.verifier import objection
from kmt.results import NOT_APPLICABLE, KernelResult, TestResult

FACT_PREFIX = "kmt."
_WEIGHT = {"passed": 0, "skipped": 1, "failed": 2, "error": 3}


class Ledger:
    """Keeps one kernel's tests while their reports come in. Reports are hostile until looked at."""

    def __init__(self, result: KernelResult) -> None:
        self._result = result
        self._open: dict[str, TestResult] = {}

    def report(
        self, data: Mapping[str, Any], *, is_property: bool, retries: tuple[str, ...] = (), expected: str = ""
    ) -> None:
        """Fold in one phase: set-up and tear-down failures are errors; the test is entered at its tear-down.

        One of which a simulated kernel could not tell is entered as not applicable, unless it failed besides.
        """
        nodeid, when = str(data.get("nodeid")), data.get("when")
        outcome = str(data.get("outcome"))
        if outcome == "failed" and when != "call":
            outcome = "error"
        seconds = data.get("duration")
        before = self._open.get(nodeid, TestResult(nodeid, "passed", 0.0, property=is_property))
        worse = _WEIGHT.get(outcome, 3) > _WEIGHT[before.outcome]
        self._open[nodeid] = TestResult(
            id=nodeid,
            outcome=outcome if worse and outcome in _WEIGHT else before.outcome,
            seconds=before.seconds + (float(seconds) if isinstance(seconds, int | float) else 0.0),
            reason=reason(data) if worse else before.reason,
            property=is_property,
            verifier=verifier(data) if worse and outcome in ("failed", "error") else before.verifier,
            retries=retries,
            expected=(_concerned(data) and expected) or before.expected,
        )
        for name, value in _properties(data):
            if name.startswith(FACT_PREFIX):
                self._result.facts[name.removeprefix(FACT_PREFIX)] = str(value)
        if data.get("kmt_outcome") == NOT_APPLICABLE and self._result.simulated:
            self._result.not_applicable[nodeid] = reason(data)
        if when == "teardown":
            test = self._open.pop(nodeid)
            if nodeid not in self._result.not_applicable or test.outcome in ("failed", "error"):
                self._result.not_applicable.pop(nodeid, None)
                self._result.tests.append(test)

    def lost(
        self, nodeid: str, why: str, outcome: str = "error", *, retries: tuple[str, ...] = (), cause: str = ""
    ) -> None:
        """Enter a test that never spoke, or not to its end; ``cause`` is the ``Outcome`` of what lost it."""
        self._open.pop(nodeid, None)
        line = why.strip().splitlines()[0] if why.strip() else ""
        self._result.tests.append(TestResult(nodeid, outcome, 0.0, line, lost=True, retries=retries, cause=cause))


def _concerned(data: Mapping[str, Any]) -> bool:
    """An expected failure is about this phase: it failed, was expected to, or could have. A plain skip is none."""
    if "wasxfail" in data or data.get("outcome") == "failed":
        return True
    return data.get("when") == "call" and data.get("outcome") == "passed"


def _properties(data: Mapping[str, Any]) -> list[tuple[str, Any]]:
    pairs = data.get("user_properties")
    pairs = pairs if isinstance(pairs, list | tuple) else []
    return [(p[0], p[1]) for p in pairs if isinstance(p, list | tuple) and len(p) == 2 and isinstance(p[0], str)]


def _message(data: Mapping[str, Any]) -> object:
    said = data.get("longrepr")
    if not isinstance(said, Mapping):
        return said
    crash = said.get("reprcrash")
    return crash.get("message") if isinstance(crash, Mapping) else ""


def verifier(data: Mapping[str, Any]) -> str:
    """The verifier's objection, where a failure's report says that it refused a program; else empty."""
    sections = data.get("sections")
    said = [s[1] for s in sections if isinstance(s, list | tuple) and len(s) == 2] if isinstance(sections, list) else []
    return objection(str(_message(data) or ""), "\n".join(str(text) for text in said))


def reason(data: Mapping[str, Any]) -> str:
    """The one line that matters of a report's long representation; empty where there is none."""
    text = _message(data)
    if isinstance(text, list | tuple) and len(text) == 3:  # a skip: file, line, reason
        text = text[2]
    lines = str(text or "").strip().splitlines()
    return lines[0] if lines else ""
