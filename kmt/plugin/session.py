"""A pytest session with ``--kernel``: what is collected, what runs where, how it ends.

Laws: each test that may run in guests becomes one item a kernel, everything else is deselected and counted; what
the host cannot import is collected in the guest of the first real kernel that can be had; in a suite with
``strict_skips`` a test that no kernel of the default matrix can run is an error. Options are ``pytest_plugin``'s,
kernels ``rows``'s, events ``replay``'s.
"""

from __future__ import annotations

import queue
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from datetime import UTC, date, datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from kmt import backends, matrix, runs
from kmt.backends.base import Backend
from kmt.errors import EXIT_USAGE, KmtError
from kmt.plugin.items import KernelItem, adopt, expand, runs_in_guests
from kmt.plugin.leaving import Left, complete, leave
from kmt.plugin.modules import loaded
from kmt.plugin.options import coverage, settings, take_coverage, travelling_options, words_of
from kmt.plugin.parts import Part
from kmt.plugin.replay import HostSession
from kmt.plugin.rows import HOST, choose
from kmt.plugin.works import jobs_of
from kmt.results import KernelResult, Made, Outcome, exit_status, gravest
from kmt.run import durations, expected
from kmt.run.budget import budget
from kmt.run.events import Event, Lost, Progress
from kmt.run.expected import Expected
from kmt.run.guest import Plan, environment
from kmt.run.pool import Running
from kmt.text import visible

if TYPE_CHECKING:
    from kmt.plugin.collect import FirstThatCan

NOWHERE = ("",)
"""The kernels of a test that may run in none."""


