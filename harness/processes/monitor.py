"""The process monitor: tells whoever subscribed that a process has begun to run a program, or has come to its end.

Laws:
- nothing blocks: callbacks run in threads of their own behind a bounded queue; what finds no room there is dropped
  and counted, and so is what the kernel dropped (``losses`` counts both: who sees it grow must look for itself);
- an exit is told once the process's last thread has let go of its files (``procfs.is_over``), so that whatever was
  seen through its ``/proc`` entry before can be let go of, and nothing can be seen after;
- after an overrun the source is opened again, as often as it takes, with growing pauses;
- users are counted: the first ``start`` opens it, the ``stop`` of the last of those who ``acquire``\\ d it closes it;
  one stop too many does nothing; after the last one it can be started again;
- exec callbacks that were there at the start also hear of every process that runs already;
- callbacks are in no order, not even two of one process; one that raises is counted, one that hangs holds one thread.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable

from harness.ebpf.settings import BpfSettings
from harness.errors import HarnessError
from harness.kernel_api import KernelApi
from harness.processes import procfs
from harness.processes.errors import OverrunError
from harness.processes.events import Kind, ProcessEvent
from harness.processes.source import Opener, Source, opener
from harness.telemetry import DEFAULT, MetricGroup, Registry
from harness.workers import Workers

Callback = Callable[[int], None]
"""Called with the process's number."""
Unsubscribe = Callable[[], None]

QUEUE = 1000
_TICK = 0.05
"""Seconds between two looks at processes that are about to end."""
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before each attempt to open the source again; the last one stays."""
_PATIENCE = 5.0
"""Seconds that a stop waits for callbacks."""

_log = logging.getLogger(__name__)


class ProcessMonitor:
    """See the module. ``open_source`` opens a source of events; ``queue`` is the room for callbacks that wait."""

    def __init__(
        self,
        open_source: Opener,
        *,
        proc_root: str = "/proc",
        metrics: Registry = DEFAULT,
        queue: int = QUEUE,
        threads: int | None = None,
    ) -> None:
        self._open = open_source
        self._proc_root = proc_root
        self._queue = queue
        self._threads = threads or len(os.sched_getaffinity(0))
        self._lock = threading.RLock()
        self._users = 0
        self._session: _Session | None = None
        self._subscribers: dict[Kind, dict[object, Callback]] = {kind: {} for kind in Kind}
        self._losses = 0
        group = MetricGroup("usm.process.monitor", "_prometheus", registry=metrics)
        self.events = group.counter("events", help="Execs and exits of processes that were heard of.")
        self.seen = {
            Kind.EXEC: group.counter("exec", help="Programs begun by processes."),
            Kind.EXIT: group.counter("exit", help="Ends of processes."),
        }
        self.restarts = group.counter("restart", help="Sources opened again after they had lost events or failed.")
        self.reinit_failed = group.counter("reinit_failed", help="Attempts to open a source again that failed.")
        self.scan_failed = group.counter("process_scan_failed", help="Starts that could not list running processes.")
        self.executed = group.counter("callback_executed", help="Callbacks run, those that raised included.")
        self.callback_failed = group.counter("callback_failed", help="Callbacks that raised.")
        self.full = {
            kind: group.counter(
                f"process_{kind.name.lower()}_channel_is_full",
                help=f"Callbacks for an {kind.name.lower()} dropped because too many were waiting.",
            )
            for kind in Kind
        }

    def acquire(self) -> ProcessMonitor:
        """Count one more user."""
        with self._lock:
            self._users += 1
        return self

    @property
    def users(self) -> int:
        """Those who acquired it and have not stopped it."""
        return self._users

    @property
    def losses(self) -> int:
        """How often something has been lost; it only grows."""
        return self._losses

    @property
    def source(self) -> str:
        """The name of what it hears from; "" while it does not run."""
        session = self._session
        return session.source.name if session else ""

    def subscribe_exec(self, callback: Callback) -> Unsubscribe:
        """Hear of programs begun; the function returned ends it."""
        return self._subscribe(Kind.EXEC, callback)

    def subscribe_exit(self, callback: Callback) -> Unsubscribe:
        """Hear of processes ended; the function returned ends it."""
        return self._subscribe(Kind.EXIT, callback)

    def start(self) -> None:
        """Open the source, if nobody has. ProcessSourceError where there is none: then it does not run."""
        with self._lock:
            if self._session is not None:
                return
            source = self._open()
            session = self._session = _Session(self, source, Workers("process-callback", self._threads, self._queue))
            session.begin()
            if self._subscribers[Kind.EXEC]:
                session.scan()

    def stop(self) -> None:
        """One user less; the last one's stop ends it and forgets all subscriptions."""
        with self._lock:
            self._users = max(0, self._users - 1)
            if self._users:
                return
            session, self._session = self._session, None
            for those in self._subscribers.values():
                those.clear()
        if session is not None:
            session.end()

    def _subscribe(self, kind: Kind, callback: Callback) -> Unsubscribe:
        key = object()
        with self._lock:
            self._subscribers[kind][key] = callback

        def unsubscribe() -> None:
            with self._lock:
                self._subscribers[kind].pop(key, None)

        return unsubscribe

    def _callbacks(self, kind: Kind) -> list[Callback]:
        with self._lock:
            return list(self._subscribers[kind].values())

    def _lost(self, number: int = 1) -> None:
        with self._lock:
            self._losses += number


