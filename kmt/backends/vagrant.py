"""The backend ``vagrant``: machines that the Vagrant CLI manages through libvirt, reached over plain ssh.

For people whose machines, boxes and habits are Vagrant's. A row with a kernel boots it with the project's own box, the
same root as QEMU's guests; one with ``box`` is that box, with the kernel that it brings. Either way the machine is
all ours, and is made like any guest (``kmt/guest/furnish.py``). Which machines there are and how they come up clean:
``vagrant_machines.py``; a running one: ``vagrant_vm.py``; Vagrant's words: ``kmt/vagrant``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from kmt.backends import qemu_program
from kmt.backends.base import Checkpoint, Machine, Vm
from kmt.backends.ssh_load import choose
from kmt.backends.ssh_vm import CONNECT_SECONDS, connected
from kmt.backends.ssh_words import Facts, Target
from kmt.backends.vagrant_machines import OURS, Spot, running
from kmt.backends.vagrant_vm import VagrantVm
from kmt.boot import accel
from kmt.boot.consolelog import Watch, free_path
from kmt.config import Config
from kmt.deadline import Deadline
from kmt.errors import SnapshotError
from kmt.kernel import Kernel
from kmt.matrix import Row
from kmt.vagrant import machines
from kmt.vagrant.box import ensure_box, lend
from kmt.vagrant.boxes import borrow
from kmt.vagrant.cli import Vagrant, check_here
from kmt.vagrant.machines import Entry

Progress = Callable[[str, int, int], None]
UP_SECONDS = 90.0
"""For a machine to come up and its agent to start, with hardware virtualisation; scaled without."""
IN_BOX = "in the box "
"""How the origin of a kernel begins that a box brings; what follows is the box's name."""
AS_ROOT = ("sh", "-c", 'if [ "$(id -u)" = 0 ]; then exec "$@"; else exec sudo -n -- "$@"; fi', "sh", "python3")
"""What starts a Python as root, whoever a box lets in."""


def _quiet(label: str, done: int, total: int) -> None:
    """Nobody is told."""


