"""The host's side of a pytest session whose tests run in guests: events in, pytest's own hooks called.

Laws: a test's reports are given to pytest together, and tests in a stable order (``order.py``), whatever the timing
of guests; ``pytest_kmt_report`` is called at once, for displays. A lost guest's tests are errors of the set-up phase,
never failures. ``-x`` and Ctrl-C stop all guests at once, and what is done by then is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest

from kmt.matrix import SIMULATED
from kmt.plugin.items import KernelItem
from kmt.plugin.order import InOrder
from kmt.report import junit
from kmt.results import NOT_APPLICABLE, KernelResult
from kmt.run.events import Chatter, Event, Finished, Lost, Progress, Report
from kmt.run.pool import Running


def checked(report: object) -> pytest.TestReport:
    """The report, if the plugins of the host can rely on it. Raises ValueError: it came from a guest."""
    if not isinstance(report, pytest.TestReport):
        raise ValueError(f"a {type(report).__name__}")
    if report.when not in ("setup", "call", "teardown") or not isinstance(report.outcome, str):
        raise ValueError(f"phase {report.when!r}, outcome {report.outcome!r}")
    if not isinstance(report.duration, int | float) or not isinstance(report.user_properties, list):
        raise ValueError("durations are numbers, properties lists")
    if report.skipped and isinstance(report.longrepr, list):
        report.longrepr = tuple(report.longrepr)  # as it was before it crossed as JSON
    if report.skipped and not hasattr(report, "wasxfail"):
        where = report.longrepr
        if not (isinstance(where, tuple) and len(where) == 3):
            raise ValueError(f"a skip that does not say where: {where!r}")
    return report


def _ended(report: pytest.TestReport, outcome: str) -> list[pytest.TestReport]:
    """What makes pytest's JUnit file tell of the properties of what is not applicable: it does when a test ends."""
    if outcome != NOT_APPLICABLE:
        return []
    end = pytest.TestReport(report.nodeid, report.location, {}, outcome="passed", longrepr=None, when="teardown")
    end.user_properties = report.user_properties
    return [end]


class _Done(NamedTuple):
    """A test that is over: what pytest is given of it."""

    nodeid: str
    location: Any
    reports: Sequence[pytest.TestReport]