class _Session:
    """The monitor from a start to the stop of its last user."""

    def __init__(self, monitor: ProcessMonitor, source: Source, workers: Workers) -> None:
        self.source = source
        self._monitor = monitor
        self._workers = workers
        self._over = threading.Event()
        self._ending: dict[int, int] = {}
        """Processes whose main thread has ended while something of them is left, and when they were born."""
        self._thread = threading.Thread(target=self._run, name="process-monitor", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def scan(self) -> None:
        """Tell exec callbacks of those who run already: one job, which no full queue can cut short."""
        callbacks = self._monitor._callbacks(Kind.EXEC)
        try:
            running = procfs.pids(self._monitor._proc_root)
        except OSError as error:
            self._monitor.scan_failed.add()
            _log.warning("process monitor: the running processes cannot be listed: %s", error)
            return

        def tell() -> None:
            for pid in running:
                for callback in callbacks:
                    self._call(callback, pid)

        if not self._workers.submit(tell):
            self._monitor._lost(len(running))

    def end(self) -> None:
        self._over.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self.source.close()
        if not self._workers.stop(_PATIENCE):
            _log.warning("process monitor: a callback has not ended in %g s", _PATIENCE)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                for event in self.source.read(_TICK if self._ending else 0.2):
                    self._heard(event)
            except (OverrunError, HarnessError, OSError) as error:
                _log.warning("process monitor: %s; it is opened again", error)
                self._monitor._lost()
                self._reopen()
            self._look_at_ending()

    def _reopen(self) -> None:
        self._monitor.restarts.add()
        self.source.close()
        for attempt in range(1 << 30):
            if self._over.wait(_PAUSES[min(attempt, len(_PAUSES) - 1)]):
                return
            try:
                self.source = self._monitor._open()
            except (HarnessError, OSError) as error:
                self._monitor.reinit_failed.add()
                _log.warning("process monitor: %s", error)
            else:
                self._monitor._lost()  # what happened while it was closed
                return

    def _heard(self, event: ProcessEvent) -> None:
        self._monitor.events.add()
        self._monitor.seen[event.kind].add()
        if event.kind is Kind.EXEC:
            self._tell(Kind.EXEC, event.pid)
        elif self._monitor._subscribers[Kind.EXIT]:
            self._ending[event.pid] = 0

    def _look_at_ending(self) -> None:
        root = self._monitor._proc_root
        for pid, born in list(self._ending.items()):
            if procfs.is_over(root, pid, born):
                del self._ending[pid]
                self._tell(Kind.EXIT, pid)
            elif not born:
                with contextlib.suppress(OSError):  # asked again at the next look
                    now = procfs.status(root, pid)
                    self._ending[pid] = now.born if now else 0

    def _tell(self, kind: Kind, pid: int) -> None:
        for callback in self._monitor._callbacks(kind):
            if not self._workers.submit(functools.partial(self._call, callback, pid)):
                self._monitor.full[kind].add()
                self._monitor._lost()

    def _call(self, callback: Callback, pid: int) -> None:
        try:
            callback(pid)
        except Exception:
            self._monitor.callback_failed.add()
            _log.exception("process monitor: a callback for process %d failed", pid)
        self._monitor.executed.add()


_shared: ProcessMonitor | None = None
_shared_lock = threading.Lock()


def shared_monitor(kernel: KernelApi, settings: BpfSettings) -> ProcessMonitor:
    """The process-wide monitor, with one more user; the first caller's kernel and settings are its own."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = ProcessMonitor(opener(kernel, settings), proc_root=str(kernel.proc_root))
        return _shared.acquire()
