"""The pytest plugin that speaks for a guest: what was collected, what begins, every report.

Law: no test is lost for what it says. Markers travel only to who makes items of them, and never what a test is
parametrized with; a report that is over the limit of a frame goes without what makes it so.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

from . import fresh
from .wire import LIMIT, Kind, WireError

SECTION_LIMIT = 1 << 20
"""Characters of captured output, or of a reason, that travel in one report."""
PROPERTY_LIMIT, PROPERTIES_LIMIT = 10_000, 100
"""Characters of a property, and how many of them, that travel in a report that was over the limit."""
ERRORS_LIMIT, ERROR_LEAST = LIMIT // 4 // 6, 200
"""Characters of all errors of a collection that was over the limit, and of each at least; JSON makes six of one."""


def _bounded(text: str, limit: int = SECTION_LIMIT) -> str:
    """Its beginning and its end, and how much is missing between them."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


class GuestReporter:
    """Streams to the host. ``channel`` has ``send``, ``ask`` and ``wait``; ``request`` is the host's PYTEST frame."""

    def __init__(self, request: dict[str, Any], channel: Any) -> None:
        self._wanted = list(request["ids"])
        self._collect_only = request["collect_only"]
        self._pause = bool(request.get("pause"))
        self._accelerator = request["accelerator"]
        self._channel = channel
        self._errors: list[dict[str, str]] = []

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Give Hypothesis the host's example database and the profile of this accelerator."""
        self._config = config
        if config.pluginmanager.has_plugin("hypothesispytest"):
            from .database import use_profile

            chosen = config.getoption("--hypothesis-profile", default=None) is not None
            name = os.environ.get("KMT_HYPOTHESIS_PROFILE", "")
            use_profile(self._channel, self._accelerator, name, chosen=chosen)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep what could not be collected."""
        if report.failed:
            self._errors.append({"id": report.nodeid, "text": _bounded(report.longreprtext)})

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Tell the host all that is here, then keep what it asked for, in its order."""
        found = [_description(item, markers=self._collect_only) for item in items]
        self._send_collected(found)
        if self._collect_only:
            return
        if self._pause:
            self._wanted = list(self._channel.wait(Kind.RUN).body["ids"])
            fresh.reseed()
        by_id = {item.nodeid: item for item in items}
        wanted = dict.fromkeys(self._wanted)
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid not in wanted])
        items[:] = [by_id[nodeid] for nodeid in wanted if nodeid in by_id]

    def _send_collected(self, found: list[dict[str, Any]]) -> None:
        body = {"items": found, "errors": self._errors, "paused": self._pause}
        try:
            self._channel.send(Kind.COLLECTED, body)
        except WireError:
            if not self._errors:
                raise
            each = max(ERROR_LEAST, ERRORS_LIMIT // len(self._errors))
            short = [{"id": error["id"], "text": _bounded(error["text"], each)} for error in self._errors]
            self._channel.send(Kind.COLLECTED, {**body, "errors": short})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Run what could be collected; the host has been told what could not."""
        session.config.option.continue_on_collection_errors = True
        return (yield)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins, and may end this machine: what was said before it is with the host by then."""
        self._channel.send(Kind.STARTED, {"id": nodeid})
        self._channel.wait(Kind.HEARD)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase of a test has ended."""
        report.sections = [(title, _bounded(text)) for title, text in report.sections]
        if isinstance(report.longrepr, str):
            report.longrepr = _bounded(report.longrepr)
        try:
            self._send(report)
        except WireError as error:
            _reduce(report, str(error))
            try:
                self._send(report)
            except WireError:
                self._send(_least(report))

    def _send(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._channel.send(Kind.REPORT, {"report": data})


def _reduce(report: pytest.TestReport, why: str) -> None:
    """Leave its outcome, the reason as bounded text and small properties; say what became of the rest."""
    if isinstance(report.longrepr, tuple):  # a skip: pytest asks for path, line and reason
        path, line, reason = report.longrepr
        report.longrepr = (path, line, _bounded(reason))
    elif report.longrepr is not None:
        report.longrepr = _bounded(report.longreprtext)
    small = [pair for pair in report.user_properties if len(str(pair)) <= PROPERTY_LIMIT]
    report.user_properties = small[:PROPERTIES_LIMIT]
    report.sections = [("kmt", f"output, large properties and details were left out: {why}")]


def _least(report: pytest.TestReport) -> pytest.TestReport:
    """What the host cannot do without, and a line that says so."""
    path, line, _ = report.location
    said = "the report of this test was over the limit of what travels, however much was left out"
    least = pytest.TestReport(
        nodeid=report.nodeid,
        location=report.location,
        keywords={},
        outcome=report.outcome,
        longrepr=(path, line or 0, said) if report.skipped else None if report.passed else said,
        when=report.when,
        sections=[("kmt", said)],
    )
    if hasattr(report, "wasxfail"):
        least.__dict__["wasxfail"] = said
    return least


def _description(item: pytest.Item, *, markers: bool) -> dict[str, Any]:
    """What the host is told of a test; with ``markers`` where it makes an item of it."""
    wanted = [m for m in item.iter_markers() if m.name != "parametrize"] if markers else []
    path, line, name = item.location
    marks = [{"name": m.name, "args": list(m.args), "kwargs": dict(m.kwargs)} for m in wanted]
    is_property = bool(getattr(getattr(item, "obj", None), "is_hypothesis_test", False))
    return {"id": item.nodeid, "location": [path, line, name], "markers": marks, "property": is_property}
