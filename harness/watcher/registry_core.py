"""(pure) The FileRegistry's book-keeping: events in, the callbacks to run out. It runs none and knows no file.

An epoch of a file begins with its activation and ends with its deactivation. A file is in one phase: ACTIVATING and
LEAVING while the callback of that name is due or running, ACTIVE between them. What arrives meanwhile never waits:
a process that registers a file in ACTIVATING shares its fate; one that comes in LEAVING is put into the next epoch,
which begins when the deactivation is done; an epoch whose last process has gone before its activation is done is
deactivated right after. Where an activation finds its file gone (it was seen through a process that has ended) and
others had joined, their next epoch begins after the clean-up. An epoch that is released before it is active is doomed:
it is deactivated right after its activation, whose failure blocks nothing, and who comes meanwhile is in the next one.
Laws, over any interleaving of events:

- a file's callbacks never overlap; each epoch has exactly one activation and exactly one deactivation, failed ones
  included;
- ``by_pid`` has no empty set, and its ids are those that some epoch (next ones included) counts the process in;
- an id is never both blocked and ACTIVE;
- registered - unregistered is the number of ACTIVE files.

Not thread-safe: the shell (``registry``) calls every method under ``lock`` and runs callbacks outside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from harness.telemetry.metrics import MetricGroup, Registry
from harness.watcher.blocklist import Blocklist
from harness.watcher.errors import AlreadyStoppedError, PathBlockedError, PidNotRegisteredError
from harness.watcher.identity import FilePath
from harness.watcher.rules import Callback


class Phase(Enum):
    """Where an epoch stands."""

    WAITING = auto()
    ACTIVATING = auto()
    ACTIVE = auto()
    LEAVING = auto()


_ACTIVE = Phase.ACTIVE
"""An enumeration's member is looked up in ten times what a global takes (before 3.12), and this one often."""


class Registration(Enum):
    """What a successful registration came to."""

    REGISTERED = auto()
    """This call activated the file."""
    ALREADY_REGISTERED = auto()
    """The file was active; the process is counted in."""
    PENDING = auto()
    """Another call's callback is running for this file; the process shares in what comes of it."""


@dataclass(slots=True, eq=False)
class Epoch:
    """One life of a registered file."""

    file: FilePath
    sample_path: str
    """The path as the first process names it."""
    activate: Callback
    deactivate: Callback
    pids: set[int] = field(default_factory=set)
    phase: Phase = Phase.WAITING
    joined: dict[int, FilePath] = field(default_factory=dict)
    """How those see the file who came before it was active."""
    next: Epoch | None = None
    doomed: bool = False
    """Released before it was active: who comes now gets an epoch of his own."""


