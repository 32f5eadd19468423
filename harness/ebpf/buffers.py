"""Event buffers: perf event arrays and ring buffers, read from Python.

Laws: a callback only appends bytes, so it cannot raise; closing waits for a read in progress, and a read after it is
a ClosedError, never a use of freed memory. What the kernel drops is counted by the program itself (a counter map):
a ring buffer tells nobody, and perf's own count is not exact.
"""

from __future__ import annotations

import ctypes as c
import errno
import select
import threading

from harness.ebpf import abi
from harness.errors import BpfError, ClosedError, SettingsError


class _Buffer:
    """What both have in common; ``_handle`` is None once closed."""

    _epoll_fd: str
    _free: str

    def __init__(self, name: str) -> None:
        self.name = name
        self.lost = 0
        self._records: list[bytes] = []
        self._lock = threading.Lock()
        self._handle: int | None = None

    def _opened(self, handle: int | None) -> None:
        if not handle:
            raise BpfError(f"buffer of map {self.name}", c.get_errno())
        self._handle = handle

    def read(self, seconds: float = 0.1) -> list[bytes]:
        """All that has arrived; only if that is nothing, waits up to ``seconds`` for the first."""
        with self._lock:
            if self._handle is None:
                raise ClosedError(f"the buffer of map {self.name} is closed")
            # What is there is taken without asking epoll, which hears of it a little later (irq_work).
            self._consume(self._handle)
            if not self._records and seconds > 0 and self._wait(self._handle, seconds):
                self._consume(self._handle)
            records, self._records = self._records, []
            return records

    def _consume(self, handle: int) -> None:
        """Hand over what is there."""
        raise NotImplementedError

    def _wait(self, handle: int, seconds: float) -> bool:
        waiting = select.poll()
        waiting.register(getattr(abi.library(), self._epoll_fd)(handle), select.POLLIN)
        return bool(waiting.poll(seconds * 1000))

    def _done(self, status: int) -> None:
        if status < 0 and -status != errno.EINTR:
            raise BpfError(f"reading the buffer of map {self.name}", -status)

    def close(self) -> None:
        """Free it; a second time does nothing."""
        with self._lock:
            if self._handle is not None:
                getattr(abi.library(), self._free)(self._handle)
                self._handle = None


class PerfBuffer(_Buffer):
    """A perf event array, ``pages`` (a power of two) for each CPU."""

    _epoll_fd = "perf_buffer__epoll_fd"
    _free = "perf_buffer__free"

    def __init__(self, name: str, fd: int, pages: int) -> None:
        super().__init__(name)
        if pages < 1 or pages & (pages - 1):
            raise SettingsError(f"buffer of map {name}: {pages} pages is no power of two")
        # C keeps these: so must we, as long as the buffer lives.
        self._on_sample = abi.SampleCallback(self._sample)
        self._on_lost = abi.LostCallback(self._count)
        self._opened(abi.library().perf_buffer__new(fd, pages, self._on_sample, self._on_lost, None, None))

    def _consume(self, handle: int) -> None:
        # One CPU's at a time: no more than its pages hold, then other threads may run.
        for buffer in range(abi.library().perf_buffer__buffer_cnt(handle)):
            self._done(abi.consume_perf_buffer()(handle, buffer))

    def _sample(self, _context: int, _cpu: int, data: int, size: int) -> None:
        self._records.append(c.string_at(data, size))

    def _count(self, _context: int, _cpu: int, number: int) -> None:
        self.lost += number


class RingBuffer(_Buffer):
    """A ring buffer, shared by all CPUs."""

    _epoll_fd = "ring_buffer__epoll_fd"
    _free = "ring_buffer__free"

    def __init__(self, name: str, fd: int) -> None:
        super().__init__(name)
        self._on_sample = abi.RingCallback(self._sample)
        self._opened(abi.library().ring_buffer__new(fd, self._on_sample, None, None))

    def _consume(self, handle: int) -> None:
        self._done(abi.library().ring_buffer__consume(handle))

    def _sample(self, _context: int, data: int, size: int) -> int:
        self._records.append(c.string_at(data, size))
        return 0
