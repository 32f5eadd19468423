"""Tests that want a kernel that nobody has touched: each unit of them gets a guest that is thrown away behind it.

Where the backend has checkpoints, one guest takes the project, collects all of those tests and is frozen; each unit
then goes on from there, several at once. Where it has none, or freezing fails, each unit starts a guest of its own:
the same tests, later. What modules do to the kernel while they are imported is older than the checkpoint; what tests
and their fixtures do never reaches another unit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from kmt.backends.base import Checkpoint
from kmt.errors import KmtError
from kmt.guest.wire import Kind
from kmt.run.account import InternalError
from kmt.run.events import Event
from kmt.run.guest import Tally, begin, follow
from kmt.run.link import CancelledError
from kmt.run.spread import Unit
from kmt.run.unit import Guests, UnitRun

WORTH = 2
"""Units for which freezing pays; a single one is alone in its guest anyway."""


Submit = Callable[[Unit, UnitRun, Callable[[], None]], None]
"""Has a unit run in its turn, and calls the function when it is over."""


class Freezing:
    """Makes the checkpoint for units of one machine, then ``submit``s their runs. ``run()`` never raises."""

    def __init__(self, units: Sequence[Unit], guests: Guests, submit: Submit) -> None:
        self._units, self._guests, self._submit = list(units), guests, submit
        self._machine = units[0].machine
        self._checkpoint: Checkpoint | None = None
        self._left = len(units)
        self._mutex = threading.Lock()

    def run(self) -> None:
        """Freeze, or find out that it cannot be done; the units run either way."""
        account = self._guests.account
        try:
            self._checkpoint = self._freeze()
        except CancelledError:
            pass  # the units meet it too
        except KmtError as error:
            account.remark(f"no checkpoint, so each pristine test started a guest: {error}")
        except Exception as error:
            account.remark(f"no checkpoint, so each pristine test started a guest: {InternalError.of(error)}")
        self._left = len(self._units)
        for unit in self._units:
            self._submit(unit, self._unit_run(unit), self._done)

    def _unit_run(self, unit: Unit) -> UnitRun:
        checkpoint, backend = self._checkpoint, self._guests.backend
        if checkpoint is None:
            return UnitRun(unit, self._guests)
        return UnitRun(unit, self._guests, lambda directory, deadline: backend.restore(checkpoint, directory, deadline))

    def _done(self) -> None:
        """A unit is over; the last one takes the checkpoint with it."""
        with self._mutex:
            self._left -= 1
            if not self._left and self._checkpoint is not None:
                self._checkpoint.close()

    def _freeze(self) -> Checkpoint | None:
        guests, account, shared = self._guests, self._guests.account, self._guests.shared
        account.phase("starting")
        directory = account.directory / f"checkpoint-{self._machine.cpus}"
        directory.mkdir(exist_ok=True)
        deadline = guests.deadline()
        backend = guests.backend
        with backend.launch(guests.kernel, self._machine, directory, deadline, checkpointable=True) as vm:
            if not vm.restored:
                return None
            link = guests.link(vm, deadline)
            places = guests.bring(link, directory)
            ids = [nodeid for unit in self._units for nodeid in unit.ids]
            tally, heard = Tally(ids), list[Event]()
            begin(link, shared.plan, ids, guests.said(vm), places, pause=True)
            last = follow(link, shared.plan, tally, account.name, shared.examples, heard.append, until=Kind.COLLECTED)
            if last.kind is Kind.EXIT:  # a module that ends its session must not take the others' tests with it
                return None
            for event in heard:
                account.emit(event)
            self._units = _without(self._units, tally.done)
            return backend.checkpoint(vm, deadline) if self._units else None


def _without(units: Sequence[Unit], done: set[str]) -> list[Unit]:
    """The units without tests that are accounted for already: the guest could not collect them."""
    rest = [replace(unit, ids=tuple(i for i in unit.ids if i not in done)) for unit in units]
    return [unit for unit in rest if unit.ids]
