"""One kernel's way through a run: fetched and built first, then its units, each in a guest of its own.

Laws: every wanted test ends as reported or as ``Lost``, unless the run was stopped; whatever goes wrong ends up in the
kernel's result, never outside; the last event is the kernel's ``Finished``; a kernel that cannot be had is simulated
only where its job says by what, and then runs nothing but the tests that can do with that. A unit is ``unit.py``'s, the
accounts are ``account.py``'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from kmt.backends.base import Backend, Machine
from kmt.errors import ArchiveError, ImageError, KmtError, UnavailableError, VmNeverStartedError
from kmt.kernel import Kernel
from kmt.run import pristine
from kmt.run.account import Account, InternalError
from kmt.run.budget import Scheduler, Task
from kmt.run.events import Progress
from kmt.run.link import CancelledError
from kmt.run.shared import Job, Shared, fetch
from kmt.run.spread import Unit
from kmt.run.unit import Guests, UnitRun

SIMULATED_MIB = 256
"""What a process with a simulated kernel counts for in the budget; it has no machine."""
NOT_PRISTINE = (
    "this test asks for a kernel that nobody has touched, and the backend {} has none: "
    "it runs there before and after us; use another backend"
)


class KernelRun:
    """One job; ``number`` is its place among the run's. Its tasks never raise."""

    def __init__(self, number: int, job: Job, shared: Shared, scheduler: Scheduler) -> None:
        self._number, self._job = number, job
        self._shared, self._scheduler = shared, scheduler
        self._backend, self._units = job.backend, job.units
        self._guests: Guests | None = None
        self._open = 0
        self._begin = time.monotonic()
        self._mutex = threading.Lock()
        self.account = Account(job, shared)

    def submit(self) -> None:
        """Have it run; what follows from it is submitted as it goes."""
        self._add(Task(self._prepare), 0)

    def _add(self, task: Task, place: int) -> None:
        def counted() -> None:
            try:
                task.work()
            finally:
                self._over()

        with self._mutex:
            self._open += 1
        self._scheduler.submit((self._number, place), Task(counted, task.cpus, task.memory_mib))

    def _over(self) -> None:
        """A task is over; after the last one what failed runs again, and when nothing does the accounts are closed."""
        while self._last():
            with self._mutex:
                self._open += 1  # ours, so that what ends while more is submitted is not taken for the last
            if not self._again():
                self.account.close(time.monotonic() - self._begin)
                return

    def _last(self) -> bool:
        with self._mutex:
            self._open -= 1
            return self._open == 0

    def _again(self) -> bool:
        """Submit what failed once more, each machine's tests in a guest of their own; whether there is any."""
        if self._guests is None or self._shared.cancel.is_set():
            return False
        due = frozenset(self.account.again())
        backend = self._backend.pristine
        guests = self._guests.of(backend) if backend is not None else self._guests
        for unit in self._units:
            ids = tuple(nodeid for nodeid in unit.ids if nodeid in due)
            if ids:
                again = replace(unit, ids=ids)
                self._submit(again, UnitRun(again, guests))
        return bool(due)

    def _prepare(self) -> None:
        self._begin = time.monotonic()
        try:
            kernel = self._kernel()
        except KmtError as error:
            self.account.misfortune(error, self._job.ids)
        except Exception as error:  # a bug of ours must not take the other kernels with it
            self.account.misfortune(InternalError.of(error), self._job.ids)
        else:
            self._guests = Guests(kernel, self._job, self._shared, self.account, self._backend)
            if self._backend.simulated:
                self._units = self._simulable()
            self._plan(self._guests)

    def _kernel(self) -> Kernel:
        """Ready to be started; where it cannot be had, and may be simulated, the simulated one."""
        job = self._job
        if job.stands_for and not job.simulable:
            raise UnavailableError(job.stands_for, hint="and no test of these can run on a simulated kernel")
        try:
            return self._phases(job.backend)
        except (ArchiveError, ImageError, VmNeverStartedError) as error:
            if job.instead is None or not job.simulable:
                raise
            self._backend, why = job.instead, str(error)
        self.account.simulate(self._backend, why)
        return self._phases(self._backend)

    def _simulable(self) -> tuple[Unit, ...]:
        """The units without the tests that need a real kernel."""
        fit = self._job.simulable
        self.account.leave_out(nodeid for nodeid in self._job.ids if nodeid not in fit)
        some = (replace(unit, ids=tuple(i for i in unit.ids if i in fit)) for unit in self._units)
        return tuple(unit for unit in some if unit.ids)

    def _plan(self, guests: Guests) -> None:
        """Submit the units, shared guests first: there is more in them."""
        fresh: dict[Machine, list[Unit]] = {}
        for unit in self._units:
            if unit.fresh:
                fresh.setdefault(unit.machine, []).append(unit)
            else:
                self._submit(unit, UnitRun(unit, guests))
        backend = self._backend.pristine
        for machine, units in fresh.items():
            if backend is None:
                why = NOT_PRISTINE.format(self._backend.name)
                self.account.refuse([nodeid for unit in units for nodeid in unit.ids], why)
                continue
            untouched = guests.of(backend)
            if len(units) >= pristine.WORTH and backend.checkpoints:
                self._add(self._task(machine, pristine.Freezing(units, untouched, self._submit).run), 1)
            else:
                for unit in units:
                    self._submit(unit, UnitRun(unit, untouched))

    def _submit(self, unit: Unit, run: UnitRun, then: Callable[[], None] = lambda: None) -> None:
        def work() -> None:
            run.run()
            then()

        self._add(self._task(unit.machine, work), 1)

    def _task(self, machine: Machine, work: Callable[[], None]) -> Task:
        if self._backend.simulated:
            return Task(work, 1, SIMULATED_MIB)
        return Task.keeping(machine, work, emulated=self._backend.deadline_factor > 1)

    def _phases(self, backend: Backend) -> Kernel:
        account = self.account
        account.phase("fetching")
        kernel = fetch(self._job.row, backend, self._shared.config, self._fetching)
        account.result.release = kernel.release
        account.phase("building")
        self._shared.programs(kernel)
        account.phase("image")
        for machine in dict.fromkeys(unit.machine for unit in self._job.units):
            backend.prepare(kernel, machine)
        return kernel

    def _fetching(self, label: str, done: int, total: int) -> None:
        if self._shared.cancel.is_set():
            raise CancelledError("stopped")
        name = self._job.row.name
        self._shared.emit(Progress(name, "fetching", f"{label} {done >> 20}/{total >> 20} MiB"))
