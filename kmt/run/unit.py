"""One guest from power-on to goodbye: project in, tests, artefacts out; under a deadline of its own.

Law: whatever goes wrong ends up in the kernel's accounts, never outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from kmt.backends.base import Vm
from kmt.deadline import Deadline
from kmt.errors import AgentError, KmtError, VmError
from kmt.kernel import Kernel
from kmt.run.account import Account, InternalError
from kmt.run.guest import ARTIFACTS_DIR, Tally, run_tests, send_files
from kmt.run.link import Link
from kmt.run.shared import Job, Shared
from kmt.run.spread import Unit

Start = Callable[[Path, Deadline], AbstractContextManager[Vm]]
"""Starts a guest with its own directory, under its deadline."""


class UnitRun:
    """One unit of a kernel's work. ``run()`` never raises; call it from the thread that is to keep the guest."""

    def __init__(self, unit: Unit, kernel: Kernel, job: Job, shared: Shared, account: Account) -> None:
        self._unit, self._kernel, self._job = unit, kernel, job
        self._shared, self._account = shared, account
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
        account, backend = self._account, self._job.backend
        account.phase("starting")
        self._number, directory = account.new_guest()
        deadline = Deadline(self._shared.config.timeout * backend.deadline_factor)
        begin = time.monotonic()
        with backend.launch(self._kernel, self._unit.machine, directory, deadline) as vm:
            self._console = str(vm.console)
            account.started(self._number, vm)
            account.phase("booting")
            link = Link(vm, deadline, factor=backend.deadline_factor, cancel=self._shared.cancel)
            link.hello()
            account.answered(time.monotonic() - begin)
            account.phase("ready")
            self._tests(vm, link, directory)
            self._goodbye(link, directory)

    def _tests(self, vm: Vm, link: Link, directory: Path) -> None:
        shared, backend, account = self._shared, self._job.backend, self._account
        tree = None if backend.shares_files else shared.tree()
        account.remark(*(tree.left_out if tree else ()))
        bpf_dir = send_files(link, tree, shared.objects())
        account.phase("testing", f"{len(self._job.ids)} tests")
        said = {"name": account.name, "accelerator": vm.accelerator, "simulated": backend.simulated}
        places = {
            "bpf_dir": bpf_dir,
            "artifacts_dir": str(directory / "guest") if backend.shares_files else ARTIFACTS_DIR,
        }
        run_tests(link, shared.plan, Tally(list(self._unit.ids)), said, shared.examples, account.emit, **places)

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
