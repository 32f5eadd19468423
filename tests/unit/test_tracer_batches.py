"""Closed connections out of batches and events: whatever is read when, and whatever is lost, each exactly once."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from harness.ebpf import events
from harness.ebpf.events import Batch, Conn
from harness.tracer.batches import Batches


def conn(number):
    return Conn(*[0] * 9, number, *[0] * 16)


def record(batch):
    body = b"".join(events.pack(c) for c in batch.conns).ljust(480, b"\0")
    return body + struct.pack("<QIHxx", batch.id, batch.cpu, len(batch.conns))


class Kernel:
    """What the programs do, one close at a time: fill a CPU's batch, send it when it is full, or lose it then."""

    def __init__(self):
        self.open = {0: Batch([], 0, 0), 1: Batch([], 0, 1)}
        self.sent = []
        self.closed = self.lost = 0

    def close(self, cpu, room, alone, held=False):
        """``held``: whoever sends, or has just sent, the batch is preempted before it begins the next one."""
        made = conn(self.closed)
        self.closed += 1
        self.go_on(cpu, held)
        batch = self.open[cpu]
        if alone or len(batch.conns) == 4:
            self._send(events.pack(made), room, 1)
            return
        batch.conns.append(made)
        if len(batch.conns) == 4:
            self._send(record(batch), room, 4)
            self.go_on(cpu, held)

    def go_on(self, cpu, held=False):
        """The next batch begins where one is full."""
        if len(self.open[cpu].conns) == 4 and not held:
            self.open[cpu] = Batch([], self.open[cpu].id + 1, cpu)

    def _send(self, data, room, number):
        if room:
            self.sent.append(data)
        else:
            self.lost += number

    def standing(self):
        return [Batch(list(batch.conns), batch.id, batch.cpu) for batch in self.open.values()]

    def drain(self, keep=0):
        """All that was sent; ``keep`` of the last stay, as if they were not committed yet."""
        drained = self.sent[: len(self.sent) - keep]
        self.sent = self.sent[len(drained) :]
        return drained


SELDOM = st.integers(0, 9).map(lambda n: n == 9)
CLOSES = st.tuples(st.just("close"), st.integers(0, 1), st.booleans(), SELDOM, st.booleans())
READS = st.tuples(st.just("read"), st.lists(st.integers(0, 1), max_size=9), st.integers(0, 2))


@given(st.lists(CLOSES | READS, max_size=80))
def test_each_connection_once_whatever_is_lost(steps):
    kernel, batches, got = Kernel(), Batches(), []
    for kind, *rest in steps:
        if kind == "close":
            kernel.close(*rest)
            continue
        between, keep = rest
        standing = kernel.standing()
        for cpu in between:  # what closes between the two looks
            kernel.close(cpu, True, False)
        got += batches.merge(standing, kernel.drain(keep))
    for cpu in kernel.open:  # until then what stands there may be lost or still to come
        kernel.go_on(cpu)
    got += batches.merge(kernel.standing(), kernel.drain())
    numbers = [c.sent_bytes for c in got]
    assert len(numbers) == len(set(numbers)), "one came twice"
    assert len(numbers) + kernel.lost - batches.recovered == kernel.closed


def test_a_batch_that_was_read_and_then_lost_is_no_loss():
    batches = Batches()
    standing = Batch([conn(0), conn(1)], 0, 0)
    assert batches.merge([standing], []) == standing.conns
    assert batches.recovered == 0
    assert batches.merge([Batch([], 1, 0)], []) == []
    assert batches.recovered == 2, "the kernel counted four, of which two were read"


def test_a_batch_that_was_read_comes_with_the_rest_only():
    batches = Batches()
    whole = [conn(n) for n in range(4)]
    assert batches.merge([Batch(whole[:3], 7, 0)], []) == whole[:3]
    assert batches.merge([Batch([], 8, 0)], [record(Batch(whole, 7, 0))]) == whole[3:]
    assert batches.recovered == 0
