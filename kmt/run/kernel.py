"""One kernel through its phases: fetch, build, boot, project in, tests, artefacts out; under one deadline.

Laws: every wanted test ends as reported or as ``Lost``; whatever goes wrong ends up in the kernel's result, never
outside; the last event is the kernel's ``Finished``.
"""

from __future__ import annotations

import platform
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kmt import archive
from kmt.backends.base import Backend, Machine, Vm
from kmt.config import Config
from kmt.deadline import Deadline
from kmt.errors import AgentError, KmtError, VmError
from kmt.kernel import Kernel
from kmt.matrix import Row
from kmt.results import KernelResult, Outcome
from kmt.run.events import Event, Finished, Lost, Progress, Report
from kmt.run.examples import Examples
from kmt.run.guest import ARTIFACTS_DIR, Plan, Tally, run_tests, send_files
from kmt.run.ledger import Ledger
from kmt.run.link import CancelledError, Link
from kmt.run.tree import Tree, survey
from kmt.runs import Run


@dataclass(frozen=True)
class Job:
    """What one kernel has to run: groups of test ids by the machine that they ask for.

    ``strict``: that its row is unavailable is an error, not a skip.
    """

    row: Row
    backend: Backend
    strict: bool
    groups: tuple[tuple[Machine, tuple[str, ...]], ...]


class Shared:
    """What all kernels of a run have in common; what is made once is made by whoever needs it first."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        run: Run,
        examples: Examples,
        emit: Callable[[Event], None],
        is_property: Callable[[str], bool],
    ) -> None:
        self.config, self.plan, self.run = config, plan, run
        self.examples, self.emit, self.is_property = examples, emit, is_property
        self.cancel = threading.Event()
        self._once = threading.Lock()
        self._objects: list[Path | KmtError] = []
        self._tree: Tree | None = None

    def objects(self) -> Path | None:
        """The project's eBPF objects, built once; a failure is every kernel's. None without sources."""
        if not self.config.sources:
            return None
        with self._once:
            if not self._objects:
                from kmt import build

                try:
                    self._objects.append(build.build(self.config).dir)
                except KmtError as error:
                    self._objects.append(error)
        made = self._objects[0]
        if isinstance(made, KmtError):
            raise made
        return made

    def tree(self) -> Tree:
        """The project's files that travel, surveyed once."""
        with self._once:
            self._tree = self._tree or survey(self.plan.root, self.config.file_limit)
        return self._tree


def fetch(row: Row, backend: Backend, config: Config, progress: archive.Progress) -> Kernel:
    """The row's kernel; for backends that share this machine's files it is the running one: nothing to fetch."""
    if backend.shares_files:
        return Kernel(row.name, platform.release(), Path("/"), None, None, (), None, digest="", origin="this machine")
    return archive.prepare(row, config=config, progress=progress)


class KernelRun:
    """One job. ``run()`` never raises."""

    def __init__(self, job: Job, shared: Shared) -> None:
        self._job = job
        self._shared = shared
        self._name = job.row.name
        self._directory = shared.run.kernel_dir(self._name)
        self._done: set[str] = set()
        self.result = KernelResult(self._name, backend=job.backend.name, simulated=job.backend.simulated)
        self._ledger = Ledger(self.result)

    def run(self) -> None:
        """All phases, then the accounts."""
        begin = time.monotonic()
        try:
            self._phases()
        except KmtError as error:
            self.result.outcome = Outcome(error.outcome)
            self.result.reason, self.result.hint = error.message, error.hint
        except Exception as error:  # a bug of ours must not take the other kernels with it
            self.result.outcome = Outcome.LOST
            self.result.reason = f"internal error: {type(error).__name__}: {error}"
            self.result.hint = traceback.format_exc()
        self.result.seconds = round(time.monotonic() - begin, 3)
        for _, ids in self._job.groups:
            for left in (i for i in ids if i not in self._done):
                tolerated = self.result.outcome is Outcome.UNAVAILABLE and not self._job.strict
                why = self.result.reason or "the run ended before it"
                self._emit(Lost(self._name, left, why, "skipped" if tolerated else "error"))
        self._shared.examples.finished(self._name)
        self.result.settle()
        self._shared.run.update(self._name, phase="done", outcome=self.result.outcome)
        self._shared.emit(Finished(self._name, self.result))

    def _phases(self) -> None:
        kernel = self._fetch()
        self.result.release = kernel.release
        self._phase("building")
        self._shared.objects()
        self._phase("image")
        for machine, _ in self._job.groups:
            self._job.backend.prepare(kernel, machine)
        deadline = Deadline(self._shared.config.timeout * self._job.backend.deadline_factor)
        for machine, ids in self._job.groups:
            self._guest(kernel, machine, Tally(list(ids)), deadline)

    def _fetch(self) -> Kernel:
        self._phase("fetching")

        def progress(label: str, done: int, total: int) -> None:
            if self._shared.cancel.is_set():
                raise CancelledError("stopped")
            self._shared.emit(Progress(self._name, "fetching", f"{label} {done >> 20}/{total >> 20} MiB"))

        return fetch(self._job.row, self._job.backend, self._shared.config, progress)

    def _guest(self, kernel: Kernel, machine: Machine, tally: Tally, deadline: Deadline) -> None:
        backend = self._job.backend
        self._phase("starting")
        begin = time.monotonic()
        with backend.launch(kernel, machine, self._directory, deadline) as vm:
            self.result.accelerator, self.result.console = vm.accelerator, str(vm.console)
            self._shared.run.update(self._name, console=vm.console, vm_pid=vm.pid)
            self._phase("booting")
            link = Link(vm, deadline, factor=backend.deadline_factor, cancel=self._shared.cancel)
            link.hello()
            self.result.boot_seconds = self.result.boot_seconds or round(time.monotonic() - begin, 3)
            self._phase("ready")
            self._tests(vm, link, tally)
            try:
                link.artifacts(self._directory / "artifacts")
                link.goodbye()
            except (AgentError, VmError) as error:
                # The verdicts are in; what could not be brought home is worth a remark, not the kernel's outcome.
                self.result.left_out.append(f"artefacts: {error}")

    def _tests(self, vm: Vm, link: Link, tally: Tally) -> None:
        shared, backend = self._shared, self._job.backend
        tree = None if backend.shares_files else shared.tree()
        self.result.left_out = list(tree.left_out) if tree else []
        bpf_dir = send_files(link, tree, shared.objects())
        self._phase("testing", f"{len(tally.wanted)} tests")
        said = {"name": self._name, "accelerator": vm.accelerator, "simulated": backend.simulated}
        places = {
            "bpf_dir": bpf_dir,
            "artifacts_dir": str(self._directory / "guest") if backend.shares_files else ARTIFACTS_DIR,
        }
        run_tests(link, shared.plan, tally, said, shared.examples, self._emit, **places)

    def _emit(self, event: Event) -> None:
        """Enter an event in the accounts and pass it on."""
        if isinstance(event, Lost):
            self._done.add(event.id)
            self._ledger.lost(event.id, event.reason, event.outcome)
        elif isinstance(event, Report):
            nodeid = str(event.data.get("nodeid"))
            self._ledger.report(event.data, is_property=self._shared.is_property(nodeid))
            if event.data.get("when") == "teardown":
                self._done.add(nodeid)
        self._shared.emit(event)

    def _phase(self, phase: str, detail: str = "") -> None:
        if self._shared.cancel.is_set():
            raise CancelledError("stopped")
        self._shared.run.update(self._name, phase=phase, detail=detail)
        self._shared.emit(Progress(self._name, phase, detail))
