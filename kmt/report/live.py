"""``-p kmt.report.live``: how ``kmt.start`` shows a run while it goes on.

On a terminal, one line a kernel that changes in place; elsewhere, one plain line for each phase and each failure.
It replaces the letters of pytest's reporter only: that reporter still counts, and writes its own summary.
"""

from __future__ import annotations

import io
import os
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kmt.report.table import duration


@dataclass
class Row:
    """One kernel as it is shown. ``total`` is 0 until its tests are known."""

    phase: str = "waiting"
    detail: str = ""
    begun: float = field(default_factory=time.monotonic)
    ended: float | None = None
    total: int = 0
    ids: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def seconds(self) -> float:
        """Since it was first heard of, until it was done."""
        return (self.ended if self.ended is not None else time.monotonic()) - self.begun


class Display:
    """The rows and what of them is on the terminal. ``console`` writes past pytest's capture."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._live: Live | None = None
        self.rows: dict[str, Row] = {}

    def _row(self, kernel: str) -> Row:
        return self.rows.setdefault(kernel, Row())

    def progress(self, kernel: str, phase: str, detail: str) -> None:
        """A kernel's phase or its detail changed."""
        row = self._row(kernel)
        is_new = phase != row.phase
        row.phase, row.detail = phase, detail
        if phase == "done":
            row.ended = time.monotonic()
        if self._console.is_terminal:
            self._start_live()
        elif is_new:
            self._say(f"{kernel}: {phase}{f' ({detail})' if detail else ''}")

    def report(self, kernel: str, report: pytest.TestReport) -> None:
        """A phase of one test ended there."""
        row = self._row(kernel)
        if report.when != "setup" or not report.passed:
            row.ids.add(report.nodeid)
        if report.failed and report.nodeid not in row.failed:
            row.failed.add(report.nodeid)
            if not self._console.is_terminal:
                self._say(f"{kernel}: {'FAILED' if report.when == 'call' else 'ERROR'} {report.nodeid}")

    def _say(self, line: str) -> None:
        elapsed = duration(time.monotonic() - self._began)
        self._console.print(f"[{elapsed:>7}] {line}", markup=False, highlight=False, soft_wrap=True)

    def _start_live(self) -> None:
        if self._live is None:
            self._live = Live(
                console=self._console,
                get_renderable=self.table,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()

    def stop(self) -> None:
        """Take the changing lines off the terminal; what comes next is written below what was there before."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def table(self) -> Table:
        """The kernels as they are now."""
        drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for head in ("kernel", "phase", "tests", "failed", "time"):
            drawn.add_column(head, no_wrap=True, justify="left" if head in ("kernel", "phase") else "right")
        for name, row in self.rows.items():
            phase = f"{row.phase} {row.detail}".strip()
            tests = f"{len(row.ids)}/{row.total}" if row.total else str(len(row.ids) or "")
            failed = Text(str(len(row.failed)), style="red") if row.failed else Text("")
            drawn.add_row(name, Text(phase, style="green" if row.phase == "done" else ""), tests, failed,
                          duration(row.seconds()))  # fmt: skip
        return drawn


class LivePlugin:
    """Feeds the display and keeps pytest's reporter silent while it is there."""

    def __init__(self, reporter: pytest.TerminalReporter, display: Display) -> None:
        self._reporter: Any = reporter
        self._display = display
        self._writer: Any = None

    def pytest_kmt_progress(self, kernel: str, phase: str, detail: str) -> None:
        """Show it."""
        self._silence()
        self._display.progress(kernel, phase, detail)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Learn how many tests each kernel has."""
        for item in session.items:
            name = getattr(item, "kmt_kernel", "")
            if name:
                self._display.rows.setdefault(name, Row()).total += 1

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self) -> Any:
        """From here to the session's end, pytest's reporter writes to nowhere."""
        self._silence()
        return (yield)

    def pytest_kmt_report(self, kernel: str, report: pytest.TestReport) -> None:
        """Count it."""
        self._display.report(kernel, report)

    def _silence(self) -> None:
        if self._writer is None:
            self._writer = self._reporter._tw
            self._reporter._tw = _writer_to_nowhere(self._reporter.config)

    def _give_back(self) -> None:
        self._display.stop()
        if self._writer is not None:
            self._reporter._tw, self._writer = self._writer, None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """The rest is pytest's to say."""
        self._give_back()

    @pytest.hookimpl(tryfirst=True)
    def pytest_internalerror(self) -> None:
        """An internal error is said aloud."""
        self._give_back()

    def pytest_unconfigure(self) -> None:
        """Whatever happened, the terminal is as it was."""
        self._give_back()


def _writer_to_nowhere(config: pytest.Config) -> Any:
    real = config.get_terminal_writer()
    silent = type(real)(io.StringIO())
    silent.fullwidth = real.fullwidth
    return silent


def _console() -> Console:
    """On standard output as it is now: a copy of it that pytest's capture does not redirect."""
    return Console(file=os.fdopen(os.dup(1), "w", buffering=1), highlight=False, emoji=False)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Take over only where kernels run and a reporter is there."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not config.getoption("--kernel", default=None) or config.option.collectonly:
        return
    config.pluginmanager.register(LivePlugin(reporter, Display(_console())), "kmt-live-display")
