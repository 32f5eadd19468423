"""What a backend is: something that turns a fetched kernel into a running machine with an agent in it.

A new backend is one file beside this one and one line in ``kmt/backends/__init__.py``; ``tests/contract/`` must
pass unchanged. The agent's side of the channel is ``kmt/guest/agent.py``, the host's ``kmt/run/link.py``.
"""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kmt.deadline import Deadline
from kmt.errors import VmError
from kmt.kernel import Kernel


@dataclass(frozen=True)
class Machine:
    """What tests ask of a guest's hardware. ``compiler``: attach the read-only disk with clang and llvm."""

    cpus: int = 1
    memory_mib: int = 1024
    compiler: bool = False


class Vm(Protocol):
    """A running guest. It ends with the ``with`` that launched it, or with this process, whichever is first."""

    accelerator: str
    """``kvm``, ``tcg``, ``none`` (the host itself) or ``simulated``."""
    channel: socket.socket
    """A stream to the guest's agent (frames of ``kmt/guest/wire.py``); the agent speaks first."""
    pid: int
    """The machine's process on this host."""
    console: Path
    """The log of everything the machine printed; grows while it runs."""

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
    def deadline_factor(self) -> float:
        """How much longer than with hardware virtualisation things take here; every timeout is scaled by it."""
        ...

    def prepare(self, kernel: Kernel, machine: Machine) -> None:
        """Make what ``launch`` needs (image, disks, the choice of an accelerator); long only the first time."""
        ...

    def launch(self, kernel: Kernel, machine: Machine, run_dir: Path, deadline: Deadline) -> AbstractContextManager[Vm]:
        """Start the machine and return at once: the agent's first frame says that it is up.

        ``run_dir`` exists, is private to this kernel of this run, and keeps the console log.
        Raises ``VmNeverStartedError`` or ``ImageError``.
        """
        ...

    def command_line(self, kernel: Kernel, machine: Machine, run_dir: Path) -> list[str]:
        """What ``--dry-run`` prints: the command that ``launch`` would start."""
        ...