class HostSession:
    """Plays a run's events to pytest."""

    def __init__(self, session: pytest.Session, items: Sequence[KernelItem]) -> None:
        self._session = session
        self._config = session.config
        self._items: Mapping[tuple[str, str], KernelItem] = {(i.kmt_kernel, i.kmt_id): i for i in items}
        due: dict[str, list[str]] = {}
        for item in items:
            due.setdefault(item.kmt_kernel, []).append(item.kmt_id)
        self._ordered: InOrder[_Done] = InOrder(due)
        self._failures = 0
        self._lines: dict[str, str] = {}
        self._phases: dict[tuple[str, str], list[pytest.TestReport]] = {}
        self._facts: dict[str, KernelResult] = {}
        self._told: set[tuple[str, str]] = set()
        self.results: dict[str, KernelResult] = {}

    def play(self, running: Running) -> None:
        """Until every kernel is finished. Raises what pytest's own loop raises for -x, --maxfail and Ctrl-C."""
        try:
            for event in running.events():
                self._on(event)
                self._give()
                if self._enough() or self._session.shouldfail or self._session.shouldstop:
                    break
        except KeyboardInterrupt:
            self._drain(running)
            raise
        self._drain(running)
        if self._session.shouldfail or self._enough():
            raise self._session.Failed(self._session.shouldfail or f"stopping after {self._failures} failures")
        if self._session.shouldstop:
            raise self._session.Interrupted(self._session.shouldstop)

    def _enough(self) -> bool:
        """``-x`` and ``--maxfail`` count failures as they happen; pytest itself would when their turn has come."""
        most = self._config.getoption("maxfail")
        return bool(most) and self._failures >= most

    def _drain(self, running: Running) -> None:
        """Stop the guests, if there are any left, and give what is done."""
        running.cancel()
        for event in running.events():
            self._on(event)
        self._give()

    def _on(self, event: Event) -> None:
        hook = self._config.hook
        if isinstance(event, Progress):
            hook.pytest_kmt_progress(kernel=event.kernel, phase=event.phase, detail=event.detail)
        elif isinstance(event, Report):
            self._report(event)
        elif isinstance(event, Lost):
            self._lost(event)
        elif isinstance(event, Chatter):
            self._chatter(event)
        elif isinstance(event, Finished):
            self._chatter(Chatter(event.kernel, "\n" if self._lines.get(event.kernel) else ""))
            self._ordered.finished(event.kernel)
            self.results[event.kernel] = event.result
            words = " ".join(w for w in (event.result.outcome, event.result.reason) if w)
            hook.pytest_kmt_progress(kernel=event.kernel, phase="done", detail=words)

    def _report(self, event: Report) -> None:
        key = (event.kernel, str(event.data["nodeid"]))
        item = self._items.get(key)
        if item is None:
            return
        nodeid, location = self._shown(event.kernel, item)
        data = {**event.data, "nodeid": nodeid, "location": location}
        try:
            report = checked(self._config.hook.pytest_report_from_serializable(config=self._config, data=data))
        except Exception as error:  # a guest is not to be trusted with the host's session
            self._lost(Lost(event.kernel, item.kmt_id, f"the guest sent what is no report: {error!r}"))
            return
        report.user_properties.extend(self._where(event.kernel))
        phases = self._phases.setdefault(key, [])
        phases.append(report)
        self._heard(event.kernel, report)
        if report.when == "teardown":
            done = _Done(nodeid, location, self._phases.pop(key))
            self._ordered.put(event.kernel, item.kmt_id, done)

    def _heard(self, kernel: str, report: pytest.TestReport) -> None:
        self._failures += bool(report.failed and not hasattr(report, "wasxfail"))
        self._config.hook.pytest_kmt_report(kernel=kernel, report=report)

    def _lost(self, event: Lost) -> None:
        done = self._as_lost(event)
        self._heard(event.kernel, done.reports[0])
        self._ordered.put(event.kernel, event.id, done)

    def tell(self, event: Lost) -> None:
        """Tell pytest at once of a test that no guest will speak of."""
        self._to_pytest(self._as_lost(event))

    def _as_lost(self, event: Lost) -> _Done:
        item = self._items.get((event.kernel, event.id))
        if item is not None:
            nodeid, location = self._shown(event.kernel, item)
        else:
            nodeid, location = f"{event.id} [{event.kernel}]", (event.id.split("::", 1)[0], None, event.id)
        skipped = event.outcome in ("skipped", NOT_APPLICABLE)
        why = self._once(event)
        report = pytest.TestReport(
            nodeid=nodeid,
            location=location,
            keywords={},
            outcome="skipped" if skipped else "failed",
            longrepr=(location[0], location[1] or 0, why) if skipped else why,
            when="setup",
            user_properties=[*self._where(event.kernel), *junit.outcome(event.outcome)],
            kmt_outcome=event.outcome,
        )
        # What it said before its guest was lost is worth more than nothing.
        for before in self._phases.pop((event.kernel, event.id), []):
            report.sections.extend(before.sections)
        return _Done(nodeid, location, [report, *_ended(report, event.outcome)])

    def _once(self, event: Lost) -> str:
        """The whole reason for the first test of a kernel that is lost by it, its first line for the others."""
        key = (event.kernel, event.reason)
        text = event.reason.splitlines()[0] if key in self._told and event.reason else event.reason
        self._told.add(key)
        return f"{event.kernel}: {text}"

    def _give(self) -> None:
        """Give pytest what is in its turn now."""
        for done in self._ordered.take():
            self._to_pytest(done)

    def _to_pytest(self, done: _Done) -> None:
        hook = self._config.hook
        hook.pytest_runtest_logstart(nodeid=done.nodeid, location=done.location)
        for report in done.reports:
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=done.nodeid, location=done.location)

    def name_of(self, kernel: str) -> str:
        """How results name it: a kernel that could not be had, and so is simulated, says so."""
        return self._facts[kernel].name if kernel in self._facts else kernel

    def _shown(self, kernel: str, item: KernelItem) -> tuple[str, tuple[str, int | None, str]]:
        """The id and the place of a test as they are told to pytest."""
        path, line, name = item.location
        if self.name_of(kernel) == kernel:
            return item.nodeid, item.location
        return f"{item.nodeid[:-1]}{SIMULATED}]", (path, line, f"{name[:-1]}{SIMULATED}]")

    def _where(self, kernel: str) -> list[tuple[str, object]]:
        known = self._facts.get(kernel) or KernelResult(kernel)
        return list(junit.properties(known))

    def know(self, result: KernelResult) -> None:
        """The result that a kernel's thread fills in; read for the properties of reports."""
        self._facts[result.name] = result

    def _chatter(self, event: Chatter) -> None:
        """With ``-s`` (or ``-vv``) what guests say outside of reports is shown, whole lines only."""
        if self._config.option.capture != "no" and self._config.get_verbosity() <= 1:
            return
        *whole, rest = (self._lines.get(event.kernel, "") + event.text).split("\n")
        self._lines[event.kernel] = rest
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            for line in whole:
                reporter.write_line(f"[{event.kernel}] {line}")
