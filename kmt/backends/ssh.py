"""The backend ``ssh``: a machine that somebody else manages, over ssh, with the kernel that runs there.

All it needs is a Python; the agent travels there each time and leaves nothing. The same frames as everywhere go
over ssh's standard input and output. Such a machine was there before and will be after: nothing of it is reset,
and no test gets a kernel that nobody has touched. What people see of it: ``docs/backends.md``; what is said to ssh
and what it says back: ``ssh_words.py``; what travels: ``ssh_load.py``; the other side: ``kmt/guest/far.py``.
"""

from __future__ import annotations

import re
import select
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from kmt import proc
from kmt.backends.base import Checkpoint, Machine, Vm
from kmt.backends.ssh_load import cargo, choose, program
from kmt.backends.ssh_words import ENVIRONMENT, MARK, Facts, Target, facts, trouble
from kmt.backends.stopping import stop
from kmt.boot.consolelog import Watch, free_path
from kmt.config import Config
from kmt.deadline import Deadline
from kmt.errors import ConfigError, SnapshotError, VmError, VmNeverStartedError, VmTimedOutError
from kmt.guest import far
from kmt.kernel import Kernel
from kmt.matrix import Row

CONNECT_SECONDS = 30.0
"""From ssh's start to the line of facts."""
NOISE = 64 * 1024
"""Bytes that login scripts may print before it."""
LONGEST = 1 << 20
"""Bytes of the line of facts, which names all packages there."""
_BEGIN = re.compile(rb"^" + MARK, re.MULTILINE)
_FACTS = re.compile(_BEGIN.pattern + rb"(.*)\n", re.MULTILINE)


class SshVm:
    """A connection with an agent at its end; see ``kmt.backends.base.Vm``. ``pid`` is ssh's."""

    accelerator = "none"
    restored = False

    def __init__(
        self, target: Target, process: subprocess.Popen[bytes], channel: socket.socket, watch: Watch, said: Path
    ) -> None:
        self.channel = channel
        self.console = watch.path
        self.pid = process.pid
        self._target, self._process, self._watch, self._said = target, process, watch, said

    def death(self) -> VmError | None:
        """None while ssh runs."""
        status = self._process.poll()
        if status is None:
            return None
        self._watch.join(2.0)
        said, console = (
            path.read_text(errors="replace") if path.is_file() else "" for path in (self._said, self.console)
        )
        return trouble(self._target, said, console, status, began=self._watch.console.ready)

    def remarks(self) -> list[str]:
        """Nothing: that machine's kernel speaks to its own log."""
        return []

    @property
    def phase(self) -> str:
        """``booting`` while the connection is made, then ``ready`` or ``ended``."""
        if self._process.poll() is not None:
            return "ended"
        return "ready" if self._watch.console.ready else "booting"

    def greet(self, deadline: Deadline) -> Facts:
        """Send the first program; what it says of its machine. Raises VmError."""
        self.send(program(), deadline)
        heard = bytearray()
        while (found := _FACTS.search(heard)) is None:
            begin = _BEGIN.search(heard)
            if (begin.start() if begin else len(heard)) > NOISE:
                raise VmNeverStartedError(
                    f"{self._target} prints {NOISE} bytes and more when somebody logs in, and no agent starts",
                    hint="its login scripts must be still when there is no terminal",
                )
            if len(heard) > NOISE + LONGEST:
                raise VmNeverStartedError(f"what {self._target} says of itself has no end")
            if deadline.passed():
                raise VmTimedOutError(f"{self._target} did not start an agent within {deadline.seconds:.0f} s")
            if select.select([self.channel], [], [], 0.1)[0]:
                heard += self._more()
        return facts(found[1], self._target)

    def _more(self) -> bytes:
        try:
            data = self.channel.recv(1 << 16)
        except ConnectionResetError:  # it ended without having read what we sent
            data = b""
        if not data:
            raise self.ended()
        return data

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Send all of it. Raises VmError where the other side is gone, or takes nothing until the deadline."""
        self.channel.settimeout(max(0.1, deadline.remaining()))
        try:
            self.channel.sendall(data)
        except TimeoutError:
            raise VmTimedOutError(f"{self._target} did not take the agent within {deadline.seconds:.0f} s") from None
        except OSError:
            raise self.ended() from None
        finally:
            self.channel.settimeout(None)

    def leave(self) -> None:
        """Wait for the other side to have cleaned up and ended by itself, so that the next one there has it alone."""
        with suppress(OSError):  # it has ended already
            self.channel.shutdown(socket.SHUT_WR)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(far.GRACE + far.PATIENCE)

    def ended(self) -> VmError:
        """Why; it may need a moment to end."""
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            stop(self._process)
        return self.death() or VmNeverStartedError(f"{self._target} closed the connection")


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
            load = cargo(choose(self._config.requirements, found)[0])
            vm.send(b"%d\n" % len(load) + load, deadline)
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
    """The connection; it ends with the ``with``, and the agent at its other end with it."""
    if proc.which("ssh") is None:
        raise VmNeverStartedError("ssh is not installed", hint="apt-get install openssh-client")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        watch = Watch(free_path(run_dir, "console"))
        said = free_path(run_dir, "ssh")
        try:
            command, end = target.command(str(said)), theirs.fileno()
            process = proc.spawn(
                command, stdin=end, stdout=end, stderr=watch.writing, env=ENVIRONMENT, own_session=True
            )
        finally:
            watch.started()
        theirs.close()
        try:
            yield SshVm(target, process, ours, watch, said)
        finally:
            stop(process)
            watch.join(5.0)
