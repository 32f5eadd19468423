"""(pure) Closed connections out of events and of batches that are still being filled: each exactly once.

The kernel sends a batch when it is full. Until then it stands in a map, where it can be read too; so a batch may be
seen in parts, and at last as a whole in its event, or never again if its event was lost.

Laws: every connection comes out once, in the order of its CPU; what was read before its batch's event was lost is
``recovered``, and is no loss although the kernel counted it as one. The caller looks at the batches *before* it
drains the buffer: so the event of a batch older than the one it saw is in what it drained, or lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.ebpf import events
from harness.ebpf.events import Batch, Conn


class Batches:
    """What was read already of batches whose event has not come: (cpu, id) to a number of connections."""

    def __init__(self) -> None:
        self._read: dict[tuple[int, int], int] = {}
        self._current: dict[int, int] = {}
        self._sent: dict[int, int] = {}
        self._given_up = 0

    @property
    def recovered(self) -> int:
        """Connections that were read although the events of their batches were lost."""
        overdue = (count for (cpu, number), count in self._read.items() if number < self._current.get(cpu, 0))
        return self._given_up + sum(overdue)

    def merge(self, seen: Sequence[Batch], drained: Iterable[bytes]) -> list[Conn]:
        """The connections that are new in these batches and in the events drained after them."""
        conns: list[Conn] = []
        for record in drained:
            if events.is_single(record):
                conns.append(events.conn(record))
                continue
            batch = events.batch(record)
            key = (batch.cpu, batch.id)
            conns += batch.conns[self._read.pop(key, 0) :]
            self._sent[batch.cpu] = batch.id
            self._give_up(batch)
        for batch in seen:
            key = (batch.cpu, batch.id)
            self._current[batch.cpu] = batch.id
            # The task that sent it may have been preempted before it began the next one: it stands there, sent.
            if batch.id > self._sent.get(batch.cpu, -1) and batch.conns:
                conns += batch.conns[self._read.get(key, 0) :]
                self._read[key] = len(batch.conns)
        return conns

    def _give_up(self, sent: Batch) -> None:
        """A CPU's events come in order: what is older than this one will not come any more."""
        for cpu, number in [key for key in self._read if key[0] == sent.cpu and key[1] < sent.id]:
            self._given_up += self._read.pop((cpu, number))
