"""(pure) Tests that failed and run again (``--kernel-retries``): which, how often, and what of them counts.

Laws: only what a guest said or died of is tried again, at most ``most`` times, each time in a guest of its own; what
counts is the last attempt, with the reasons of all earlier ones on it; nothing that was held back is ever lost: what
no later attempt replaces counts after all; with ``most`` 0 everything passes at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kmt.run.events import Lost, Report
from kmt.run.ledger import reason

PROPERTY = "retries"
"""The property of a test's reports (so of its case in JUnit files) that says how often it was run again."""


class Retries:
    """One kernel's. Not thread-safe: its account is."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._phases: dict[str, list[Report]] = {}
        self._held: dict[str, list[Report | Lost]] = {}
        self._replaced: dict[str, list[Report | Lost]] = {}
        self._before: dict[str, list[str]] = {}

    def report(self, event: Report) -> list[Report | Lost]:
        """A phase of a test ended; what counts now. Nothing, until the test is over and will not run again."""
        if not self._most:
            return [event]
        nodeid = str(event.data.get("nodeid"))
        phases = self._phases.setdefault(nodeid, [])
        phases.append(event)
        if event.data.get("when") != "teardown":
            return []
        said: list[Report | Lost] = [*self._phases.pop(nodeid)]
        failed = next((one for one in phases if one.data.get("outcome") == "failed"), None)
        return self._said(nodeid, said, (reason(failed.data) or "no reason given") if failed else "")

    def lost(self, event: Lost) -> list[Report | Lost]:
        """The test is not over and will not be in its guest; what counts now, with what it had said until then."""
        if not self._most:
            return [event]
        failed = event.reason if event.again and event.outcome == "error" else ""
        return self._said(event.id, [*self._phases.pop(event.id, []), event], failed)

    def _said(self, nodeid: str, said: list[Report | Lost], failed: str) -> list[Report | Lost]:
        self._replaced.pop(nodeid, None)
        self._held.pop(nodeid, None)
        before = self._before.get(nodeid, [])
        if failed and len(before) < self._most:
            lines = failed.strip().splitlines()
            self._before.setdefault(nodeid, []).append(lines[0] if lines else "")
            self._held[nodeid] = said
            return []
        return [_marked(one, before) for one in said] if before else said

    def due(self) -> tuple[str, ...]:
        """The tests to run again now; what they said before counts no more, once they have spoken again."""
        ids = tuple(self._held)
        self._replaced |= self._held
        self._held.clear()
        return ids

    def given_up(self) -> list[Report | Lost]:
        """No guest will run them again: what was held back, which counts after all."""
        counts: list[Report | Lost] = []
        for nodeid, said in {**self._replaced, **self._held}.items():
            before = self._before[nodeid]
            before.pop()  # the reason of the attempt that now counts
            counts += [_marked(one, before) for one in said] if before else said
        self._held.clear()
        self._replaced.clear()
        return counts

    def holds(self, nodeid: str) -> bool:
        """It has failed and waits to run again."""
        return nodeid in self._held

    def before(self, nodeid: str) -> tuple[str, ...]:
        """Why its earlier attempts failed."""
        return tuple(self._before.get(nodeid, ()))


def _marked(one: Report | Lost, before: list[str]) -> Report | Lost:
    if isinstance(one, Lost):
        times = f"{len(before)} time{'s' * (len(before) > 1)}"
        return replace(one, reason=f"{one.reason}\nrun again {times}; before that: {'; '.join(before)}")
    properties = one.data.get("user_properties")
    mine: list[Any] = [[PROPERTY, len(before)], *([f"{PROPERTY} {n}", why] for n, why in enumerate(before, 1))]
    data: Mapping[str, Any] = {**one.data, "user_properties": [*(properties or []), *mine]}
    return replace(one, data=dict(data))
