"""The backend ``host``: this machine's own kernel, no VM; the agent is a process beside us.

For a quick look, for machines that are themselves guests, and as the yardstick of the contract tests. It isolates
nothing: tests run with the caller's rights on the caller's files.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psutil

import kmt
from kmt import proc
from kmt.backends.base import Backend, Checkpoint, Machine, Vm
from kmt.backends.stopping import stop
from kmt.boot.consolelog import Watch, free_path
from kmt.deadline import Deadline
from kmt.errors import SnapshotError, VmError, VmLostError
from kmt.kernel import Kernel
from kmt.matrix import Row


class HostVm:
    """The agent's process; see ``kmt.backends.base.Vm``."""

    accelerator = "none"
    restored = False

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, watch: Watch) -> None:
        self.channel = channel
        self.console = watch.path
        self.pid = process.pid
        self._process = process
        self._watch = watch

    def death(self) -> VmError | None:
        """None while the agent runs."""
        status = self._process.poll()
        if status is None:
            return None
        self._watch.join(2.0)
        lines = self.console.read_text(errors="replace").splitlines()
        last = f": {lines[-1]}" if lines else ""
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return VmLostError(f"the agent on this machine ended with {how}{last}")

    def remarks(self) -> list[str]:
        """Nothing: this machine's kernel speaks to its own log."""
        return []

    @property
    def phase(self) -> str:
        """``ready`` or ``ended``."""
        return "ready" if self._process.poll() is None else "ended"


class HostBackend:
    """Runs the agent here; see ``kmt.backends.base.Backend``."""

    name = "host"
    simulated = False
    shares_files = True
    deadline_factor = 1.0
    notice = ""
    checkpoints = False

    @property
    def pristine(self) -> Backend | None:
        """There is but one kernel here, and everybody has touched it."""
        return None

    def kernel(self, row: Row) -> Kernel:
        """The one that runs here."""
        return Kernel(row.name, platform.release(), Path("/"), None, None, (), None, digest="", origin="this machine")

    def prepare(self, kernel: Kernel, machine: Machine) -> None:
        """Nothing is needed."""

    def command_line(self, kernel: Kernel, machine: Machine, run_dir: Path) -> list[str]:
        """The command that ``launch`` would start."""
        return [sys.executable, "-B", "-m", "kmt_guest"]

    def checkpoint(self, vm: Vm, deadline: Deadline) -> Checkpoint:
        """There is no machine here that could be frozen."""
        raise SnapshotError("this machine's own kernel cannot be frozen", hint="--kernel-backend qemu")

    def restore(self, checkpoint: Checkpoint, run_dir: Path, deadline: Deadline) -> AbstractContextManager[Vm]:
        """Nor brought back."""
        raise SnapshotError("this machine's own kernel cannot be restored", hint="--kernel-backend qemu")

    @contextmanager
    def launch(
        self, kernel: Kernel, machine: Machine, run_dir: Path, deadline: Deadline, *, checkpointable: bool = False
    ) -> Iterator[HostVm]:
        """Start the agent. Call it from the thread that keeps the ``with``."""
        package = run_dir / "agent"
        package.mkdir(exist_ok=True)
        if not (package / "kmt_guest").exists():  # by the name that it has in a guest
            (package / "kmt_guest").symlink_to(Path(kmt.__file__).parent / "guest")
        artifacts = run_dir / "guest"
        artifacts.mkdir(exist_ok=True)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            watch = Watch(free_path(run_dir, "console"))
            environment = {
                "KMT_CHANNEL_FD": str(theirs.fileno()),
                "KMT_ARTIFACTS": str(artifacts),
                "PYTHONPATH": os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH")))),
            }
            try:
                process = proc.spawn(
                    self.command_line(kernel, machine, run_dir),
                    stdout=watch.writing,
                    stderr=watch.writing,
                    env=environment,
                    pass_fds=[theirs.fileno()],
                )
            finally:
                watch.started()
            theirs.close()
            try:
                yield HostVm(process, ours, watch)
            finally:
                _stop_all(process)
                watch.join(5.0)


def _stop_all(process: subprocess.Popen[bytes]) -> None:
    """End the agent and what it started; there is no machine here that would take its processes with it."""
    below: list[psutil.Process] = []
    with suppress(psutil.Error):
        below = psutil.Process(process.pid).children(recursive=True)
    stop(process)
    for child in below:
        with suppress(psutil.Error):
            child.kill()
