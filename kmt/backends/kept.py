"""Guests of another backend that a keeper lends: they are there at once, and stay when the run is over.

What earlier runs did to a kept kernel is still there (programs, pinned maps, sysctls); only the project's tree and
the artefacts are made new. Tests that ask for a pristine kernel get one of the other backend's own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kmt import errors
from kmt.backends.base import Backend, Checkpoint, Machine, Vm
from kmt.config import Config
from kmt.deadline import Deadline
from kmt.errors import ConfigError, VmError, VmLostError
from kmt.guest.wire import Kind, pack
from kmt.hints import task
from kmt.keeper import client
from kmt.keeper.client import Lease
from kmt.keeper.messages import Wanted
from kmt.kernel import Kernel
from kmt.paths import digest
from kmt.runs import Seen


class KeptVm:
    """A leased guest; see ``kmt.backends.base.Vm``."""

    stays = True

    def __init__(self, leased: Lease) -> None:
        about = leased.about
        self.accelerator = str(about["accelerator"])
        self.console = Path(about["console"])
        self.pid = int(about["pid"])
        self.restored = True
        self.channel = leased.channel
        self._lease = leased

    def death(self) -> VmError | None:
        """What its keeper says of it."""
        told = self._lease.death()
        if told is None:
            return None
        kind = getattr(errors, str(told.get("kind")), VmLostError)
        made: Any = kind if isinstance(kind, type) and issubclass(kind, VmError) else VmLostError
        found: VmError = made(str(told.get("message")), hint=str(told.get("hint", "")))
        return found

    def remarks(self) -> list[str]:
        """Nothing: its console is read by its keeper."""
        return []

    @property
    def phase(self) -> str:
        """``ready`` or ``ended``."""
        return "ready" if self._lease.death() is None else "ended"


class KeptBackend:
    """Leases what ``inner`` would launch from the keeper that ``keeper()`` finds; see ``kmt.backends.base.Backend``."""

    def __init__(self, inner: Backend, keeper: Callable[[], Seen], accelerator: str, settings: Config) -> None:
        self.inner, self._keeper, self._accelerator, self._settings = inner, keeper, accelerator, settings
        self._stay = ""
        self.name, self.simulated, self.shares_files = inner.name, inner.simulated, inner.shares_files

    @property
    def notice(self) -> str:
        """The inner backend's, and that guests stay."""
        return "; ".join(filter(None, (self.inner.notice, self._stay)))

    @property
    def pristine(self) -> Backend | None:
        """The inner backend's: kept guests remember their tests."""
        return self.inner.pristine

    @property
    def deadline_factor(self) -> float:
        """The inner backend's."""
        return self.inner.deadline_factor

    def prepare(self, kernel: Kernel, machine: Machine) -> None:
        """As the inner backend does: what is missing is made here, where people see the progress."""
        self.inner.prepare(kernel, machine)

    def command_line(self, kernel: Kernel, machine: Machine, run_dir: Path) -> list[str]:
        """The inner backend's."""
        return self.inner.command_line(kernel, machine, run_dir)

    @property
    def checkpoints(self) -> bool:
        """The inner backend's: what is to be frozen is launched by it, not lent."""
        return self.inner.checkpoints

    def checkpoint(self, vm: Vm, deadline: Deadline) -> Checkpoint:
        """The inner backend's."""
        return self.inner.checkpoint(vm, deadline)

    def restore(self, checkpoint: Checkpoint, run_dir: Path, deadline: Deadline) -> AbstractContextManager[Vm]:
        """The inner backend's."""
        return self.inner.restore(checkpoint, run_dir, deadline)

    @contextmanager
    def launch(
        self, kernel: Kernel, machine: Machine, run_dir: Path, deadline: Deadline, *, checkpointable: bool = False
    ) -> Iterator[Vm]:
        """A kept guest, whose agent says HELLO anew; one of its own where it is to be frozen."""
        if checkpointable:
            with self.inner.launch(kernel, machine, run_dir, deadline, checkpointable=True) as vm:
                yield vm
            return
        keeper = self._keeper()
        self._stay = f"guests stay with run {keeper.record.id}; {task('stop')} {keeper.record.id} ends them"
        with client.lease(keeper, self._wanted(kernel, machine)) as leased:
            leased.channel.setblocking(True)
            if not self.shares_files:  # this machine may have been suspended since its last lease
                leased.channel.sendall(pack(Kind.CLOCK, {"now": time.time()}))
            leased.channel.sendall(pack(Kind.HELLO))
            yield KeptVm(leased)

    def _wanted(self, kernel: Kernel, machine: Machine) -> Wanted:
        """The image and the disks are in the command line, by names that stand for what is in them."""
        settings = self._settings
        words = self.inner.command_line(kernel, machine, Path())
        identity = digest(json.dumps([words, settings.packages, settings.requirements, settings.dump]))
        return Wanted(kernel, machine, self._accelerator, self.name, identity, settings)


def kept(inner: Backend, config: Config, accelerator: str, minutes: float) -> KeptBackend:
    """``inner`` by way of the project's keeper, which is started when there is none (KeeperError)."""
    if minutes <= 0:
        raise ConfigError(f"--kernel-keep must be more than 0 minutes, not {minutes:g}")
    return KeptBackend(inner, partial(client.ensure, config.root, 60 * minutes), accelerator, config)
