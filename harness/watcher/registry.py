"""The FileRegistry: which processes hold which library files, and the hooks that live as long as one of them does.

A thin shell over ``registry_core`` (whose docstring has the laws): it looks files up (``stat``) and runs callbacks,
both outside its lock. So a callback may call the registry again, and one that hangs holds up nobody but its own
file. Further laws:

- identity is device and inode: however many paths, links and mount namespaces, one registration;
- errors of ``register`` in this order: a missing callback, the stat's own, stopped, blocked, the activation's own;
- what is no ``Exception`` (a KeyboardInterrupt) comes out of the call that runs the callback, after all it has to run;
- after a failed activation the deactivation runs once, to clean up, and the file is blocked, unless it has gone (its
  path names nothing now, or another file);
- after ``clear`` every file that was active has been deactivated once, and nothing is registered ever after.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

from harness.telemetry import DEFAULT, Registry
from harness.watcher.blocklist import Blocklist
from harness.watcher.errors import CallbackMissingError
from harness.watcher.identity import FilePath, PathIdentifier, host_path, identity
from harness.watcher.registry_core import Core, Epoch, Phase, Registration
from harness.watcher.rules import Callback

__all__ = ["FileRegistry", "Registration", "TracedFile"]

Runner = Callable[[Callable[[], None]], bool]
"""Has a job run by another thread; False if it does not take it (then it is run here)."""
Registered = tuple[str, Callback, Callback]
"""A file's path, as its first process names it, and its callbacks."""

ALREADY_REGISTERED = Registration.ALREADY_REGISTERED

_log = logging.getLogger(__name__)
_GONE = (FileNotFoundError, NotADirectoryError, ProcessLookupError)


class TracedFile(NamedTuple):
    """A registered file, as the debug endpoint shows it."""

    id: PathIdentifier
    path: str
    pids: tuple[int, ...]


class FileRegistry:
    """See the module. ``program`` names the registry in its metrics."""

    def __init__(
        self,
        program: str,
        *,
        proc_root: str = "/proc",
        blocklist: Blocklist | None = None,
        metrics: Registry = DEFAULT,
    ) -> None:
        self.program = program
        self.blocklist = Blocklist() if blocklist is None else blocklist
        self._proc_root = proc_root
        self._core = Core(program, self.blocklist, metrics)
        self._lock = self._core.lock

    def register(
        self,
        path: str,
        pid: int,
        activate: Callback | None,
        deactivate: Callback | None,
        *,
        seen_at: str = "",
        run: Runner | None = None,
    ) -> Registration:
        """Count process ``pid`` as a holder of ``path``, as it names it; the first holder's call runs ``activate``.

        Raises what the module says. The callbacks of a file are those of the call that began its epoch. ``seen_at``:
        where the host sees the file, if not at the path through the process's root. ``run``: who runs the callbacks;
        a registration that begins an epoch is then PENDING, and what its activation raises is only counted.
        """
        if activate is None or deactivate is None:
            raise CallbackMissingError(f"{path}: a registration needs both an activation and a deactivation")
        where = seen_at or host_path(self._proc_root, pid, path)
        id = identity(where)
        with self._lock:
            if self._core.share(id, pid):
                return ALREADY_REGISTERED
            file = FilePath(PathIdentifier(*id), where, pid)
            came_to = self._core.register(file, path, activate, deactivate)
        if isinstance(came_to, Registration):
            return came_to
        epoch = came_to
        if run is not None and run(functools.partial(self._drive_all, [epoch])):
            return Registration.PENDING
        error = self._drive(epoch)
        if error is not None and run is None:
            raise error
        return Registration.REGISTERED

    def unregister(self, pid: int, *, run: Runner | None = None) -> None:
        """Forget a process; files it was the last holder of are deactivated. A callback's error is only counted."""
        with self._lock:
            leaving = self._core.unregister(pid)
        self._drive_all(leaving, run)

    def release(self, keep: Callable[[Registered], bool], *, run: Runner | None = None) -> None:
        """Forget every file for which ``keep`` (called under the lock: it must not call back) does not say True."""
        with self._lock:
            leaving = self._core.release(lambda epoch: keep((epoch.sample_path, epoch.activate, epoch.deactivate)))
        self._drive_all(leaving, run)

    def clear(self, *, run: Runner | None = None) -> None:
        """Deactivate everything and stop for good; the second time nothing happens."""
        with self._lock:
            leaving = self._core.clear()
        self._drive_all(leaving, run)

    def registered_processes(self) -> set[int]:
        """The processes that hold a file now."""
        with self._lock:
            return set(self._core.by_pid)

    def traced(self) -> list[TracedFile]:
        """The files that are active now, each with its processes."""
        with self._lock:
            return [
                TracedFile(epoch.file.id, epoch.sample_path, tuple(sorted(epoch.pids)))
                for epoch in self._core.files.values()
                if epoch.phase is Phase.ACTIVE
            ]

    @property
    def stopped(self) -> bool:
        """Has it been cleared?"""
        return self._core.stopped

    @property
    def in_flight(self) -> int:
        """Callbacks that are due or running."""
        return self._core.in_flight

    def _drive_all(self, epochs: list[Epoch], run: Runner | None = None) -> None:
        """Drive every one of them, whatever comes out of the others; then raise the first that is no ``Exception``."""
        fatal: BaseException | None = None
        for epoch in epochs:
            if run is not None and run(functools.partial(self._drive_all, [epoch])):
                continue
            try:
                self._drive(epoch)
            except BaseException as error:
                fatal = fatal or error
        if fatal is not None:
            raise fatal

    def _drive(self, first: Epoch) -> BaseException | None:
        """Run the callbacks that are due for one file until none is; give the error of ``first``'s activation.

        What is no ``Exception`` (a KeyboardInterrupt) is raised once the book-keeping is done.
        """
        error: BaseException | None = None
        fatal: BaseException | None = None
        epoch: Epoch | None = first
        while epoch is not None:
            if epoch.phase is Phase.ACTIVATING:
                raised = _call(epoch.activate, epoch.file)
                error = raised if epoch is first else error
                block = isinstance(raised, Exception) and not _gone(raised, epoch.file)
                with self._lock:
                    if raised is not None:
                        self._core.failed(epoch, block=block)
                    elif not self._core.activated(epoch):
                        epoch = None
            else:
                raised = _call(epoch.deactivate, FilePath(epoch.file.id))
                with self._lock:
                    epoch = self._core.deactivated(epoch, failed=raised is not None)
            if raised is not None and not isinstance(raised, Exception):
                fatal = fatal or raised
        if fatal is not None:
            raise fatal
        return error


def _call(callback: Callback, file: FilePath) -> BaseException | None:
    """Run a callback; give what it raised."""
    try:
        callback(file)
    except BaseException as error:
        _log.debug("callback for %s failed", file, exc_info=True)
        return error
    return None


def _gone(error: BaseException | None, file: FilePath) -> bool:
    """Is the file, or the process it was seen through, no longer there? Says the error, or a cause, or a new look."""
    while error is not None:
        if isinstance(error, _GONE):
            return True
        error = error.__cause__
    try:
        return PathIdentifier.of_file(file.host_path) != file.id
    except _GONE:
        return True
    except OSError:
        return False
