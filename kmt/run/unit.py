"""One guest from its start to goodbye: project in, tests, artefacts out; under a deadline of its own.

Law: whatever goes wrong ends up in the kernel's accounts, never outside. A guest starts by itself, or goes on where
a frozen one was stopped with the project in it and collected (``pristine.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kmt import proc
from kmt.backends import simulated
from kmt.backends.base import Backend, Vm
from kmt.deadline import Deadline
from kmt.errors import AgentError, KmtError, VmError
from kmt.guest.wire import Kind
from kmt.kernel import Kernel
from kmt.run.account import Account, InternalError
from kmt.run.guest import ARTIFACTS_DIR, Places, Tally, begin, follow, send_files
from kmt.run.link import Link
from kmt.run.shared import Job, Shared
from kmt.run.spread import Unit

MACHINES = ("kvm", "tcg")
"""Accelerators of machines whose memory is this host's."""
Thaw = Callable[[Path, Deadline], AbstractContextManager[Vm]]
"""Gives a guest that waits, with everything collected, to be told what to run."""


class Guests:
    """What the guests of one kernel have in common."""

    def __init__(self, kernel: Kernel, job: Job, shared: Shared, account: Account, backend: Backend) -> None:
        self.kernel, self.job, self.shared, self.account = kernel, job, shared, account
        self.backend = backend

    def of(self, backend: Backend) -> Guests:
        """The same, of another backend."""
        return Guests(self.kernel, self.job, self.shared, self.account, backend)

    def deadline(self) -> Deadline:
        """A new one, for one guest."""
        return Deadline(self.shared.config.timeout * self.backend.deadline_factor)

    def link(self, vm: Vm, deadline: Deadline) -> Link:
        """The link to a guest that has said hello."""
        link = Link(vm, deadline, factor=self.backend.deadline_factor, cancel=self.shared.cancel)
        link.hello()
        return link

    def said(self, vm: Vm) -> dict[str, Any]:
        """What tests are told of their kernel."""
        said = {"name": self.account.result.name, "accelerator": vm.accelerator, "simulated": self.backend.simulated}
        return said | simulated.told(self.kernel) if self.backend.simulated else said

    def bring(self, link: Link, directory: Path) -> Places:
        """Send the project and what was built."""
        tree = None if self.backend.shares_files else self.shared.tree()
        self.account.remark(*(tree.left_out if tree else ()))
        bytecode, tails = self.shared.bytecode, link.said.get("bytecode")
        compiled = bytecode.ready(tails, tree.paths) if tree else {}
        bpf = send_files(link, tree, self.shared.programs(self.kernel), compiled)
        # Where tests of earlier runs have been, or others than us, what is said is not to reach other guests.
        ours = not link.stays and self.backend.pristine is not None
        if tree and ours and (missing := bytecode.claim(tails)):
            bytecode.keep(tails, link.compiled(link.inside(tree.root), missing))
        artifacts = str(directory / "guest") if self.backend.shares_files else link.inside(ARTIFACTS_DIR)
        return Places(link.inside(""), bpf, artifacts)


class UnitRun:
    """One unit of a kernel's work. ``run()`` never raises; call it from the thread that is to keep the guest."""

    def __init__(self, unit: Unit, guests: Guests, thaw: Thaw | None = None) -> None:
        self._unit, self._guests, self._thaw = unit, guests, thaw
        self._account = guests.account
        self._number = 0
        self._console = ""

    def run(self) -> None:
        """All of it; what was not done is lost for a reason."""
        try:
            self._guest()
        except KmtError as error:
            self._over(error)
        except Exception as error:  # a bug of ours must not take the other guests with it
            self._over(InternalError.of(error))

    def _over(self, error: KmtError) -> None:
        self._account.misfortune(error, self._unit.ids, number=self._number, console=self._console)

    def _guest(self) -> None:
        account, guests = self._account, self._guests
        account.phase("starting")
        self._number, directory = account.new_guest()
        deadline = guests.deadline()
        begun = time.monotonic()
        with self._start(directory, deadline) as vm:
            self._console = str(vm.console)
            account.started(self._number, vm)
            account.phase("booting")
            link = guests.link(vm, deadline)
            account.answered(time.monotonic() - begun)
            account.phase("ready")
            self._tests(vm, link, directory)
            if vm.accelerator in MACHINES:
                account.used(proc.private_mib(vm.pid))
            self._goodbye(link, directory)

    def _start(self, directory: Path, deadline: Deadline) -> AbstractContextManager[Vm]:
        if self._thaw is not None:
            return self._thaw(directory, deadline)
        return self._guests.backend.launch(self._guests.kernel, self._unit.machine, directory, deadline)

    def _tests(self, vm: Vm, link: Link, directory: Path) -> None:
        guests, account, ids = self._guests, self._account, list(self._unit.ids)
        places = guests.bring(link, directory) if self._thaw is None else None
        account.phase("testing", f"{len(guests.job.ids)} tests")
        if places is not None:
            begin(link, guests.shared.plan, ids, guests.said(vm), places)
        else:
            link.send(Kind.RUN, {"ids": ids})
        shared = guests.shared
        follow(link, shared.plan, Tally(ids), account.name, shared.examples, account.emit, until=Kind.EXIT)

    def _goodbye(self, link: Link, directory: Path) -> None:
        incoming = directory / "incoming"
        try:
            _, left = link.artifacts(incoming)
            self._account.remark(*left)
            link.goodbye()
        except (AgentError, VmError) as error:
            # The verdicts are in; what could not be brought home is worth a remark, not the kernel's outcome.
            self._account.remark(f"artefacts: {error}")
        finally:
            self._account.keep(incoming, self._number)
