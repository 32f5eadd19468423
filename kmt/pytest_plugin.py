"""``pytest --kernel``: the entry point by which people meet this project.

Laws: without ``--kernel`` nothing changes but for the markers and the fixture ``kernel``; with it, each test that
may run in guests becomes one item a kernel, everything else is deselected and counted, and pytest's own options
go on working over all of them. In a guest this module does nothing (``guest/plugin.py`` and ``guest/reporter.py``
speak there).
"""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Generator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from kmt import backends, config, hooks, matrix, runs
from kmt.backends.base import Backend, Machine
from kmt.errors import KmtError
from kmt.events import Event, Progress
from kmt.guest.plugin import SharedPlugin
from kmt.guest_options import travelling_options
from kmt.guest_session import Plan, environment
from kmt.host_session import HostSession
from kmt.items import KernelItem, expand, runs_in_guests
from kmt.kernel_run import Job
from kmt.report import json as json_report
from kmt.report import junit, summary
from kmt.results import KernelResult, exit_status
from kmt.run import Running, group_by_machine

IN_GUEST = "KMT_GUEST"
HOST = "host"
"""The word for this machine's own kernel, and the backend that runs it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The group "kernel matrix"."""
    group = parser.getgroup("kernel matrix", "run tests inside real kernels (kernel-matrix)")
    group.addoption(
        "--kernel",
        action="append",
        default=[],
        metavar="NAME",
        help="run each test in this kernel: 5.10, a comma list, a glob, all, default, newest, a path to an image, "
        "or host (this machine's own kernel, no VM); repeatable",
    )
    group.addoption("--kernel-backend", metavar="NAME", help="what runs the kernels (default: qemu)")
    group.addoption("--kernel-jobs", type=int, metavar="N", help="guests at once (default: by cores and memory)")
    group.addoption(
        "--kernel-accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="hardware virtualisation or emulation (default: auto, by really booting a guest once)",
    )
    group.addoption(
        "--kernel-timeout",
        type=int,
        metavar="SECONDS",
        help="what one kernel may take with hardware virtualisation; scaled under emulation (default: 600)",
    )
    group.addoption("--kernel-json", metavar="FILE", help="write the results of every kernel as JSON")
    group.addoption(
        "--kernel-strict", action="store_true", help="a kernel that the archive no longer has fails the run"
    )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Make ``pytest_kmt_progress`` and ``pytest_kmt_finished`` known."""
    pluginmanager.add_hookspecs(hooks)


def pytest_configure(config: pytest.Config) -> None:
    """Register what is needed: the shared part always, the matrix where kernels are asked for."""
    if IN_GUEST in os.environ:
        return
    asked = config.getoption("--kernel")
    if not asked:
        config.pluginmanager.register(SharedPlugin({"name": "host"}, strict_skips=False), "kmt-shared")
        return
    config.pluginmanager.register(SharedPlugin({"name": "host"}, strict_skips=False), "kmt-shared")
    _refuse(config)
    try:
        config.pluginmanager.register(MatrixPlugin(config, asked), "kmt-matrix")
    except KmtError as error:
        raise pytest.UsageError(f"kmt: {error}") from None


def _refuse(config: pytest.Config) -> None:
    if config.getoption("usepdb", default=False) or config.getoption("trace", default=False):
        raise pytest.UsageError("kmt: --pdb cannot reach into guests; use invoke kmt.shell KERNEL, or --kernel host")
    if config.getoption("numprocesses", default=None) or config.getoption("tx", default=None):
        raise pytest.UsageError("kmt: -n (xdist) does not go with --kernel; kernels run at once by --kernel-jobs N")


def settings(config_: pytest.Config) -> config.Config:
    """``[tool.kmt]`` with the command line's words on top."""
    said = config.load(config_.rootpath)
    changes: dict[str, Any] = {
        key: config_.getoption(f"--kernel-{key}")
        for key in ("backend", "jobs", "timeout")
        if config_.getoption(f"--kernel-{key}") is not None
    }
    return replace(said, **changes)


def select(catalogue: Path | None, asked: list[str]) -> list[matrix.Row]:
    """The rows of the catalogue that are meant; ``host`` is a row of its own. Raises ConfigError."""
    words = [w.strip() for pattern in asked for w in pattern.split(",")]
    rows = [matrix.Row(HOST)] if HOST in words else []
    others = [w for w in words if w != HOST]
    return rows + (matrix.load(catalogue).select(others) if others else [])


