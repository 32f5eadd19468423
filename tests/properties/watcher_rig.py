"""A process monitor and a watcher whose events a test puts in; all else of them is real."""

from __future__ import annotations

import itertools
import queue
import threading
from pathlib import Path

from proc_world import OWN, ProcWorld
from waiting import wait_for

from harness.ebpf.events import LibraryCounters, LibraryOpen
from harness.ebpf.live import LiveKernel
from harness.ebpf.settings import BpfSettings
from harness.processes.errors import ProcessSourceError
from harness.processes.events import Kind, ProcessEvent
from harness.processes.monitor import ProcessMonitor
from harness.telemetry import Registry
from harness.watcher.registry import FileRegistry
from harness.watcher.rules import Rule
from harness.watcher.watcher import Watcher


class Script:
    """Sources whose events are put in by the test; an exception put in is raised by the read."""

    name = "script"

    def __init__(self) -> None:
        self.events: queue.Queue[ProcessEvent | Exception] = queue.Queue()
        self.opened = self.closed = 0
        self.refusals = 0
        """So many of the next attempts to open it fail."""

    def open(self) -> Script:
        if self.refusals:
            self.refusals -= 1
            raise ProcessSourceError("not now")
        self.opened += 1
        return self

    def exec(self, *pids: int) -> None:
        for pid in pids:
            self.events.put(ProcessEvent(Kind.EXEC, pid))

    def exit(self, *pids: int) -> None:
        for pid in pids:
            self.events.put(ProcessEvent(Kind.EXIT, pid))

    def read(self, seconds: float) -> list[ProcessEvent]:
        try:
            event = self.events.get(timeout=min(seconds, 0.01))
        except queue.Empty:
            return []
        if isinstance(event, Exception):
            raise event
        return [event]

    def close(self) -> None:
        self.closed += 1


class Feed:
    """A stream of opens that a test puts in."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: list[LibraryOpen] = []
        self.counted = LibraryCounters(0, 0, 0)
        self.closed = 0

    def put(self, *events: LibraryOpen) -> None:
        with self._changed:
            self._events += events
            self._changed.notify()

    def take(self, seconds: float) -> list[LibraryOpen]:
        with self._changed:
            self._changed.wait_for(lambda: self._events, min(seconds, 0.02))
            events, self._events = self._events, []
        return events

    def decode(self, record: LibraryOpen) -> LibraryOpen:
        return record

    def counters(self) -> LibraryCounters:
        return self.counted

    def close(self) -> None:
        self.closed += 1


class Whole:
    """A watcher with all its threads over a feed and a script, in a proc root of directories."""

    def __init__(self, world: ProcWorld, registry: FileRegistry, rules: tuple[Rule, ...], metrics: Registry) -> None:
        self.feed, self.script = Feed(), Script()
        self.monitor = ProcessMonitor(self.script.open, proc_root=str(world.root), metrics=metrics)
        self.metrics = metrics
        self.registry = registry
        self.watcher = Watcher(
            LiveKernel(), BpfSettings(Path("/none")), rules, monitor=self.monitor, registry=registry,
            proc_root=str(world.root), metrics=metrics, sweep=10_000, opens=lambda: self.feed,
        )  # fmt: skip
        self._fences = itertools.count()

    def count(self, name: str) -> int:
        return sum(metric.value for metric in self.metrics.metrics() if metric.name.endswith(f".{name}"))

    def opened(self, *events: tuple[int, str]) -> None:
        """Gives them, and waits until they are handled: what comes after them has been counted."""
        before, fence = self.count("hits"), LibraryOpen(98, b"/fence%d" % next(self._fences))
        self.feed.put(*(LibraryOpen(pid, path.encode()) for pid, path in events), fence)
        counted = [pid for pid, _ in events if pid != OWN]
        wait_for(lambda: self.count("hits") == before + len(counted) + 1)

    def opened_without_waiting(self, *events: tuple[int, str]) -> None:
        """Only gives them."""
        self.feed.put(*(LibraryOpen(pid, path.encode()) for pid, path in events))

    def ended(self, pid: int) -> None:
        before = self.count("callback_executed")
        self.script.exit(pid)
        wait_for(lambda: self.count("callback_executed") == before + 1)

    def quiet(self) -> None:
        wait_for(lambda: self.registry.in_flight == 0)
