"""A running QEMU: its process, its three wires (agent, monitor, console), and why it ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kmt import proc
from kmt.backends.base import Machine
from kmt.backends.qmp import Monitor
from kmt.backends.stopping import stop
from kmt.boot.console import Console
from kmt.boot.consolelog import Watch, free_path
from kmt.deadline import Deadline
from kmt.errors import VmError, VmLostError, VmNeverStartedError, VmPanickedError
from kmt.kernel import Kernel

PANIC_GRACE = 10.0
"""Seconds in which QEMU ends by itself after a panic; a kernel that cannot even reboot is dead after them."""


class QemuVm:
    """A guest in QEMU; see ``kmt.backends.base.Vm``."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        channel: socket.socket,
        monitor: Monitor,
        watch: Watch,
        errors: Path,
        accelerator: str,
        made_of: tuple[Kernel, Machine],
    ) -> None:
        self.accelerator = accelerator
        self.channel = channel
        self.console = watch.path
        self.pid = process.pid
        self.restored = False
        self.panic_grace = PANIC_GRACE
        """Seconds after a panic in which its process may end by itself."""
        self.monitor = monitor
        self.kernel, self.machine = made_of
        self.own_ram: IO[bytes] | None = None
        """The file that its memory is shared with: it can be made a checkpoint. None: it cannot."""
        self._process = process
        self._watch = watch
        self._errors = errors

    def death(self) -> VmError | None:
        """None while it runs; else why it does not."""
        status = self._process.poll()
        seen = self._watch.panicked_at
        if status is None and (seen is None or time.monotonic() - seen < self.panic_grace):
            return None
        if status is not None:
            self._watch.join(2.0)
        return why(self._watch.console, status, self.said(), restored=self.restored)

    def said(self) -> str:
        """What QEMU itself complained of."""
        return self._errors.read_text(errors="replace").strip() if self._errors.is_file() else ""

    @property
    def phase(self) -> str:
        """The console's phase, or ``ended``."""
        phase = self._watch.console.phase
        if self.restored and phase in ("starting", "booting"):  # what a snapshot said, it said before
            phase = "ready"
        return "ended" if phase in ("starting", "booting", "ready") and self._process.poll() is not None else phase

    def remarks(self) -> list[str]:
        """What a person wants to know of a guest that hangs: the kernel's own words on stalls and memory."""
        return self._watch.console.remarks()

    @property
    def mute(self) -> bool:
        """It ended with a bad status, and its console had said nothing."""
        return bool(self._process.poll()) and not self.restored and not self._watch.console.lines

    def stop(self) -> None:
        """End the process; returns when it has ended."""
        stop(self._process)


def why(console: Console, status: int | None, said: str, *, restored: bool = False) -> VmError:
    """(pure) The error for a machine that ended: the kernel's words first, then our init's, then QEMU's."""
    last = said.splitlines()[-1] if said else ""
    if console.fatal:
        return VmPanickedError(str(console.fatal))
    if status is not None and status < 0:
        return VmLostError(f"QEMU was ended by {signal.Signals(-status).name}")
    if console.words.startswith("kmt: initramfs:"):
        return VmNeverStartedError(console.words.removeprefix("kmt: "))
    if not console.lines and not restored:
        return VmNeverStartedError(f"QEMU ended before the kernel said a word: {last or f'status {status}'}")
    memory = console.finding("oom")
    if memory and not console.words.endswith("ended with status 0"):
        return VmLostError(f"the guest ran out of memory: {memory}", hint="give it more: [tool.kmt] memory, in MiB")
    if status:
        return VmLostError(f"QEMU ended with status {status}: {last}")
    return VmLostError(f"the guest powered itself off; its last words: {console.words or 'none'}")


@contextmanager
def running(
    command: Callable[[int, int], Sequence[str]],
    run_dir: Path,
    accelerator: str,
    deadline: Deadline,
    made_of: tuple[Kernel, Machine],
    *,
    inherited: Sequence[int] = (),
    first_line: str = "",
) -> Iterator[QemuVm]:
    """Start the machine; ``command`` is given the descriptors of the agent's channel and of the monitor.

    ``first_line`` is ours, in front of what the console says.

    Call it from the thread that keeps the ``with``: QEMU dies with that thread.
    """
    agent, agent_theirs = socket.socketpair()
    control, control_theirs = socket.socketpair()
    with agent, agent_theirs, control, control_theirs:
        passed = (agent_theirs.fileno(), control_theirs.fileno())
        watch = Watch(free_path(run_dir, "console"))
        errors = free_path(run_dir, "qemu")
        try:
            with errors.open("wb") as stderr:
                words = command(*passed)
                if first_line:
                    os.write(watch.writing, f"{first_line}\n".encode())
                process = proc.spawn(words, stdout=watch.writing, stderr=stderr, pass_fds=[*passed, *inherited])
        finally:
            watch.started()
        agent_theirs.close()
        control_theirs.close()
        vm = QemuVm(process, agent, Monitor(control, deadline), watch, errors, accelerator, made_of)
        try:
            yield vm
        finally:
            stop(process)
            watch.join(5.0)
