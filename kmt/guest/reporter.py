"""The pytest plugin that speaks for a guest: what was collected, what begins, every report."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

from . import fresh
from .wire import Kind

SECTION_LIMIT = 1 << 20
"""Characters of captured output, or of a reason, that travel in one report."""


def _bounded(text: str) -> str:
    """Its beginning and its end, and how much is missing between them."""
    if len(text) <= SECTION_LIMIT:
        return text
    half = SECTION_LIMIT // 2
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

            use_profile(self._channel, self._accelerator, os.environ.get("KMT_HYPOTHESIS_PROFILE", ""))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep what could not be collected."""
        if report.failed:
            self._errors.append({"id": report.nodeid, "text": report.longreprtext})

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Tell the host all that is here, then keep what it asked for, in its order."""
        found = [_description(item) for item in items]
        self._channel.send(Kind.COLLECTED, {"items": found, "errors": self._errors, "paused": self._pause})
        if self._collect_only:
            return
        if self._pause:
            self._wanted = list(self._channel.wait(Kind.RUN).body["ids"])
            fresh.reseed()
        by_id = {item.nodeid: item for item in items}
        wanted = dict.fromkeys(self._wanted)
        config.hook.pytest_deselected(items=[i for i in items if i.nodeid not in wanted])
        items[:] = [by_id[nodeid] for nodeid in wanted if nodeid in by_id]

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
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._channel.send(Kind.REPORT, {"report": data})


def _description(item: pytest.Item) -> dict[str, Any]:
    markers = [{"name": m.name, "args": list(m.args), "kwargs": dict(m.kwargs)} for m in item.iter_markers()]
    path, line, name = item.location
    is_property = bool(getattr(getattr(item, "obj", None), "is_hypothesis_test", False))
    return {"id": item.nodeid, "location": [path, line, name], "markers": markers, "property": is_property}