class VagrantBackend:
    """Runs kernels in Vagrant's machines; see ``kmt.backends.base.Backend``."""

    name = "vagrant"
    simulated = False
    shares_files = False
    checkpoints = False

    def __init__(self, config: Config, accelerator: str = "auto", progress: Progress | None = None) -> None:
        self._config = config
        self._wanted = accelerator
        self._progress = progress or _quiet
        self._remarks: dict[str, None] = {}
        accel.check_word(accelerator)

    @property
    def notice(self) -> str:
        """Why guests are emulated; what boxes lack."""
        return "; ".join(self._remarks)

    @property
    def pristine(self) -> VagrantBackend:
        """This one: each guest is a machine in which nobody has done anything."""
        return self

    @property
    def deadline_factor(self) -> float:
        """1 with hardware virtualisation; that of emulation while the choice has not been made."""
        return accel.factor(qemu_program.find(), self._wanted)

    def kernel(self, row: Row) -> Kernel | None:
        """The kernel that a row's own box brings: its machine is asked. None for rows whose kernel is fetched."""
        if not row.box:
            return None
        asked = Kernel(row.name, "", Path("/"), None, None, (), None, digest="", origin=f"{IN_BOX}{row.box}")
        with tempfile.TemporaryDirectory(prefix="kmt-") as scratch:
            deadline = Deadline(UP_SECONDS * self.deadline_factor)
            with self._connected(asked, Machine(memory_mib=self._config.memory), Path(scratch), deadline) as (vm, _):
                found = vm.greet(deadline)
                vm.send(b"0\n", deadline)
        self._remark(row.name, found)
        return replace(asked, release=found.release)

    def _remark(self, name: str, found: Facts) -> None:
        lacking = choose(self._config.requirements, found)[1]
        if lacking:
            what = ", ".join(lacking)
            self._remarks[f"the box of {name} (Python {found.python}) lacks what cannot be sent there: {what}"] = None

    def _accelerator(self, kernel: Kernel) -> str:
        if _own_box(kernel):  # nothing here to try with: what an earlier try has shown
            return accel.expected(qemu_program.find(), self._wanted)
        choice = accel.choose(qemu_program.find(), kernel, self._wanted)
        if choice.notice:
            self._remarks[choice.notice] = None
        return choice.accelerator

    def prepare(self, kernel: Kernel, machine: Machine) -> None:
        """Start libvirt and make the box, where no earlier guest has."""
        check_here()
        self._accelerator(kernel)
        OURS.session(self._config)
        if not _own_box(kernel):
            ensure_box(self._config, self._progress)

    def command_line(self, kernel: Kernel, machine: Machine, run_dir: Path) -> list[str]:
        """What a person would type in ``vms/``."""
        return ["vagrant", "up", "--provider", "libvirt", "--no-provision", kernel.name]

    def _entry(self, name: str, kernel: Kernel, machine: Machine, accelerator: str) -> Entry:
        """Written down for the Vagrantfile."""
        session, own = OURS.session(self._config), _own_box(kernel)
        if own:
            borrow(own)
            return machines.entry(session.room, name, kernel=None, box=own, machine=machine, accelerator=accelerator)
        box = ensure_box(self._config, self._progress)
        lend(box, session)
        return machines.entry(session.room, name, kernel=kernel, box=box, machine=machine, accelerator=accelerator)

    @contextmanager
    def launch(
        self, kernel: Kernel, machine: Machine, run_dir: Path, deadline: Deadline, *, checkpointable: bool = False
    ) -> Iterator[VagrantVm]:
        """Bring a machine up, connect and start the agent. Call it from the thread that keeps the ``with``."""
        # A keeper's guests have no end of their own; what is awaited here has one (poll(2) takes 24 days at most).
        begin = deadline.sooner(UP_SECONDS * self.deadline_factor)
        with self._connected(kernel, machine, run_dir, begin) as (vm, name):
            found = vm.greet(begin.sooner(CONNECT_SECONDS * self.deadline_factor))
            vm.take(self._config.requirements, found, begin, own=name)
            yield vm

    @contextmanager
    def _connected(
        self, kernel: Kernel, machine: Machine, run_dir: Path, deadline: Deadline
    ) -> Iterator[tuple[VagrantVm, str]]:
        """A machine that is up, with a connection as root, and its name."""
        session, accelerator = OURS.session(self._config), self._accelerator(kernel)
        vagrant, prefix = Vagrant(session.env, session.prefix), session.env["KMT_PREFIX"]
        watch = Watch(free_path(run_dir, "console"))
        try:
            with (
                OURS.lease(kernel.name, prefix, lambda name: self._entry(name, kernel, machine, accelerator)) as spot,
                running(vagrant, spot, watch, deadline, snapshots=self._config.snapshots) as (qemu, restored),
                connected(_target(vagrant, spot, run_dir, deadline), watch, VagrantVm) as vm,
            ):
                vm.belongs_to(qemu, session.daemon, accelerator, restored=restored)
                yield vm, spot.entry.name
        finally:
            watch.started()
            watch.join(5.0)

    def checkpoint(self, vm: Vm, deadline: Deadline) -> Checkpoint:
        """Its memory is libvirt's."""
        raise SnapshotError("a machine of Vagrant's cannot be frozen into this process", hint="--kernel-backend qemu")

    def restore(self, checkpoint: Checkpoint, run_dir: Path, deadline: Deadline) -> AbstractContextManager[Vm]:
        """Nor brought back from it."""
        raise SnapshotError("a machine of Vagrant's cannot be restored from this process", hint="--kernel-backend qemu")


def _own_box(kernel: Kernel) -> str:
    """The box that brings this kernel; empty where the kernel is booted with ours."""
    return kernel.origin.removeprefix(IN_BOX) if kernel.origin.startswith(IN_BOX) else ""


def _target(vagrant: Vagrant, spot: Spot, run_dir: Path, deadline: Deadline) -> Target:
    """Where plain ssh goes, by the file that Vagrant writes; asked for once, for address and key stay."""
    if not spot.ssh_config:
        spot.ssh_config = vagrant.ssh_config(spot.entry.name, deadline)
    file = run_dir / f"ssh-config-{spot.entry.name}"
    file.write_text(spot.ssh_config)
    return Target(spot.entry.name, "", file, AS_ROOT)
