"""The backend ``qemu``: a kernel booted by QEMU, with hardware virtualisation where it works, emulated elsewhere.

Start at ``QemuBackend.launch``: from a warm snapshot where there can be one (``kmt/snapshot``), else booted. The
command line is made in ``qemu_args.py``, the process is ``qemu_vm.py``'s, disks are ``kmt/boot/disks.py``'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kmt.backends import qemu_args, qemu_program, qemu_snapshots
from kmt.backends.base import Checkpoint, Machine, Vm
from kmt.backends.qemu_args import Memory
from kmt.backends.qemu_dump import kept_for_forensics
from kmt.backends.qemu_vm import QemuVm, running
from kmt.boot import accel, disks
from kmt.config import Config
from kmt.deadline import Deadline
from kmt.errors import KmtError, NoPlaceError, SnapshotError
from kmt.kernel import Kernel
from kmt.roots import image, rootfs
from kmt.snapshot import ram, store

Progress = Callable[[str, int, int], None]
WARM_SECONDS = 60.0
"""What booting and warming up a guest may take with hardware virtualisation; scaled without."""
RESTORE_SECONDS = 10.0
"""What a guest may take from a snapshot to its first word; scaled likewise."""
_log = logging.getLogger("kmt")


class QemuBackend:
    """Runs kernels in QEMU; see ``kmt.backends.base.Backend``."""

    name = "qemu"
    simulated = False
    shares_files = False

    def __init__(self, config: Config, accelerator: str = "auto", progress: Progress | None = None) -> None:
        self._config = config
        self._wanted = accelerator
        self._progress = progress or rootfs.quiet
        self._accel_notice = ""
        self._without: dict[str, str] = {}
        """Keys of snapshots that could not be made or used in this run, with why: those guests boot."""
        accel.check_word(accelerator)

    @property
    def notice(self) -> str:
        """One line that people should see: why guests are emulated, or boot although a snapshot was wanted."""
        reasons = dict.fromkeys(self._without.values())
        return "; ".join(filter(None, [self._accel_notice, *reasons]))

    @property
    def checkpoints(self) -> bool:
        """Guests that are launched ``checkpointable`` can be frozen and restored."""
        return self._config.snapshots

    @property
    def pristine(self) -> QemuBackend:
        """This one: each guest is a machine of its own."""
        return self

    @property
    def deadline_factor(self) -> float:
        """1 with hardware virtualisation; that of emulation while the choice has not been made."""
        return accel.factor(qemu_program.find(), self._wanted)

    def accelerator(self, kernel: Kernel) -> str:
        """``kvm`` or ``tcg``, tried with that kernel when no earlier try is remembered."""
        choice = accel.choose(qemu_program.find(), kernel, self._wanted)
        if choice.notice and not self._accel_notice:
            self._progress(choice.notice, 1, 1)
        self._accel_notice = choice.notice
        return choice.accelerator

    def files(self, kernel: Kernel, machine: Machine) -> qemu_args.Files:
        """Everything the guest boots from, made where it is missing."""
        own = disks.kernel_files(kernel)
        return qemu_args.Files(
            vmlinuz=kernel.vmlinuz,
            initramfs=disks.initramfs(own.base),
            root=image.ensure(self._config, self._progress),
            kernel=own.disk,
            compiler=self._compiler() if machine.compiler else None,
        )

    def _compiler(self) -> Path:
        from kmt.roots import compiler  # it needs what most guests do not

        return compiler.disk(self._progress)

    def prepare(self, kernel: Kernel, machine: Machine) -> None:
        """Make image, disks, initramfs and warm snapshot, and choose the accelerator, where no earlier run has."""
        self.files(kernel, machine)
        self.accelerator(kernel)
        self._snapshot(kernel, machine)

    def command_line(self, kernel: Kernel, machine: Machine, run_dir: Path) -> list[str]:
        """The command of a guest that boots, but for the numbers of inherited descriptors. Boots nothing."""
        accelerator = accel.expected(qemu_program.find(), self._wanted)
        return self._command(kernel, machine, accelerator, channel=3, monitor=4)

    def shell_command(self, kernel: Kernel, machine: Machine, gdb: Path | None = None) -> list[str]:
        """The same machine with a root shell on its console instead of the agent, for a terminal."""
        return self._command(kernel, machine, self.accelerator(kernel), channel=None, gdb=gdb)

    def _command(
        self,
        kernel: Kernel,
        machine: Machine,
        accelerator: str,
        *,
        channel: int | None,
        monitor: int | None = None,
        memory: Memory | None = None,
        gdb: Path | None = None,
    ) -> list[str]:
        lsm = None
        if kernel.config is not None:
            lsm = qemu_args.configured_lsm(kernel.config.read_text(errors="replace"))
        files, qemu = self.files(kernel, machine), qemu_program.find()
        wires = {"channel": channel, "monitor": monitor}
        return qemu_args.command(
            qemu, files, machine, accelerator, name=kernel.name, lsm=lsm, memory=memory, dump=self._config.dump,
            gdb=gdb, **wires
        )  # fmt: skip

    @contextmanager
    def _running(
        self, kernel: Kernel, machine: Machine, run_dir: Path, deadline: Deadline, memory: Memory | None = None
    ) -> Iterator[QemuVm]:
        """The machine's process."""
        accelerator = self.accelerator(kernel)

        def command(channel: int, monitor: int) -> list[str]:
            return self._command(kernel, machine, accelerator, channel=channel, monitor=monitor, memory=memory)

        inherited = [memory.descriptor] if memory else []
        first = "kmt: goes on from a memory snapshot" if memory and memory.incoming else ""
        with running(
            command, run_dir, accelerator, deadline, (kernel, machine), inherited=inherited, first_line=first
        ) as vm:
            try:
                if self._config.dump:
                    vm.panic_grace = 1.0
                    with kept_for_forensics(vm, run_dir):
                        yield vm
                else:
                    yield vm
            finally:
                if accelerator == "kvm" and vm.mute:
                    accel.forget(qemu_program.find())

    @contextmanager
    def launch(
        self, kernel: Kernel, machine: Machine, run_dir: Path, deadline: Deadline, *, checkpointable: bool = False
    ) -> Iterator[QemuVm]:
        """A guest from the warm snapshot; one that boots where there is none, or where it turns out to be broken.

        Call it from the thread that keeps the ``with``: QEMU dies with that thread.
        """
        key = self._snapshot(kernel, machine)
        with ExitStack() as stack:
            vm = None
            try:
                if key:
                    snapshot = stack.enter_context(store.opened(key))
                    frozen = Checkpoint(kernel, machine, snapshot.ram, snapshot.state)
                    vm = stack.enter_context(self._thawed(frozen, run_dir, deadline, private=checkpointable))
            except NoPlaceError as error:
                self._go_without(key, f"{kernel.name} boots: {error}")
            except SnapshotError as error:
                store.discard(key)
                self._go_without(key, f"the warm snapshot of {kernel.name} was thrown away and it boots: {error}")
            yield vm or stack.enter_context(self._running(kernel, machine, run_dir, deadline))

    @contextmanager
    def restore(self, checkpoint: Checkpoint, run_dir: Path, deadline: Deadline) -> Iterator[QemuVm]:
        """A guest that goes on where the checkpoint's was frozen, with a clock, entropy and names of its own.

        As often and as many at once as wanted: they share its memory, copy-on-write. Raises SnapshotError.
        """
        with self._thawed(checkpoint, run_dir, deadline, private=False) as vm:
            yield vm

    @contextmanager
    def _thawed(self, frozen: Checkpoint, run_dir: Path, deadline: Deadline, *, private: bool) -> Iterator[QemuVm]:
        """A guest from that memory and state. ``private``: on a copy of the memory, so that it can be frozen again."""
        with ExitStack() as stack:
            own = stack.enter_context(ram.copy(frozen.ram, run_dir)) if private else None
            memory = Memory(own.fileno() if own else frozen.ram, shared=private, incoming=True)
            vm = stack.enter_context(self._running(frozen.kernel, frozen.machine, run_dir, deadline, memory))
            vm.own_ram = own
            limit = deadline.sooner(RESTORE_SECONDS * accel.FACTORS[vm.accelerator])
            qemu_snapshots.resume(vm, frozen.state, frozen.kernel.name, limit)
            yield vm

    def checkpoint(self, vm: Vm, deadline: Deadline) -> Checkpoint:
        """Freeze a guest that was launched ``checkpointable``; it ends. Raises SnapshotError."""
        assert isinstance(vm, QemuVm)
        return qemu_snapshots.checkpoint(vm, deadline)

    def key(self, kernel: Kernel, machine: Machine) -> str:
        """The key of the machine's warm snapshot, whether there is one or not."""
        files, accelerator = self.files(kernel, machine), self.accelerator(kernel)
        memory = Memory(0, shared=True, incoming=False)
        argv = self._command(kernel, machine, accelerator, channel=0, monitor=0, memory=memory)
        return qemu_snapshots.key_of(kernel, files, accelerator, argv, self._config.warm)

    def _snapshot(self, kernel: Kernel, machine: Machine) -> str:
        """The key of the machine's warm snapshot, made where it is missing; empty where there is to be none."""
        if not self._config.snapshots:
            return ""
        key = self.key(kernel, machine)
        if key in self._without:
            return ""
        if not store.exists(key):
            try:
                self._make(key, kernel, machine)
            except KmtError as error:
                self._go_without(key, f"there is no warm snapshot of {kernel.name} and it boots: {error}")
                return ""
        return key

    def _make(self, key: str, kernel: Kernel, machine: Machine) -> None:
        def fill(descriptor: int, logs: Path) -> bytes:
            if key in self._without:  # another thread has just tried
                raise SnapshotError(self._without[key])
            self._progress(f"warm snapshot of {kernel.name}", 0, 1)
            deadline = Deadline(WARM_SECONDS * self.deadline_factor)
            memory = Memory(descriptor, shared=True, incoming=False)
            with self._running(kernel, machine, logs, deadline, memory) as vm:
                state = qemu_snapshots.warm_and_freeze(vm, deadline, self.deadline_factor, self._config.warm)
            self._progress(f"warm snapshot of {kernel.name}", 1, 1)
            return state

        store.make(
            key,
            machine.memory_mib << 20,
            fill,
            kernel=kernel.name,
            machine=f"{machine.cpus} CPUs, {machine.memory_mib} MiB{', compiler' if machine.compiler else ''}",
            limit_mib=self._config.snapshot_store,
        )

    def _go_without(self, key: str, why: str) -> None:
        if key not in self._without:
            self._without[key] = why
            _log.warning("kmt: %s", why)
