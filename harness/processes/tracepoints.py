"""Execs and exits by programs of our own on two tracepoints, for kernels without the process connector.

Law: events that found no room are counted in the kernel, and the next ``read`` says so by an OverrunError. What the
programs see: the top of ``bpf/processes/processes.bpf.c``.
"""

from __future__ import annotations

import struct

from harness.ebpf import event_program
from harness.ebpf.event_program import EventModule
from harness.ebpf.settings import BpfSettings
from harness.kernel_api import KernelApi
from harness.processes.errors import OverrunError
from harness.processes.events import ProcessEvent, record

PROGRAMS = ("tracepoint__sched__sched_process_exec", "tracepoint__sched__sched_process_exit")
_COUNTERS = struct.Struct("=2Q")


class Tracepoints:
    """The programs while they run. ``pages`` (a CPU) and ``ring_bytes`` are the room for events."""

    name = "process tracepoints"

    def __init__(self, kernel: KernelApi, settings: BpfSettings, *, pages: int = 64, ring_bytes: int = 1 << 20) -> None:
        module = EventModule("processes", PROGRAMS, "process_events", pages, ring_bytes)
        self._running = event_program.start(kernel, settings, module)
        self._lost = 0

    def read(self, seconds: float) -> list[ProcessEvent]:
        """See ``Source``."""
        if self._lost:
            raise OverrunError(self.name, self._lost)
        events = [record(data) for data in self._running.records(seconds)]
        _, self._lost = _COUNTERS.unpack(self._running.counted())
        if self._lost and not events:
            raise OverrunError(self.name, self._lost)
        return events

    def close(self) -> None:
        """Take the programs out of the kernel; a second time does nothing."""
        self._running.close()
