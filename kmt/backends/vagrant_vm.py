"""A running machine of Vagrant's: QEMU below libvirt, its serial log, an agent over ssh.

Vagrant calls a panicked guest ``running``, its ssh hangs, and its halt does not kill one. So the machine is judged by
what it is: QEMU's process, found by the domain's name on its command line; the serial log that it writes; and our own
ssh. It is ended by its process, where that is ours to kill.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kmt.backends.ssh_vm import SshVm
from kmt.backends.ssh_words import Target
from kmt.boot.consolelog import Watch
from kmt.errors import VmError, VmLostError, VmNeverStartedError, VmPanickedError
from kmt.hints import task

PANIC_GRACE = 1.0
"""Seconds after a panic in which its last words come."""
KILL_SECONDS = 5.0
_TICK = 0.05


class VagrantVm(SshVm):
    """A guest that Vagrant started; see ``kmt.backends.base.Vm``. ``pid`` is QEMU's, or ssh's where that is unknown."""

    def __init__(
        self, target: Target, process: subprocess.Popen[bytes], channel: socket.socket, watch: Watch, said: Path
    ) -> None:
        super().__init__(target, process, channel, watch, said)
        self.name = target.host
        self._qemu: Qemu | None = None
        self._daemon: subprocess.Popen[bytes] | None = None
        self._ended = False

    def belongs_to(
        self, qemu: Qemu | None, daemon: subprocess.Popen[bytes], accelerator: str, *, restored: bool
    ) -> None:
        """It is this process's, on that accelerator, below that libvirtd."""
        self._qemu, self._daemon = qemu, daemon
        self.accelerator, self.restored = accelerator, restored
        if qemu is not None:
            self.pid = qemu.pid

    @property
    def _gone(self) -> bool:
        """Its QEMU has ended."""
        return self._qemu is not None and not self._qemu.runs

    def death(self) -> VmError | None:
        """None while QEMU and ssh run and the kernel has not given up; else why."""
        console, panicked = self._watch.console, self._watch.panicked_at
        if panicked is not None and time.monotonic() - panicked > PANIC_GRACE:
            return VmPanickedError(str(console.fatal))
        gone, status = self._gone, self._process.poll()
        if not gone and status is None:
            return None
        self._settle()
        if console.fatal:
            return VmPanickedError(str(console.fatal))
        if self._daemon is not None and self._daemon.poll() is not None:
            return VmLostError(f"libvirtd has ended, and {self.name} with it", hint=f"run it again; {task('doctor')}")
        if gone:
            return VmLostError(f"the QEMU of {self.name} ended without a word, as after SIGKILL (signal 9)")
        if status in (126, 127) and not console.ready:
            return VmNeverStartedError(
                f"there is no Python for root in the box of {self.name}", hint="the box needs python3 (and sudo)"
            )
        return super().death()

    def _settle(self) -> None:
        """Once, give what ended the time to say why: the serial log is read with a delay."""
        if not self._ended:
            self._ended = True
            self._watch.join(4 * _TICK)

    def remarks(self) -> list[str]:
        """What a person wants to know of a guest that hangs."""
        return self._watch.console.remarks()

    @property
    def phase(self) -> str:
        """The console's phase, or ``ended``."""
        phase = self._watch.console.phase
        over = self._gone or self._process.poll() is not None
        return "ended" if over and phase in ("starting", "booting", "ready") else phase


class Qemu:
    """A process of QEMU's that is not our child; its number is never another's while this is open."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    @property
    def runs(self) -> bool:
        """It has not ended."""
        return not self._ends_within(0)

    def kill(self) -> bool:
        """End it; True when it has gone, False where it is not ours to end."""
        with suppress(ProcessLookupError):
            try:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
            except PermissionError:
                return False
        return self._ends_within(KILL_SECONDS)

    def _ends_within(self, seconds: float) -> bool:
        watch = select.poll()
        watch.register(self._fd, select.POLLIN)
        return bool(watch.poll(seconds * 1000))

    def close(self) -> None:
        """Let go of it; it goes on."""
        os.close(self._fd)


def qemu_of(mark: str) -> Qemu | None:
    """The QEMU that has this in its command line (a domain's name, say); None where none can be seen."""
    wanted = mark.encode()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if not _is_qemu(process, wanted):
                continue
            found = Qemu(int(process.name))
            # Once more: now the number is not another's.
            with suppress(OSError):
                if _is_qemu(process, wanted):
                    return found
            found.close()
    return None


def _is_qemu(process: Path, wanted: bytes) -> bool:
    words = (process / "cmdline").read_bytes()
    return wanted in words and b"qemu" in words.split(b"\0", 1)[0].rpartition(b"/")[2]


@contextmanager
def followed(serial: Path, watch: Watch) -> Iterator[None]:
    """While this lasts, what is written to the serial log goes to ``watch``, line by line."""
    over = threading.Event()
    thread = threading.Thread(target=_follow, args=(serial, watch, over), name=f"serial {serial}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5.0)


def _follow(serial: Path, watch: Watch, over: threading.Event) -> None:
    """Until it is over, and then what is there."""
    begin, left = 0, b""
    while True:
        last = over.is_set()
        data, begin = _read(serial, begin)
        *lines, left = (left + data).split(b"\n")
        watch.write(b"".join(line + b"\n" for line in lines))
        if last and not data:
            watch.write(left)
            return
        if not data:
            over.wait(_TICK)


def _read(serial: Path, begin: int) -> tuple[bytes, int]:
    """Some of what is there from that byte on, and where it ends; nothing while there is no log.

    From the first byte of a log that has become shorter: a new QEMU writes it anew.
    """
    try:
        with serial.open("rb") as file:
            if os.fstat(file.fileno()).st_size < begin:
                begin = 0
            file.seek(begin)
            data = file.read(1 << 16)
    except OSError:
        return b"", begin
    return data, begin + len(data)