class MatrixPlugin:
    """Registered where ``--kernel`` was said."""

    def __init__(self, pytest_config: pytest.Config, asked: Sequence[str]) -> None:
        self._pytest = pytest_config
        self._config = settings(pytest_config)
        catalogue = self._config.root / self._config.catalogue if self._config.catalogue else None
        self._matrix = matrix.load(catalogue)
        backend, strict = pytest_config.getoption("--kernel-backend"), pytest_config.getoption("--kernel-strict")
        chosen = choose(words_of(asked), self._matrix, self._config.backend, said=backend, strict=strict)
        self._chosen, self._rows, self._strict = chosen, chosen.rows, chosen.strict
        part = pytest_config.getoption("--kernel-part")
        self._part = Part.parse(part) if part else None
        file = self._config.root / self._config.expected if self._config.expected else None
        self._expected = expected.load(file, date.today()) if file else Expected()
        self._known: dict[str, set[str]] = {}
        self._events: queue.Queue[Event] = queue.Queue()
        self._backends: dict[str, Backend] = {}
        self._collector: FirstThatCan | None = None
        self._stack = ExitStack()
        self._run: runs.Run | None = None
        self.results: list[KernelResult] = []
        self._session: pytest.Session | None = None
        self._elsewhere = False
        self._left = Left()
        self._begin = monotonic()
        for row in self._rows:
            self._backend(row)  # a wrong name is said before anything is collected
        self._started = datetime.now(UTC).isoformat(timespec="seconds")

    def pytest_report_header(self) -> str:
        """One line: the kernels."""
        return f"kernels: {', '.join(row.name for row in self._rows)} ({self._config.backend})"

    # Innermost of all wrappers, so that --lf's own one filters ids that have kernels in them.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Turn each test that was just made into one a kernel."""
        report = yield
        names = [row.name for row in self._rows]
        if report.passed and isinstance(report.result, list):
            made: list[pytest.Item | pytest.Collector] = []
            for node in report.result:
                # With ids as arguments the session itself is asked for items that are already made.
                if not isinstance(node, pytest.Item) or isinstance(node, KernelItem):
                    made.append(node)
                    continue
                self._known.setdefault(node.nodeid.split("::", 1)[0], set()).add(node.nodeid)
                eligible = runs_in_guests(node, self._config.guest, self._config.root)
                made.extend(expand(node, names) if eligible else [node])
            report.result = made
        elif report.failed and isinstance(collector, pytest.Module) and _import_failed(report):
            self._collect_in_guest(collector, report, names)
        return report

    def _collect_in_guest(self, module: pytest.Module, report: pytest.CollectReport, names: list[str]) -> None:
        real = [row for row in self._rows if not row.simulated]
        # What cannot be imported here cannot be run here either, so simulated kernels have no use for it.
        if not real or not runs_in_guests(module, self._config.guest, self._config.root):
            return
        if self._pytest.option.collectonly:  # boots nothing
            placeholder = KernelItem.from_parent(
                module, name="(collected in a guest)", kernel=names[0], guest_id=module.nodeid, inner=None
            )
            found: list[KernelItem] = [placeholder]
        else:
            try:
                self._collector = self._collector or self._collectors(real)
                tests = self._collector.collect(module.nodeid)
            except KmtError as error:
                report.longrepr = f"{report.longreprtext}\n\nnor in a guest of {error}"
                return
            self._known[module.nodeid] = {test.id for test in tests}
            found = [i for test in tests for i in adopt(test, module, NOWHERE if test.is_host_only else names)]
        report.outcome, report.longrepr, report.result = "passed", None, list(found)

    def _collectors(self, rows: Sequence[matrix.Row]) -> FirstThatCan:
        from kmt.plugin.collect import FirstThatCan, GuestCollector

        plan, run = self._plan(), self._registered()
        return FirstThatCan([GuestCollector(row, self._backend(row), self._config, plan, run) for row in rows])

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what may not run in guests, or is another job's; it is counted as deselected."""
        if self._collector is not None:
            collector, self._collector = self._collector, None
            collector.close()
        left = [item for item in items if not (isinstance(item, KernelItem) and item.kmt_kernel)]
        if self._part:
            others = self._part.others([item for item in items if isinstance(item, KernelItem) and item.kmt_kernel])
            self._elsewhere = bool(others)
            left += others
        if left:
            gone = set(left)
            config.hook.pytest_deselected(items=left)
            items[:] = [item for item in items if item not in gone]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the items in their guests."""
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            return None  # pytest's own loop says it
        if session.config.option.collectonly or not session.items:
            return True
        try:
            self._play(session)
        except KmtError as error:
            pytest.exit(f"kmt: {error}", returncode=error.exit_status)
        return True

    def _play(self, session: pytest.Session) -> None:
        items = [item for item in session.items if isinstance(item, KernelItem)]
        ours = budget(self._config)
        jobs = jobs_of(items, self._chosen, self._backend, self._config, ours)
        properties = {item.kmt_id for item in items if item.is_property}
        playing = HostSession(session, items)
        running = Running(
            jobs,
            budget=ours,
            config=self._config,
            plan=self._plan([item.kmt_id.split("::", 1)[0] for item in items]),
            run=self._registered(),
            is_property=properties.__contains__,
            expected=self._expected,
            on_result=playing.know,
            events=self._events,
        )
        try:
            with running:
                playing.play(running)
            self._nowhere_run(playing)
        finally:
            for job in jobs:
                name = playing.name_of(job.row.name)
                take_coverage(self._registered().kernel_dir(name) / "artifacts", self._config.root)
            self.results = [playing.results[j.row.name] for j in jobs if j.row.name in playing.results]
            durations.record(self._config.root, self.results)

    def _nowhere_run(self, playing: HostSession) -> None:
        """The law of ``strict_skips`` over a whole matrix, where all of it was there and real."""
        default = {row.name for row in self._matrix.rows if row.default}
        results = playing.results.items()
        ran = {name: r for name, r in results if r.outcome is not Outcome.UNAVAILABLE and not r.simulated}
        if not self._config.strict_skips or not default <= set(ran):
            return
        skipped = [{t.id for t in r.tests if t.outcome == "skipped" and not t.expected} for r in ran.values()]
        for nodeid in sorted(set.intersection(*skipped)) if skipped else []:
            playing.tell(Lost("matrix", nodeid, "skipped everywhere: no kernel of the default matrix can run it"))

    def _registered(self) -> runs.Run:
        if self._run is None:
            names = [row.name for row in self._rows]
            self._run = self._stack.enter_context(runs.start(names, sys.argv))
        return self._run

    def _backend(self, row: matrix.Row) -> Backend:
        name = HOST if row.name == HOST else backends.name_for(row, self._config.backend)
        if name not in self._backends:
            accel = self._pytest.getoption("--kernel-accel")
            made = backends.get(name, config=self._config, accel=accel, progress=self._notice)
            minutes = self._pytest.getoption("--kernel-keep")
            if minutes is not None and name in backends.KEPT:
                from kmt.backends.kept import kept

                made = kept(made, self._config, accel, minutes)
            self._backends[name] = made
        return self._backends[name]

    def _notice(self, label: str, done: int, total: int) -> None:
        # Called in whichever thread makes the image first; all kernels wait for it.
        for row in self._rows:
            self._events.put(Progress(row.name, "image", label))

    def _plan(self, files: Sequence[str] = ()) -> Plan:
        """What all guests share; ``files`` are those whose tests they will run."""
        # A file of which only some tests were named was not collected whole.
        partly = {
            Path(arg.split("::", 1)[0]).absolute().relative_to(self._config.root).as_posix()
            for arg in self._pytest.args
            if "::" in arg and Path(arg.split("::", 1)[0]).absolute().is_relative_to(self._config.root)
        }
        return Plan(
            root=self._config.root,
            inifile=str(self._pytest.inipath or ""),
            options=(*travelling_options(self._pytest), *self._config.guest_options),
            env=environment(self._config.env),
            strict_skips=self._config.strict_skips,
            known={path: frozenset(ids) for path, ids in self._known.items() if path not in partly},
            coverage=coverage(self._pytest),
            modules=loaded(self._config.root, files, self._known, self._pytest),
        )

    def pytest_kmt_progress(self, phase: str) -> None:
        """While guests are at work there is time for what the end needs: rich is slow to load."""
        if phase == "testing":
            from kmt.report import summary  # noqa: F401

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """The run's exit status, where infrastructure or a build decides it; what it leaves."""
        self._session = session
        try:
            if self._part and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
                self.results = [KernelResult(row.name) for row in self._rows]
                if self._elsewhere:  # more parts than modules: these kernels have nothing to run in it
                    session.exitstatus = exitstatus = 0
            if self.results:
                session.exitstatus = exit_status(self.results, pytest_status=int(exitstatus), strict=self._strict)
                self._pytest.hook.pytest_kmt_finished(results=self.results)
                part, seconds = str(self._part or ""), monotonic() - self._begin
                made = Made(self._started, seconds, int(session.exitstatus), part)
                self._left = leave(self._pytest, self._registered(), self.results, made)
                self._wrong(self._left.wrong)
        finally:
            if self._collector is not None:
                self._collector.close()
            if self._run is not None:
                self._run.finish(int(session.exitstatus))
            self._stack.close()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """What people should know of how it ran, then the table."""
        for notice in {b.notice: None for b in self._backends.values() if b.notice}:
            terminalreporter.write_line(f"kmt: {visible(notice)}", yellow=True)
        if not self.results:
            return
        from kmt.report import summary

        summary.write(terminalreporter, self.results, self._config.columns)
        self._left.tell(terminalreporter)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Complete the JUnit file that pytest has written by now."""
        if wrong := complete(self._pytest, self.results, self._strict):
            self._wrong([wrong])
            print(f"kmt: {wrong}", file=sys.stderr)

    def _wrong(self, said: Sequence[str]) -> None:
        if said and self._session is not None:
            self._session.exitstatus = gravest([int(self._session.exitstatus), EXIT_USAGE])


def _import_failed(report: pytest.CollectReport) -> bool:
    call = report.__dict__.get("call")
    raised = call.excinfo.value if call is not None and call.excinfo else None
    return isinstance(raised, ImportError) or isinstance(getattr(raised, "__cause__", None), ImportError)
