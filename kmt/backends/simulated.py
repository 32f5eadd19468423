"""The backend ``simulated``: no machine; tests that take the fixture ``kernel`` run here, against kernels as data.

The agent is a process beside us, as with ``host``; what it says a kernel is comes from a profile, recorded or derived
(``kmt/simulator``), and the process has given up what could touch this machine's own kernel before the first test
(``kmt/simulator/session.py``). Which tests those are is ``kmt/plugin``'s to say.
"""

from __future__ import annotations

import functools
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kmt.backends import qemu_program
from kmt.backends.base import Machine
from kmt.backends.host import HostBackend, HostVm
from kmt.deadline import Deadline
from kmt.errors import CannotTellError, ConfigError, KmtError, VmNeverStartedError
from kmt.kernel import Kernel
from kmt.matrix import Row

NAME = "simulated"
MACHINES = ("x86_64", "aarch64")
"""Those on which tests can be kept away from the kernel that runs there (``kmt/simulator/fence.py``)."""
SESSION = "kmt.simulator.session"
"""The pytest plugin of such a process."""


class SimulatedBackend(HostBackend):
    """Runs the agent here, for a simulated kernel; see ``kmt.backends.base.Backend``."""

    name = NAME
    simulated = True

    @property
    def pristine(self) -> SimulatedBackend:
        """This one: each process has a kernel of its own."""
        return self

    def kernel(self, row: Row) -> Kernel:
        """What is simulated for it."""
        return kernel(row)

    @contextmanager
    def launch(
        self, kernel: Kernel, machine: Machine, run_dir: Path, deadline: Deadline, *, checkpointable: bool = False
    ) -> Iterator[HostVm]:
        """Start the agent. Call it from the thread that keeps the ``with``."""
        with super().launch(kernel, machine, run_dir, deadline) as vm:
            vm.accelerator = NAME
            yield vm


def kernel(row: Row) -> Kernel:
    """What is simulated for a row. Raises CannotTellError where too little is known of its series, or ProfileError;
    ConfigError on a machine from whose own kernel the tests could not be kept away."""
    if platform.machine() not in MACHINES:
        raise ConfigError(
            f"nothing is simulated on a machine that is {platform.machine()}: tests could reach its own kernel",
            hint=f"use one that is {' or '.join(MACHINES)}, or --kernel-backend qemu",
        )
    if not row.series:
        raise CannotTellError(f"{row.name} names no series, and only versions can be simulated")
    release, origin = _described(row.series)
    return Kernel(row.name, release, Path("/"), None, None, (), None, digest="", origin=origin)


@functools.cache
def _described(series: str) -> tuple[str, str]:
    """Release and origin. What it takes is not read at the top: runs in machines need none of it."""
    from kmt.simulator import gates, profile
    from kmt.simulator.kernel import simulated

    version, table, recorded = gates.series(series), gates.load(), profile.recorded()
    first = min(gate.since.version for gate in table.gates.values() if gate.since is not None)
    last = max(map(gates.series, recorded))
    if version[1] > table.last_minor.get(version[0], version[1]):
        raise CannotTellError(
            f"there is no Linux {series}", hint=f"{version[0]}.{table.last_minor[version[0]]} is the last"
        )
    if not first <= version <= last:
        known = f"what is known goes from {gates.spelled(first)} to {gates.spelled(last)}"
        raise CannotTellError(
            f"Linux {series} cannot be simulated: {known}", hint="docs/simulator.md says how to record one"
        )
    with tempfile.TemporaryDirectory(prefix="kmt-") as room:
        release = simulated(series, Path(room)).release
    return release, "a recorded profile" if series in recorded else "derived from profiles and gates"


def told(kernel: Kernel) -> dict[str, Any]:
    """What tests in such a process are told of their kernel, besides what all are told."""
    return {"release": kernel.release, "plugin": SESSION}


def no_machine() -> str:
    """Why no machine can be started here; empty where it can."""
    try:
        qemu_program.find()
    except VmNeverStartedError as error:
        return str(error)
    return ""


def known(row: Row) -> str:
    """By what it would be simulated: ``recorded``, ``derived``, or a dash."""
    from kmt.simulator.profile import recorded

    if row.series in recorded():
        return "recorded"
    try:
        kernel(row)
    except KmtError:
        return "–"
    return "derived"