class Core:
    """See the module. ``files`` has one epoch by id, ``by_pid`` the ids of each process."""

    def __init__(self, program: str, blocklist: Blocklist, metrics: Registry) -> None:
        self.blocklist = blocklist
        self.stopped = False
        self.files: dict[tuple[int, int], Epoch] = {}
        self.by_pid: dict[int, set[tuple[int, int]]] = {}
        self.active = 0
        self.in_flight = 0
        """Callbacks that are due or running."""
        group = MetricGroup("usm.file_registry", f"program:{program}", "_prometheus", registry=metrics)
        self._total_files = group.gauge("total_files", help="Files that are active now.")
        self._total_pids = group.gauge("total_pids", help="Processes that hold a file now.")
        self._hook_failed = group.counter("hook_failed", help="Activations that failed and had their file blocked.")
        self._registered = group.counter("registered", help="Files activated.")
        self._already_registered = group.counter("already_registered", help="Registrations of a file that was known.")
        self.lock = self._already_registered.lock
        """To be held by who calls any method; registries of one name share their metrics, and so this."""
        self._blocked = group.counter("blocked", help="Registrations refused because the file is blocked.")
        self._unregistered = group.counter("unregistered", help="Files whose last process has gone.")
        self._unregister_failed_cb = group.counter("unregister_failed_cb", help="Deactivations that raised.")

    def share(self, id: tuple[int, int], pid: int) -> bool:
        """A process has a file open; was it ACTIVE, so that counting the process in was all there is to do?

        (Most registrations end here: a bare tuple, equal to its PathIdentifier, is made in a third of the time.)
        """
        epoch = self.files.get(id)
        if epoch is None or epoch.phase is not _ACTIVE:
            return False
        if pid not in epoch.pids:
            epoch.pids.add(pid)
            held = self.by_pid.get(pid)
            if held is not None:
                held.add(id)
            else:
                self.by_pid[pid] = {id}
                self._total_pids.set(len(self.by_pid))
        self._already_registered.bump()
        return True

    def register(self, file: FilePath, path: str, activate: Callback, deactivate: Callback) -> Epoch | Registration:
        """A process has a file open. Gives the epoch whose activation the caller must run, or what it came to."""
        if self.stopped:
            raise AlreadyStoppedError("the file registry has been cleared")
        id, _, pid = file
        if self.share(id, pid):
            return Registration.ALREADY_REGISTERED
        if self.blocklist.sample_path(id) is not None:
            self._blocked.add()
            raise PathBlockedError(f"{file.host_path}: its activation failed before ({id})")
        epoch = self.files.get(id)
        if epoch is None or (epoch.next is None and (epoch.doomed or epoch.phase is Phase.LEAVING)):
            fresh = Epoch(file, path, activate, deactivate)
            self._count_in(fresh, pid)
            if epoch is not None:
                epoch.next = fresh
                return Registration.PENDING
            self.files[id] = fresh
            return self._begin(fresh)
        self._already_registered.bump()
        epoch = epoch.next or epoch
        self._count_in(epoch, pid)
        epoch.joined[pid] = file
        return Registration.PENDING

    def activated(self, epoch: Epoch) -> bool:
        """An activation worked. True if the epoch is over already and the caller must run its deactivation."""
        epoch.joined.clear()
        self._registered.add()
        if self.stopped or epoch.doomed or not epoch.pids:
            epoch.phase = Phase.LEAVING
            self._unregistered.add()
            return True
        epoch.phase = Phase.ACTIVE
        self.in_flight -= 1
        self.active += 1
        self._total_files.set(self.active)
        return False

    def failed(self, epoch: Epoch, *, block: bool) -> None:
        """An activation did not work; the caller must run the deactivation, to clean up.

        With ``block`` the file is at fault; without, it had gone, and those who see it another way get an epoch.
        """
        epoch.phase = Phase.LEAVING
        if block and not epoch.doomed:
            self.blocklist.add(epoch.file.id, epoch.file.host_path)
            self._hook_failed.add()
        elif not block:
            others = (epoch.pids & epoch.joined.keys()) - {epoch.file.pid}
            if others:
                epoch.next = replace(epoch, pids=others, phase=Phase.WAITING, joined=dict(epoch.joined))
                epoch.pids -= others
        self._count_all_out(epoch)
        self._total_pids.set(len(self.by_pid))

    def deactivated(self, epoch: Epoch, *, failed: bool) -> Epoch | None:
        """A deactivation is done, well or not. Gives the next epoch if the caller must run its activation."""
        self.in_flight -= 1
        if failed:
            self._unregister_failed_cb.add()
        id = epoch.file.id
        if self.files.get(id) is not epoch:
            return None
        if epoch.next is None:
            del self.files[id]
            return None
        self.files[id] = epoch.next
        return self._begin(epoch.next)

    def unregister(self, pid: int) -> list[Epoch]:
        """A process has ended. Gives the epochs whose deactivation the caller must run."""
        if self.stopped:
            raise AlreadyStoppedError("the file registry has been cleared")
        ids = self.by_pid.pop(pid, None)
        if ids is None:
            raise PidNotRegisteredError(f"process {pid} holds no registered file")
        leaving = []
        for id in ids:
            epoch = self.files[id]
            if epoch.next is not None:
                epoch.next.pids.discard(pid)
                if not epoch.next.pids:
                    epoch.next = None
                continue
            epoch.pids.discard(pid)
            if not epoch.pids and epoch.phase is Phase.ACTIVE:
                self._leave(epoch)
                leaving.append(epoch)
        self._total_pids.set(len(self.by_pid))
        return leaving

    def release(self, keep: Callable[[Epoch], bool]) -> list[Epoch]:
        """Forget the files whose epochs are not to be kept. Gives those whose deactivation the caller must run."""
        leaving = []
        for epoch in self.files.values():
            if epoch.next is not None and not keep(epoch.next):
                self._count_all_out(epoch.next)
                epoch.next = None
            if epoch.phase is Phase.LEAVING or epoch.doomed or keep(epoch):
                continue
            self._count_all_out(epoch)
            if epoch.phase is Phase.ACTIVE:
                self._leave(epoch)
                leaving.append(epoch)
            else:
                epoch.doomed = True
        self._total_pids.set(len(self.by_pid))
        return leaving

    def clear(self) -> list[Epoch]:
        """Stop for good. Gives every ACTIVE epoch, for its deactivation; those in flight end with their callback."""
        if self.stopped:
            return []
        self.stopped = True
        leaving = [epoch for epoch in self.files.values() if epoch.phase is Phase.ACTIVE]
        for epoch in leaving:
            self._leave(epoch)
        self.files.clear()
        self.by_pid.clear()
        self._total_pids.set(0)
        return leaving

    def _begin(self, epoch: Epoch) -> Epoch:
        if epoch.file.pid not in epoch.pids:
            pid = min(epoch.pids)
            epoch.file = epoch.joined[pid]
        epoch.phase = Phase.ACTIVATING
        self.in_flight += 1
        return epoch

    def _leave(self, epoch: Epoch) -> None:
        epoch.phase = Phase.LEAVING
        self.in_flight += 1
        self.active -= 1
        self._unregistered.add()
        self._total_files.set(self.active)

    def _count_in(self, epoch: Epoch, pid: int) -> None:
        if pid not in epoch.pids:
            epoch.pids.add(pid)
            self.by_pid.setdefault(pid, set()).add(epoch.file.id)
            self._total_pids.set(len(self.by_pid))

    def _count_all_out(self, epoch: Epoch) -> None:
        for pid in epoch.pids:
            ids = self.by_pid.get(pid)
            if ids is not None:
                ids.discard(epoch.file.id)
                if not ids:
                    del self.by_pid[pid]
        epoch.pids.clear()
