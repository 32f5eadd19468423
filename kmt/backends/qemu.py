"""The backend ``qemu``: a kernel booted by QEMU, with hardware virtualisation where it works, emulated elsewhere.

Start at ``QemuBackend.launch``. The command line is made in ``qemu_args.py``, disks in ``kmt/boot/disks.py``, what the
console says is understood in ``kmt/boot/console.py``.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kmt import proc
from kmt.backends import qemu_args, qemu_program
from kmt.backends.base import Machine
from kmt.backends.stopping import stop
from kmt.boot import accel, disks
from kmt.boot.console import Console
from kmt.boot.consolelog import Watch, free_path
from kmt.config import Config
from kmt.deadline import Deadline
from kmt.errors import VmError, VmLostError, VmNeverStartedError, VmPanickedError
from kmt.kernel import Kernel
from kmt.roots import compiler, image, rootfs

Progress = Callable[[str, int, int], None]
PANIC_GRACE = 10.0
"""Seconds in which QEMU ends by itself after a panic; a kernel that cannot even reboot is dead after them."""


class QemuVm:
    """A guest in QEMU; see ``kmt.backends.base.Vm``."""

    def __init__(
        self, process: subprocess.Popen[bytes], channel: socket.socket, watch: Watch, errors: Path, accelerator: str
    ) -> None:
        self.accelerator = accelerator
        self.channel = channel
        self.console = watch.path
        self.pid = process.pid
        self._process = process
        self._watch = watch
        self._errors = errors

    def death(self) -> VmError | None:
        """None while it runs; else why it does not."""
        status = self._process.poll()
        seen = self._watch.panicked_at
        if status is None and (seen is None or time.monotonic() - seen < PANIC_GRACE):
            return None
        if status is not None:
            self._watch.join(2.0)
        said = self._errors.read_text(errors="replace").strip() if self._errors.is_file() else ""
        return why(self._watch.console, status, said)

    @property
    def phase(self) -> str:
        """The console's phase, or ``ended``."""
        phase = self._watch.console.phase
        return "ended" if phase in ("starting", "booting", "ready") and self._process.poll() is not None else phase

    def remarks(self) -> list[str]:
        """What a person wants to know of a guest that hangs: the kernel's own words on stalls and memory."""
        found = (self._watch.console.finding(kind) for kind in ("oops", "bug", "stall", "oom"))
        return [str(finding) for finding in found if finding]


def why(console: Console, status: int | None, said: str) -> VmError:
    """(pure) The error for a machine that ended: the kernel's words first, then our init's, then QEMU's."""
    last = said.splitlines()[-1] if said else ""
    if console.fatal:
        return VmPanickedError(str(console.fatal))
    if status is not None and status < 0:
        return VmLostError(f"QEMU was ended by {signal.Signals(-status).name}")
    if console.words.startswith("kmt: initramfs:"):
        return VmNeverStartedError(console.words.removeprefix("kmt: "))
    if not console.lines:
        return VmNeverStartedError(f"QEMU ended before the kernel said a word: {last or f'status {status}'}")
    memory = console.finding("oom")
    if memory and not console.words.endswith("ended with status 0"):
        return VmLostError(f"the guest ran out of memory: {memory}", hint="give it more: [tool.kmt] memory, in MiB")
    if status:
        return VmLostError(f"QEMU ended with status {status}: {last}")
    return VmLostError(f"the guest powered itself off; its last words: {console.words or 'none'}")


class QemuBackend:
    """Runs kernels in QEMU; see ``kmt.backends.base.Backend``."""

    name = "qemu"
    simulated = False
    shares_files = False

    def __init__(self, config: Config, accelerator: str = "auto", progress: Progress | None = None) -> None:
        self._config = config
        self._wanted = accelerator
        self._progress = progress or rootfs.quiet
        self.notice = ""
        """One line that people should see: why guests are emulated."""
        accel.check_word(accelerator)

    @property
    def deadline_factor(self) -> float:
        """1 with hardware virtualisation; that of emulation while the choice has not been made."""
        return accel.factor(qemu_program.find(), self._wanted)

    def accelerator(self, kernel: Kernel) -> str:
        """``kvm`` or ``tcg``, tried with that kernel when no earlier try is remembered."""
        choice = accel.choose(qemu_program.find(), kernel, self._wanted)
        if choice.notice and not self.notice:
            self._progress(choice.notice, 1, 1)
        self.notice = choice.notice
        return choice.accelerator

    def files(self, kernel: Kernel, machine: Machine) -> qemu_args.Files:
        """Everything the guest boots from, made where it is missing."""
        own = disks.kernel_files(kernel)
        return qemu_args.Files(
            vmlinuz=kernel.vmlinuz,
            initramfs=disks.initramfs(own.base),
            root=image.ensure(self._config, self._progress),
            kernel=own.disk,
            compiler=compiler.disk(self._progress) if machine.compiler else None,
        )

    def prepare(self, kernel: Kernel, machine: Machine) -> None:
        """Make image, disks and initramfs, and choose the accelerator, where no earlier run has."""
        self.files(kernel, machine)
        self.accelerator(kernel)

    def command_line(self, kernel: Kernel, machine: Machine, run_dir: Path) -> list[str]:
        """The command that ``launch`` would start, but for the number of an inherited descriptor. Boots nothing."""
        return self._command(kernel, machine, accel.expected(qemu_program.find(), self._wanted), channel=3)

    def shell_command(self, kernel: Kernel, machine: Machine) -> list[str]:
        """The same machine with a root shell on its console instead of the agent, for a terminal."""
        return self._command(kernel, machine, self.accelerator(kernel), channel=None)

    def _command(self, kernel: Kernel, machine: Machine, accelerator: str, *, channel: int | None) -> list[str]:
        lsm = None
        if kernel.config is not None:
            lsm = qemu_args.configured_lsm(kernel.config.read_text(errors="replace"))
        files = self.files(kernel, machine)
        return qemu_args.command(
            qemu_program.find(), files, machine, accelerator, name=kernel.name, lsm=lsm, channel=channel
        )

    @contextmanager
    def launch(self, kernel: Kernel, machine: Machine, run_dir: Path, deadline: Deadline) -> Iterator[QemuVm]:
        """Start the guest. Call it from the thread that keeps the ``with``: QEMU dies with that thread."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            accelerator = self.accelerator(kernel)
            command = self._command(kernel, machine, accelerator, channel=theirs.fileno())
            watch = Watch(free_path(run_dir, "console"))
            errors = free_path(run_dir, "qemu")
            try:
                with errors.open("wb") as stderr:
                    process = proc.spawn(command, stdout=watch.writing, stderr=stderr, pass_fds=[theirs.fileno()])
            finally:
                watch.started()
            theirs.close()
            try:
                yield QemuVm(process, ours, watch, errors, accelerator)
            finally:
                if accelerator == "kvm" and process.poll() and not watch.console.lines:
                    accel.forget(command[0])
                stop(process)
                watch.join(5.0)
