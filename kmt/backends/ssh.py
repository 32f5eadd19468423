"""The backend ``ssh``: a machine that somebody else manages, over ssh, with the kernel that runs there.

All it needs is a Python; the agent travels there each time and leaves nothing. The same frames as everywhere go
over ssh's standard input and output. Such a machine was there before and will be after: nothing of it is reset,
and no test gets a kernel that nobody has touched. What people see of it: ``docs/backends.md``; the connection:
``ssh_vm.py``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from kmt.backends.base import Checkpoint, Machine, Vm
from kmt.backends.ssh_load import choose
from kmt.backends.ssh_vm import CONNECT_SECONDS, SshVm, connected
from kmt.backends.ssh_words import Facts, Target
from kmt.boot.consolelog import Watch, free_path
from kmt.config import Config
from kmt.deadline import Deadline
from kmt.errors import ConfigError, SnapshotError
from kmt.kernel import Kernel
from kmt.matrix import Row


class SshBackend:
    """Runs the agent on machines that rows with ``ssh`` name; see ``kmt.backends.base.Backend``."""

    name = "ssh"
    simulated = False
    shares_files = False
    pristine = None
    deadline_factor = 1.0
    checkpoints = False

    def __init__(self, config: Config) -> None:
        self._config = config
        self._targets: dict[str, Target] = {}
        self._remarks: dict[str, None] = {}

    @property
    def notice(self) -> str:
        """What tests would want and these machines lack; that tests are not root there."""
        return "; ".join(self._remarks)

    def kernel(self, row: Row) -> Kernel:
        """The kernel that runs there: asks the machine. Raises ConfigError for another kind of row, VmError."""
        if not row.ssh:
            raise ConfigError(f"{row.name} is no machine over SSH", hint='its row would say ssh = "user@host"')
        target = self._targets[row.name] = Target.of(row)
        with tempfile.TemporaryDirectory(prefix="kmt-") as scratch:
            deadline = Deadline(CONNECT_SECONDS)
            with _connected(target, Path(scratch)) as vm:
                found = vm.greet(deadline)
                vm.send(b"0\n", deadline)
        self._remark(target, found, choose(self._config.requirements, found)[1])
        return Kernel(
            row.name, found.release, Path("/"), None, None, (), None, digest="", origin=f"running on {target}"
        )

    def _remark(self, target: Target, found: Facts, lacking: list[str]) -> None:
        if found.uid:
            self._remarks[f'tests on {target} are not root\'s (its row could say python = "sudo -n python3")'] = None
        if lacking:
            what = ", ".join(lacking)
            self._remarks[f"{target} (Python {found.python}) lacks what cannot be sent there: {what}"] = None

    def prepare(self, kernel: Kernel, machine: Machine) -> None:
        """Nothing is made."""

    def command_line(self, kernel: Kernel, machine: Machine, run_dir: Path) -> list[str]:
        """The command that ``launch`` would start."""
        return self._target(kernel).command(str(run_dir / "ssh.log"))

    def _target(self, kernel: Kernel) -> Target:
        if kernel.name not in self._targets:
            raise ConfigError(f"{kernel.name} is no machine over SSH", hint='its row would say ssh = "user@host"')
        return self._targets[kernel.name]

    @contextmanager
    def launch(
        self, kernel: Kernel, machine: Machine, run_dir: Path, deadline: Deadline, *, checkpointable: bool = False
    ) -> Iterator[SshVm]:
        """Connect and start the agent. Call it from the thread that keeps the ``with``."""
        with _connected(self._target(kernel), run_dir) as vm:
            found = vm.greet(deadline.sooner(CONNECT_SECONDS))
            vm.take(self._config.requirements, found, deadline)
            yield vm
            vm.leave()

    def checkpoint(self, vm: Vm, deadline: Deadline) -> Checkpoint:
        """Nobody here can freeze that machine."""
        raise SnapshotError("a machine over SSH cannot be frozen", hint="--kernel-backend qemu")

    def restore(self, checkpoint: Checkpoint, run_dir: Path, deadline: Deadline) -> AbstractContextManager[Vm]:
        """Nor bring it back."""
        raise SnapshotError("a machine over SSH cannot be restored", hint="--kernel-backend qemu")


@contextmanager
def _connected(target: Target, run_dir: Path) -> Iterator[SshVm]:
    """A connection whose console log is in ``run_dir``."""
    watch = Watch(free_path(run_dir, "console"))
    try:
        with connected(target, watch, SshVm) as vm:
            watch.started()
            yield vm
    finally:
        watch.started()
        watch.join(5.0)
