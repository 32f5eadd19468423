"""The shared-libraries program: which system calls it watches, and what it reports.

Law: every library opened while it runs is either read once or counted as lost, but for runs that the kernel leaves
out, which it counts itself (``missed``). What the program sees and misses: the
top of ``bpf/shared_libraries/shared-libraries.bpf.c``. How it gets into the kernel: ``ebpf/event_program.py``.
"""

from __future__ import annotations

import logging
import os
from types import TracebackType

from harness.ebpf import event_program, events
from harness.ebpf.event_program import EventModule, EventProgram
from harness.ebpf.settings import BpfSettings
from harness.errors import FormatError
from harness.kernel_api import Feature, KernelApi, MapEdit

MODULE = "shared-libraries"
PERF_PAGES = 256
"""For each CPU: 8 lose 3 to 40 % of a burst of 100,000 opens, 256 none."""
RING_BYTES = 16 << 20
CALLS = 1024
"""Threads that may be inside an open at once, at least."""

log = logging.getLogger(__name__)


def hooks(openat2: bool, machine: str) -> tuple[str, ...]:
    """(pure) The programs to load, entry before exit: ``open`` is a system call of x86-64 only."""
    calls = ["openat", *(["openat2"] if openat2 else []), *(["open"] if machine == "x86_64" else [])]
    return tuple(f"tracepoint__syscalls__sys_{side}_{call}" for call in calls for side in ("enter", "exit"))


class LibraryProgram:
    """The program while it runs; ``stage`` is the one that won. Use it as a context manager, or ``close`` it."""

    def __init__(self, running: EventProgram) -> None:
        self._running = running
        self.ringbuf = running.ringbuf
        self.stage = running.stage
        self.attempts = running.attempts
        self.errors = running.errors
        """What its maps and helpers refused."""
        self.malformed = 0
        """Records that could not be decoded."""

    def read(self, seconds: float = 0.1) -> list[events.LibraryOpen]:
        """Libraries opened since the last call; waits up to ``seconds`` for the first."""
        opened = map(self.decode, self.take(seconds))
        return [event for event in opened if event is not None]

    def take(self, seconds: float = 0.1) -> list[bytes]:
        """The same as it came, for ``decode``: for a thread that has to be quick."""
        return self._running.records(seconds)

    def decode(self, record: bytes) -> events.LibraryOpen | None:
        """What was opened; None, and counted, if that cannot be told."""
        try:
            return events.library_open(record)
        except FormatError as error:
            self.malformed += 1
            log.warning("%s: %s", MODULE, error)
            return None

    def counters(self) -> events.LibraryCounters:
        """What the programs and the kernel counted, losses among it."""
        return events.library_counters(self._running.counted())._replace(missed=self._running.missed())

    def close(self) -> None:
        """Take the programs out of the kernel; a second time does nothing."""
        self._running.close()

    def __enter__(self) -> LibraryProgram:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __str__(self) -> str:
        return str(self._running)


def start(kernel: KernelApi, settings: BpfSettings) -> LibraryProgram:
    """Load and attach it. Where every stage lost, the error of the last one is raised as ``fallback.climb`` says."""
    has_openat2 = kernel.probe(Feature.OPENAT2)
    if has_openat2 is None:
        log.error("whether this kernel has openat2 cannot be told: it is not watched")
    programs = hooks(bool(has_openat2), os.uname().machine)
    edits = {"open_at_args": MapEdit.lru(kernel.cpus, CALLS)}
    module = EventModule(MODULE, programs, "shared_libraries", PERF_PAGES, RING_BYTES, edits)
    return LibraryProgram(event_program.start(kernel, settings, module))
