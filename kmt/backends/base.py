"""What a backend is: something that turns a fetched kernel into a running machine with an agent in it.

A new backend is one file beside this one and one line in ``kmt/backends/__init__.py``; ``tests/contract/`` must
pass unchanged. The agent's side of the channel is ``kmt/guest/agent.py``, the host's ``kmt/run/link.py``.
"""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

from kmt.deadline import Deadline
from kmt.errors import VmError
from kmt.kernel import Kernel
from kmt.matrix import Row


@dataclass(frozen=True)
class Machine:
    """What tests ask of a guest's hardware. ``compiler``: attach the read-only disk with clang and llvm."""

    cpus: int = 1
    memory_mib: int = 1024
    compiler: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A machine at rest: ``ram`` is a descriptor of its memory, ``state`` that of its devices.

    One made by ``Backend.checkpoint`` owns its memory, a file without a name: it goes with the ``with``, or with this
    process, however that ends. Guests that run from it go on.
    """

    kernel: Kernel
    machine: Machine
    ram: int
    state: bytes
    owned: IO[bytes] | None = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the memory."""
        if self.owned is not None:
            self.owned.close()


class Vm(Protocol):
    """A running guest. It ends with the ``with`` that launched it, or with this process, whichever is first."""

    accelerator: str
    """``kvm``, ``tcg``, ``none`` (no machine of ours: the host itself, one over SSH) or ``simulated``."""
    channel: socket.socket
    """A stream to the guest's agent (frames of ``kmt/guest/wire.py``); the agent speaks first."""
    pid: int
    """The machine's process on this host; of a machine elsewhere, that of the connection."""
    console: Path
    """The log of everything the machine printed; grows while it runs."""
    restored: bool
    """It came out of a snapshot or checkpoint; False: it booted."""

    def death(self) -> VmError | None:
        """None while the machine runs; else why it does not (panic, oops, lost), with the console's words."""
        ...

    def remarks(self) -> list[str]:
        """What the kernel itself said that explains a guest that hangs: stalls, memory, oopses; often nothing."""
        ...

    @property
    def phase(self) -> str:
        """Where it is: ``starting``, ``booting``, ``ready``, or how it ended."""
        ...


class Backend(Protocol):
    """One way to run kernels."""

    name: str
    """The word after ``--kernel-backend``."""
    simulated: bool
    shares_files: bool
    """True when its guests see the host's files at their own paths, so that no tree has to travel."""

    @property
    def notice(self) -> str:
        """One line that people should see (why guests are emulated, say); empty when there is none."""
        ...

    @property
    def pristine(self) -> Backend | None:
        """Whose guests are kernels that nobody has touched: its own, another's, or (None) there can be none."""
        ...

    @property
    def checkpoints(self) -> bool:
        """Guests launched ``checkpointable`` can be frozen (unless they had to boot: ``Vm.restored``)."""
        ...

    @property
    def deadline_factor(self) -> float:
        """How much longer than with hardware virtualisation things take here; every timeout is scaled by it."""
        ...

    def prepare(self, kernel: Kernel, machine: Machine) -> None:
        """Make what ``launch`` needs (image, disks, a warm snapshot, the accelerator); long only the first time."""
        ...

    def launch(
        self, kernel: Kernel, machine: Machine, run_dir: Path, deadline: Deadline, *, checkpointable: bool = False
    ) -> AbstractContextManager[Vm]:
        """Start the machine: the agent's first frame, HELLO, says that it is up.

        From a warm snapshot where the backend has them, and then it has spoken; else it boots, and this returns at
        once. ``checkpointable``: it will be given to ``checkpoint``.

        ``run_dir`` exists, is private to this kernel of this run, and keeps the console log.
        Raises ``VmNeverStartedError`` or ``ImageError``.
        """
        ...

    def checkpoint(self, vm: Vm, deadline: Deadline) -> Checkpoint:
        """Freeze a guest that was launched ``checkpointable``; its process ends. Raises ``SnapshotError``.

        Freeze it when it is still: after WARM, or after a COLLECTED that says ``paused``.
        """
        ...

    def restore(self, checkpoint: Checkpoint, run_dir: Path, deadline: Deadline) -> AbstractContextManager[Vm]:
        """A guest that goes on from there, as often and as many at once as wanted; its agent says HELLO again.

        Raises ``SnapshotError``.
        """
        ...

    def command_line(self, kernel: Kernel, machine: Machine, run_dir: Path) -> list[str]:
        """What ``--dry-run`` prints: the command that ``launch`` would start."""
        ...


@runtime_checkable
class HasKernels(Protocol):
    """A backend whose machines run kernels already, some at least: nothing is fetched for them."""

    def kernel(self, row: Row) -> Kernel | None:
        """The kernel that runs on the row's machine, without files; None: it has none, one is to be fetched.

        Raises ConfigError or VmError.
        """
        ...
