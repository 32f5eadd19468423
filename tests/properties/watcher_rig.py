"""A process monitor and a watcher whose events a test puts in; all else of them is real.

They are put in at the watcher's door, or, where there is a simulated kernel, into the buffers of the programs that it
has loaded.
"""

from __future__ import annotations

import itertools
import os
import queue
import struct
import threading
from pathlib import Path

from proc_world import OWN, ProcWorld
from waiting import wait_for

from harness.ebpf import event_program
from harness.ebpf.event_program import EventModule, EventProgram
from harness.ebpf.events import LibraryCounters, LibraryOpen
from harness.ebpf.fallback import Stage
from harness.ebpf.live import LiveKernel
from harness.ebpf.settings import BpfSettings
from harness.kernel_api import Feature, LoadOptions
from harness.processes.errors import ProcessSourceError
from harness.processes.events import Kind, ProcessEvent
from harness.processes.monitor import ProcessMonitor
from harness.processes.tracepoints import PROGRAMS, Tracepoints
from harness.telemetry import Registry
from harness.watcher import program
from harness.watcher.registry import FileRegistry
from harness.watcher.rules import Rule
from harness.watcher.watcher import Watcher
from kmt.simulator.kernel import SimulatedKernel

LIBRARIES, PROCESSES = "shared_libraries", "process_events"
"""The maps by which the programs report."""


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


def loaded(kernel: SimulatedKernel, module: EventModule) -> EventProgram:
    """The built program in a simulated kernel, whoever may read it (a fallback chain takes root's files only)."""
    image = Path(os.environ["KMT_BPF_DIR"], "co-re", f"{module.name}.o").read_bytes()
    ring = kernel.probe(Feature.RINGBUF) is True
    return EventProgram(*event_program._load(kernel, image, LoadOptions(), module, ring), ring, Stage.CORE, ())


class KernelProcesses(Tracepoints):
    """The process monitor's programs in a simulated kernel."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        self._running = loaded(kernel, EventModule("processes", PROGRAMS, PROCESSES, 64, 1 << 20))
        self._lost = 0


class KernelScript(Script):
    """The same by way of a simulated kernel: an exec or exit goes through its buffer."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        super().__init__()
        self._kernel = kernel
        self._source: KernelProcesses | None = None

    def open(self) -> Script:
        super().open()
        self._source = KernelProcesses(self._kernel)
        return self

    def exec(self, *pids: int) -> None:
        self._tell(Kind.EXEC, pids)

    def exit(self, *pids: int) -> None:
        self._tell(Kind.EXIT, pids)

    def _tell(self, kind: Kind, pids: tuple[int, ...]) -> None:
        for pid in pids:
            assert self._kernel.inject(PROCESSES, struct.pack("=II", pid, kind.value)) == 0

    def read(self, seconds: float) -> list[ProcessEvent]:
        if not self.events.empty():
            return super().read(seconds)
        assert self._source is not None
        return self._source.read(min(seconds, 0.01))

    def close(self) -> None:
        super().close()
        assert self._source is not None
        self._source.close()


class KernelFeed(Feed):
    """The same by way of a simulated kernel: what a test puts in goes through its buffer."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        super().__init__()
        self._kernel = kernel
        module = EventModule(program.MODULE, program.hooks(True, os.uname().machine), LIBRARIES, 256, 1 << 20)
        self._running = program.LibraryProgram(loaded(kernel, module))

    def put(self, *events: LibraryOpen) -> None:
        for pid, path in events:
            assert self._kernel.inject(LIBRARIES, struct.pack("=II120s", pid, len(path), path)) == 0

    def take(self, seconds: float) -> list[LibraryOpen]:
        opened = self._running.read(min(seconds, 0.02))
        assert self._running.malformed == 0
        return opened

    def counters(self) -> LibraryCounters:
        assert self._running.counters() == LibraryCounters(0, 0, 0)
        return self.counted

    def close(self) -> None:
        super().close()
        self._running.close()


class Whole:
    """A watcher with all its threads over a feed and a script, in a proc root of directories; both by way of
    ``simulated``, if there is one."""

    def __init__(
        self, world: ProcWorld, registry: FileRegistry, rules: tuple[Rule, ...], metrics: Registry,
        simulated: SimulatedKernel | None = None,
    ) -> None:  # fmt: skip
        self.feed = KernelFeed(simulated) if simulated else Feed()
        self.script = KernelScript(simulated) if simulated else Script()
        self.monitor = ProcessMonitor(self.script.open, proc_root=str(world.root), metrics=metrics)
        self.metrics = metrics
        self.registry = registry
        self.watcher = Watcher(
            simulated or LiveKernel(), BpfSettings(Path("/none")), rules, monitor=self.monitor, registry=registry,
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