class MatrixPlugin:
    """A session with ``--kernel``."""

    def __init__(self, pytest_config: pytest.Config, asked: list[str]) -> None:
        self._pytest = pytest_config
        self._config = settings(pytest_config)
        catalogue = self._config.root / self._config.catalogue if self._config.catalogue else None
        words = {w.strip().removeprefix("v") for pattern in asked for w in pattern.split(",")}
        self._rows = select(catalogue, asked)
        strict = pytest_config.getoption("--kernel-strict")
        self._strict = frozenset(r.name for r in self._rows if strict or r.name in words)
        self._known: dict[str, set[str]] = {}
        self._events: queue.Queue[Event] = queue.Queue()
        self.results: list[KernelResult] = []
        self._begin = monotonic()
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
        if report.passed and isinstance(report.result, list):
            names = [row.name for row in self._rows]
            made: list[pytest.Item | pytest.Collector] = []
            for node in report.result:
                if not isinstance(node, pytest.Item):
                    made.append(node)
                    continue
                self._known.setdefault(node.nodeid.split("::", 1)[0], set()).add(node.nodeid)
                eligible = runs_in_guests(node, self._config.guest, self._config.root)
                made.extend(expand(node, names) if eligible else [node])
            report.result = made
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what may not run in guests; it is counted as deselected."""
        left = [item for item in items if not isinstance(item, KernelItem)]
        if left:
            config.hook.pytest_deselected(items=left)
            items[:] = [item for item in items if isinstance(item, KernelItem)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the items in their guests."""
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            return None  # pytest's own loop says it
        if session.config.option.collectonly or not session.items:
            return True
        try:
            self._run(session)
        except KmtError as error:
            pytest.exit(f"kmt: {error}", returncode=error.exit_status)
        return True

    def _run(self, session: pytest.Session) -> None:
        items = [item for item in session.items if isinstance(item, KernelItem)]
        jobs = self._jobs(items)
        properties = {item.kmt_id for item in items if item.is_property}
        playing = HostSession(session, items)
        with runs.start([job.row.name for job in jobs], sys.argv) as run:
            running = Running(
                jobs,
                config=self._config,
                plan=self._plan(),
                run=run,
                is_property=properties.__contains__,
                on_result=playing.know,
                events=self._events,
            )
            try:
                with running:
                    playing.play(running)
            finally:
                self.results = [playing.results[j.row.name] for j in jobs if j.row.name in playing.results]
                run.finish(self._status(int(session.testsfailed > 0)))

    def _jobs(self, items: list[KernelItem]) -> list[Job]:
        accel = self._pytest.getoption("--kernel-accel")
        jobs = []
        made: dict[str, Backend] = {}
        for row in self._rows:
            name = HOST if row.name == HOST else self._config.backend
            if name not in made:
                made[name] = backends.get(name, config=self._config, accel=accel, progress=self._notice)
            backend = made[name]
            needs: dict[str, Machine] = {
                item.kmt_id: item.machine(self._config.memory) for item in items if item.kmt_kernel == row.name
            }
            if needs:
                jobs.append(Job(row, backend, row.name in self._strict, group_by_machine(needs)))
        return jobs

    def _notice(self, label: str, done: int, total: int) -> None:
        for row in self._rows:
            self._events.put(Progress(row.name, "image", label))

    def _plan(self) -> Plan:
        named = {
            str(Path(arg.split("::", 1)[0]).absolute().relative_to(self._config.root))
            for arg in self._pytest.args
            if "::" in arg and Path(arg.split("::", 1)[0]).absolute().is_relative_to(self._config.root)
        }
        return Plan(
            root=self._config.root,
            inifile=str(self._pytest.inipath or ""),
            options=(*travelling_options(self._pytest), *self._config.guest_options),
            env=environment(self._config.env),
            strict_skips=self._config.strict_skips,
            known={path: frozenset(ids) for path, ids in self._known.items() if path not in named},
        )

    def _status(self, status: int) -> int:
        return exit_status(self.results, pytest_status=status, strict=self._strict)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """The run's exit status, where infrastructure or a build decides it; the JSON file."""
        if not self.results:
            return
        session.exitstatus = self._status(int(exitstatus))
        self._pytest.hook.pytest_kmt_finished(results=self.results)
        target = self._pytest.getoption("--kernel-json")
        if target:
            seconds = monotonic() - self._begin
            json_report.write(
                Path(target), self.results, exit_status=int(session.exitstatus), seconds=seconds, started=self._started
            )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table."""
        summary.write(terminalreporter, self.results, self._config.columns)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Complete the JUnit file that pytest has written by now."""
        target = self._pytest.getoption("xmlpath", default=None)
        if target and self.results:
            junit.complete(Path(target), self.results, strict=bool(self._strict))
