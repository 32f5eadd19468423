"""The watcher: registers the libraries that rules ask for, of every process, from the moment it starts.

Laws:
- no gap: the program runs and exits are heard of before running processes are looked at, so a library opened at any
  moment of the start is registered, by its event or by the look;
- the first rule that matches a path counts, and only that; own opens never do;
- a process holds what it opened until it ends; one whose end nobody heard of is forgotten by the next sweep, and a
  number that came again is another process (told by the time of its start);
- whatever the kernel, the monitor or our own queue lost is counted, and looked for again among the running (with the
  next sweep where the kernel left out runs of the program: a busy one does that all the time);
- a program that cannot be loaded is logged, and all but its events goes on; nothing that a file, a ``/proc`` entry
  or a callback does ends the watcher: it is counted, and one callback that hangs holds up only its own file;
- ``stop`` comes once, from anywhere, started or not: every registered file is deactivated, and nothing after.

Not registered: children that a process forks hold what they inherit only through their parent.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Protocol

from harness.ebpf.events import LibraryCounters, LibraryOpen
from harness.ebpf.settings import BpfSettings
from harness.errors import HarnessError
from harness.kernel_api import KernelApi
from harness.processes.monitor import ProcessMonitor, Unsubscribe, shared_monitor
from harness.telemetry import DEFAULT, Registry
from harness.telemetry.metrics import PROMETHEUS, MetricGroup
from harness.watcher import program
from harness.watcher.errors import AlreadyStoppedError
from harness.watcher.registry import FileRegistry
from harness.watcher.rules import Callback, Rule
from harness.watcher.tracking import Tracking
from harness.workers import Workers

SWEEP = 30.0
"""Seconds between two looks for processes that ended unheard of."""
_LOOK_FOR_LOSSES = 1.0
_CALLBACK_THREADS = 16
"""So many callbacks may hang before others wait."""
_PATIENCE = 10.0
"""Seconds that a stop waits for callbacks."""
_MOST_QUEUED = 1 << 17
"""Events that wait to be handled: what a full ring buffer holds."""

RuleLike = Rule | tuple[str, Callback, Callback]
"""A rule, or its pattern, activation and deactivation."""

_log = logging.getLogger(__name__)


class Opens(Protocol):
    """A stream of opened libraries: the running program, or a test's own. Equal records are equal opens."""

    def take(self, seconds: float) -> list[Any]:
        """The records since the last call, as they came; waits up to ``seconds`` for the first."""
        ...

    def decode(self, record: Any) -> LibraryOpen | None:
        """What a record says; None if nothing."""
        ...

    def counters(self) -> LibraryCounters:
        """What was lost, among others; once it is closed, as it ended."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class Watcher:
    """See the module. Use it as a context manager, or ``start`` and ``stop`` it.

    ``rules`` in order of precedence, as Rules or (pattern, activate, deactivate). ``monitor`` tells of exits (default:
    the process-wide one, which is acquired at the start and stopped at the end), ``sweep`` is in seconds, ``opens``
    begins the stream of events (default: loads the program).
    """

    def __init__(
        self,
        kernel: KernelApi,
        settings: BpfSettings,
        rules: Iterable[RuleLike],
        *,
        monitor: ProcessMonitor | None = None,
        registry: FileRegistry | None = None,
        proc_root: str | None = None,
        metrics: Registry = DEFAULT,
        sweep: float = SWEEP,
        opens: Callable[[], Opens] | None = None,
    ) -> None:
        self._proc_root = str(kernel.proc_root) if proc_root is None else proc_root
        self.registry = registry or FileRegistry("shared_libraries", proc_root=self._proc_root, metrics=metrics)
        self._workers = Workers("library-callback", _CALLBACK_THREADS)
        self._tracking = Tracking(
            self.registry, _rules(rules), self._workers.submit, proc_root=self._proc_root, metrics=metrics
        )
        self._get_monitor = monitor.acquire if monitor else functools.partial(shared_monitor, kernel, settings)
        self._open = opens or functools.partial(program.start, kernel, settings)
        self._sweep = sweep
        self._lock = threading.Lock()
        self._started = self._stopped = False
        self._stopping = threading.Event()
        self._monitor: ProcessMonitor | None = None
        self._unsubscribe: Unsubscribe | None = None
        self.program: Opens | None = None
        """The running program; None where it could not be loaded."""
        self._inbox = _Inbox()
        group = MetricGroup("usm.so_watcher", PROMETHEUS, registry=metrics)
        self._lost = group.counter("lost", help="Opens that found no room, in the kernel or here.")
        self._unread = group.counter("unread", help="Opens whose path the kernel's program could not read.")
        self._left_out = group.counter("missed", help="Runs of the program that the kernel left out, for any open.")
        self._unsure = False
        """Some have been since the last sweep."""
        self._errors = group.counter("errors", help="Unexpected errors in reading or handling events.")
        self._threads: list[threading.Thread] = []
        self._said = LibraryCounters(0, 0, 0)
        """What the program's counters were when last read."""
        self._missed = self._lost.value + self._unread.value

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those in force."""
        return self._tracking.rules

    def start(self) -> None:
        """Hear of exits and opens, then look at what runs. A second time does nothing; not to be had after a stop."""
        with self._lock:
            if self._stopped:
                raise AlreadyStoppedError("the watcher has been stopped, which is for good")
            if self._started:
                return
            self._started = True
            try:
                self._begin()
            except BaseException:
                self._stopped = True
                self._end()
                raise
        self._tracking.look_at_all()

    def stop(self) -> None:
        """Take the program out, let go of the monitor and deactivate every file; a second time does nothing."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
        # Not under the lock: a callback that is waited for may be at the same door.
        self._end()

    def set_rules(self, rules: Iterable[RuleLike]) -> None:
        """Replace the rules: files that no longer have the same callbacks are deactivated, others are looked for."""
        self._tracking.replace(_rules(rules))

    def attach_pid(self, pid: int) -> None:
        """Register the libraries of process ``pid`` now, waiting for the callbacks.

        Raises the OSError of maps that cannot be read, NoRuleMatchedError, or AttachError where some failed.
        """
        self._tracking.attach(pid)

    def detach_pid(self, pid: int) -> None:
        """Forget process ``pid``; PidNotRegisteredError if it holds no registered file."""
        self._tracking.detach(pid)

    def __enter__(self) -> Watcher:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _begin(self) -> None:
        self._monitor = self._get_monitor()
        self._unsubscribe = self._monitor.subscribe_exit(self._tracking.ended)
        try:
            self._monitor.start()
        except HarnessError as error:
            _log.warning("shared libraries: ends of processes are seen by the sweep only: %s", error)
        try:
            self.program = self._open()
        except HarnessError as error:
            _log.error("shared libraries: opens are not seen, running processes only: %s", error)
        loops = [self._handle] + ([functools.partial(self._fetch, self.program)] if self.program else [])
        for loop in loops:
            thread = threading.Thread(target=loop, name="shared-libraries", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _end(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        with ExitStack() as stack:  # from the last to the first, whatever one of them raises
            stack.callback(self._end_callbacks)
            stack.callback(self.registry.clear, run=self._workers.submit)
            if self._monitor is not None:
                stack.callback(self._monitor.stop)
            if self._unsubscribe is not None:
                stack.callback(self._unsubscribe)
            if self.program is not None:
                stack.callback(self._end_program, self.program)

    def _end_program(self, running: Opens) -> None:
        running.close()
        try:
            self._count(running.counters())
        except HarnessError as error:
            _log.warning("shared libraries: what was lost last cannot be read: %s", error)

    def _end_callbacks(self) -> None:
        if not self._workers.stop(_PATIENCE):
            _log.warning("shared libraries: callbacks have not ended in %g s; they are left to themselves", _PATIENCE)

    def _fetch(self, opens: Opens) -> None:
        """Take events out of the kernel as fast as they come, whatever it takes to handle them."""
        while not self._stopping.is_set():
            try:
                self._lost.add(self._inbox.put(opens.take(0.1)))
            except Exception as error:
                self._errors.add()
                _log.warning("shared libraries: %s", error)
                self._stopping.wait(0.1)

    def _handle(self) -> None:
        """Handle events; now and then, look for what was lost and for who ended unheard of."""
        swept = looked = time.monotonic()
        unheard = 0
        while not self._stopping.is_set():
            try:
                self._handle_events(self._inbox.take(0.1))
                now = time.monotonic()
                losses = self._monitor.losses if self._monitor else 0
                if now - swept >= self._sweep or losses != unheard:
                    swept, unheard = now, losses
                    self._tracking.sweep()
                    self._look_if_unsure()
                if now - looked >= _LOOK_FOR_LOSSES:
                    looked = now
                    self._recover()
            except Exception:
                self._errors.add()
                _log.exception("shared libraries: an event could not be handled")

    def _handle_events(self, records: list[Any]) -> None:
        for record, times in Counter(records).items():
            if self._stopping.is_set():
                return
            event = self.program.decode(record) if self.program else None
            if event is not None:
                self._tracking.opened(event.pid, os.fsdecode(event.path), times)

    def _recover(self) -> None:
        """What has been lost since the last time, if anything, may still be found among the running."""
        if self.program is not None:
            self._count(self.program.counters())
        before, self._missed = self._missed, self._lost.value + self._unread.value
        if self._missed != before:
            self._tracking.look_at_all()

    def _count(self, said: LibraryCounters) -> None:
        """Add what the program's counters have grown by."""
        self._lost.add(said.lost - self._said.lost)
        self._unread.add(said.unread - self._said.unread)
        self._left_out.add(said.missed - self._said.missed)
        self._unsure = self._unsure or said.missed != self._said.missed
        self._said = said

    def _look_if_unsure(self) -> None:
        unsure, self._unsure = self._unsure, False
        if unsure:
            self._tracking.look_at_all()


def _rules(rules: Iterable[RuleLike]) -> tuple[Rule, ...]:
    return tuple(rule if isinstance(rule, Rule) else Rule.of(*rule) for rule in rules)


class _Inbox:
    """Records between the two threads, in order; no more than ``_MOST_QUEUED``."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._records: list[Any] = []

    def put(self, records: list[Any]) -> int:
        """Gives how many found no room."""
        if not records:
            return 0
        with self._changed:
            room = _MOST_QUEUED - len(self._records)
            self._records += records[:room]
            self._changed.notify()
        return max(0, len(records) - room)

    def take(self, seconds: float) -> list[Any]:
        """All of them; waits up to ``seconds`` for the first."""
        with self._changed:
            self._changed.wait_for(lambda: self._records, seconds)
            records, self._records = self._records, []
        return records
