"""(pure) Event buffers as the kernel fills them: what fits, what is lost, and what the reader gets.

Laws: what was accepted is read once, in order for each processor; what did not fit is refused with the error number
that the program's helper returns; of perf the reader hears how many were lost with the next event that fitted, a ring
buffer says nothing. Rules: kernel/events/ring_buffer.c, kernel/bpf/ringbuf.c.
"""

from __future__ import annotations

import errno
from collections import deque

from kmt.simulator.stores import PAGE

_PERF_HEADER = 8 + 4
"""``struct perf_event_header`` and the size of the raw data."""
_LOST = 24
"""A record that says how many were lost."""
_RING_HEADER = 8


def _eight(size: int) -> int:
    return (size + 7) // 8 * 8


class PerfRings:
    """A perf event array that is read: ``pages`` of 4 KiB for each processor."""

    def __init__(self, pages: int, cpus: int) -> None:
        self._room = pages * PAGE
        self._used = [0] * cpus
        self._missed = [0] * cpus
        self._records: list[deque[bytes | int]] = [deque() for _ in range(cpus)]

    def output(self, data: bytes, cpu: int) -> int:
        """0, or the error number (negative) that ``bpf_perf_event_output`` returns."""
        size = _eight(_PERF_HEADER + len(data))
        missed = self._missed[cpu]
        needed = size + (_LOST if missed else 0)
        if self._used[cpu] + needed >= self._room:
            self._missed[cpu] += 1
            return -errno.ENOSPC
        if missed:
            self._records[cpu].append(missed)
            self._missed[cpu] = 0
        # The reader sees the raw data with its padding.
        self._records[cpu].append(data + bytes(size - _PERF_HEADER - len(data)))
        self._used[cpu] += needed
        return 0

    def read(self) -> tuple[list[bytes], int]:
        """All records, processor after processor, and how many were said to be lost."""
        found: list[bytes] = []
        lost = 0
        for cpu, records in enumerate(self._records):
            for record in records:
                if isinstance(record, int):
                    lost += record
                else:
                    found.append(record)
            records.clear()
            self._used[cpu] = 0
        return found, lost


class Ring:
    """A ring buffer of ``size`` bytes, whether or not it is read."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._records: list[bytes] = []

    def output(self, data: bytes) -> int:
        """0, or the error number (negative) that ``bpf_ringbuf_output`` returns."""
        size = _eight(_RING_HEADER + len(data))
        if self._used + size > self._size - 1:
            return -errno.EAGAIN
        self._records.append(data)
        self._used += size
        return 0

    def read(self) -> list[bytes]:
        """All records."""
        found, self._records, self._used = self._records, [], 0
        return found
