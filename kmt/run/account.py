"""The accounts of one kernel, kept by all of its guests at once: its result, what is done, how far it is.

Laws: a test is entered once, however many guests speak of it; a guest that dies costs only its own tests, and the
kernel's outcome says so; of several misfortunes the gravest counts; a kernel that was only cut off is ``stopped``.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kmt.backends.base import Backend, Vm
from kmt.errors import KmtError
from kmt.hooks import PHASES
from kmt.matrix import SIMULATED
from kmt.results import GRAVITY, NOT_APPLICABLE, KernelResult, Outcome
from kmt.run import artifacts
from kmt.run.events import Event, Finished, Lost, Progress, Report
from kmt.run.ledger import Ledger
from kmt.run.link import CancelledError
from kmt.run.retries import Retries
from kmt.run.shared import Job, Shared

NEEDS_A_REAL_ONE = "it needs a real kernel: it does not take the fixture kernel, or is marked real"


class InternalError(KmtError):
    """A bug of ours, as the kernel that met it tells of it."""

    @classmethod
    def of(cls, error: Exception) -> InternalError:
        """Call it where the error is being handled."""
        return cls(f"internal error: {type(error).__name__}: {error}", hint=traceback.format_exc())


@dataclass(frozen=True)
class Misfortune:
    """Why a guest did not get done; ``number`` is the guest's, 0 where there was none."""

    number: int
    outcome: Outcome
    reason: str
    hint: str
    console: str
    error: str = ""
    ids: frozenset[str] = frozenset()
    """Its tests that had not spoken by then."""


class Account:
    """Thread-safe: each guest's thread enters what happens in it."""

    def __init__(self, job: Job, shared: Shared) -> None:
        self._job, self._shared = job, shared
        self.name = job.row.name
        self.directory = shared.run.kernel_dir(self.name)
        self.result = KernelResult(
            self.name, backend=job.backend.name, simulated=job.backend.simulated, stands_for=job.stands_for
        )
        self._ledger = Ledger(self.result)
        self._retries = Retries(shared.config.retries)
        self._done: set[str] = set()
        self._misfortunes: list[Misfortune] = []
        self._phase = -1
        self._mutex = threading.RLock()

    def emit(self, event: Event) -> None:
        """Enter an event and pass it on."""
        with self._mutex:
            counts: list[Report | Lost] = []
            if isinstance(event, Report):
                data = self._shared.expected.apply(event.data, self._release())
                counts = self._retries.report(replace(event, data=data))
            elif isinstance(event, Lost):
                if event.id in self._done:  # several guests collect the same file
                    return
                counts = self._retries.lost(event)
            else:
                self._shared.emit(event)
            for one in counts:
                self._enter(one)

    def _enter(self, event: Report | Lost) -> None:
        if isinstance(event, Lost) and event.outcome == NOT_APPLICABLE:
            self._done.add(event.id)
            self.result.not_applicable[event.id] = event.reason
        elif isinstance(event, Lost):
            self._done.add(event.id)
            before = self._retries.before(event.id)
            self._ledger.lost(event.id, event.reason, event.outcome, retries=before, cause=event.cause)
        else:
            nodeid = str(event.data.get("nodeid"))
            entry = self._shared.expected.of(nodeid, self._release())
            self._ledger.report(
                event.data,
                is_property=self._shared.is_property(nodeid),
                retries=self._retries.before(nodeid),
                expected=self._shared.expected.said(entry) if entry else "",
            )
            if event.data.get("when") == "teardown":
                self._done.add(nodeid)
        self._shared.emit(event)

    def again(self) -> tuple[str, ...]:
        """The tests that failed and are to run once more, in guests of their own."""
        with self._mutex:
            return self._retries.due()

    def _release(self) -> str:
        return self.result.release or self._job.row.series

    def phase(self, phase: str, detail: str = "") -> None:
        """The kernel got that far; what an earlier guest of it has passed is not said again."""
        if self._shared.cancel.is_set():
            raise CancelledError("stopped")
        with self._mutex:
            if PHASES.index(phase) < self._phase:
                return
            self._phase = PHASES.index(phase)
            self._shared.run.update(self.name, phase=phase, detail=detail)
            self._shared.emit(Progress(self.name, phase, detail))

    def new_guest(self) -> tuple[int, Path]:
        """The next guest's number and its own directory; the first one's is the kernel's."""
        with self._mutex:
            self.result.guests += 1
            number = self.result.guests
        directory = self.directory if number == 1 else self.directory / f"guest-{number}"
        directory.mkdir(exist_ok=True)
        return number, directory

    def started(self, number: int, vm: Vm) -> None:
        """A guest's machine runs."""
        with self._mutex:
            self.result.accelerator = vm.accelerator
            self.result.restored += vm.restored
            if number == 1:
                self.result.console = str(vm.console)
            self._shared.run.update(self.name, console=vm.console, vm_pid=vm.pid)

    def answered(self, seconds: float) -> None:
        """A guest's agent spoke, so long after its start; what is simulated does not boot."""
        with self._mutex:
            if not self.result.simulated:
                self.result.boot_seconds = self.result.boot_seconds or round(seconds, 3)

    def used(self, mib: float | None) -> None:
        """A guest's machine has that much memory for itself; None: nobody could tell."""
        with self._mutex:
            self.result.private_mib += [] if mib is None else [mib]

    def remark(self, *words: str) -> None:
        """Something that people should know and that changes no outcome."""
        with self._mutex:
            self.result.left_out += [word for word in words if word not in self.result.left_out]

    def keep(self, incoming: Path, number: int) -> None:
        """Put what a guest left among the kernel's artefacts."""
        with self._mutex:
            artifacts.keep(incoming, self.directory / "artifacts", number)

    def misfortune(self, error: KmtError, ids: Collection[str], *, number: int = 0, console: str = "") -> None:
        """A guest (or, with ``number`` 0, the kernel itself) will not get done; ``ids`` were its tests."""
        with self._mutex:
            met = Misfortune(number, Outcome(error.outcome), error.message, error.hint, console, type(error).__name__)
            left = [nodeid for nodeid in ids if nodeid not in self._done and not self._retries.holds(nodeid)]
            self._misfortunes.append(replace(met, ids=frozenset(left)))
        if met.outcome is Outcome.STOPPED:
            return
        tolerated = met.outcome is Outcome.UNAVAILABLE and not self._job.strict
        word, cause = "skipped" if tolerated else "error", met.outcome.value
        for nodeid in left:
            self.emit(Lost(self.name, nodeid, met.reason, word, again=number > 0, cause=cause))

    def simulate(self, backend: Backend, why: str) -> None:
        """The kernel cannot be had, for that reason: from here on it is a simulated one, in its name too."""
        with self._mutex:
            self.result.name = self.name + SIMULATED
            self.result.backend, self.result.simulated, self.result.stands_for = backend.name, True, why
        self.directory = self._shared.run.kernel_dir(self.result.name)

    def leave_out(self, ids: Iterable[str]) -> None:
        """Tests that need a real kernel, where there is none."""
        for nodeid in ids:
            self.emit(Lost(self.name, nodeid, NEEDS_A_REAL_ONE, NOT_APPLICABLE))

    def refuse(self, ids: Iterable[str], why: str) -> None:
        """Tests that cannot be run here at all; an error of theirs, none of the kernel's."""
        for nodeid in ids:
            self.emit(Lost(self.name, nodeid, why))

    def close(self, seconds: float) -> None:
        """Settle the outcome and say that the kernel is finished."""
        with self._mutex:
            result = self.result
            result.seconds = round(seconds, 3)
            over = frozenset(self._done)
            for held in self._retries.given_up():
                if _id(held) not in over:
                    self._enter(held)
            self._forgive()
            left = [nodeid for nodeid in self._job.ids if nodeid not in self._done]
            if self._stopped():
                result.not_run = len(left)
            else:
                for nodeid in left:
                    self.emit(Lost(self.name, nodeid, "the run ended before it", cause=""))
            self._judge()
            place = {nodeid: number for number, nodeid in enumerate(self._job.ids)}
            result.tests.sort(key=lambda test: (place.get(test.id, len(place)), test.id))
            result.settle()
        self._shared.examples.finished(self.name)
        self._shared.run.update(self.name, phase="done", outcome=result.outcome)
        self._shared.emit(Finished(self.name, result))

    def _stopped(self) -> bool:
        return any(met.outcome is Outcome.STOPPED for met in self._misfortunes)

    def _forgive(self) -> None:
        """A guest that was lost or fell silent is a remark, if all its tests ran again and spoke; a panic never is."""
        lost = {test.id for test in self.result.tests if test.lost}
        for met in list(self._misfortunes):
            made_good = met.number and met.ids and not met.ids & lost and met.ids <= self._done
            if made_good and met.outcome in (Outcome.HANG, Outcome.LOST):
                self._misfortunes.remove(met)
                self.result.recovered.append(f"guest {met.number}: {met.outcome.value}: {met.reason}")

    def _judge(self) -> None:
        if not self._misfortunes:
            return
        worst = min(self._misfortunes, key=lambda met: (GRAVITY.index(met.outcome), met.number))
        result = self.result
        result.outcome, result.reason, result.hint = worst.outcome, worst.reason, worst.hint
        result.console, result.error = worst.console or result.console, worst.error
        if worst.outcome is Outcome.STOPPED:
            result.reason = f"the run was stopped; tests that did not run: {result.not_run}"
        elif worst.number and result.guests > 1:
            result.reason = f"{_share(self._misfortunes, result.guests)}: {worst.reason}"


def _id(event: Report | Lost) -> str:
    return event.id if isinstance(event, Lost) else str(event.data.get("nodeid"))


def _share(met: Sequence[Misfortune], guests: int) -> str:
    dead = sum(one.number > 0 and one.outcome is not Outcome.STOPPED for one in met)
    return f"{dead} of {guests} guests"
