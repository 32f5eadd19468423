"""The blocklist is a least-recently-used set: it does what a list in order of use does, and threads do not hurt it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from interleave import at_every_line

from harness.errors import SettingsError
from harness.watcher.blocklist import CAPACITY, Blocklist
from harness.watcher.identity import PathIdentifier

ids = st.builds(PathIdentifier, st.integers(1, 2), st.integers(1, 6))
samples = st.text(max_size=5)


class LruMachine(RuleBasedStateMachine):
    """The model is a list of pairs, least recently used first."""

    @initialize(capacity=st.integers(1, 5))
    def start(self, capacity: int) -> None:
        self.real = Blocklist(capacity)
        self.model: list[tuple[PathIdentifier, str]] = []

    @rule(id=ids, sample=samples)
    def add(self, id: PathIdentifier, sample: str) -> None:
        self.real.add(id, sample)
        self.model = [pair for pair in self.model if pair[0] != id] + [(id, sample)]
        self.model = self.model[-self.real.capacity :]

    @rule(id=ids)
    def look_up(self, id: PathIdentifier) -> None:
        known = dict(self.model).get(id)
        assert self.real.sample_path(id) == known
        if known is not None:
            self.model = [pair for pair in self.model if pair[0] != id] + [(id, known)]

    @rule()
    def list_twice(self) -> None:
        assert self.real.entries() == self.real.entries()

    @invariant()
    def same_entries_in_order_of_use(self) -> None:
        assert self.real.entries() == self.model
        assert len(self.real) == len(self.model) <= self.real.capacity


TestLru = LruMachine.TestCase


def test_capacity_others_evict_an_untouched_entry_and_not_one_fewer() -> None:
    blocklist = Blocklist()
    first, touched = PathIdentifier(1, 0), PathIdentifier(2, 0)
    blocklist.add(first, "first")
    blocklist.add(touched, "touched")
    for inode in range(1, CAPACITY - 1):
        blocklist.add(PathIdentifier(1, inode), "other")
    assert blocklist.sample_path(touched) == "touched"
    assert len(blocklist) == CAPACITY
    assert blocklist.entries()[0][0] == first
    blocklist.add(PathIdentifier(1, CAPACITY), "one more")
    assert blocklist.sample_path(first) is None
    assert blocklist.sample_path(touched) == "touched"
    assert len(blocklist) == CAPACITY


def test_threads_neither_break_the_bound_nor_lose_what_nobody_evicts() -> None:
    blocklist = Blocklist(64)
    kept = [PathIdentifier(9, n) for n in range(8)]
    for id in kept:
        blocklist.add(id, "kept")

    def work(dev: int) -> None:
        for n in range(100):
            blocklist.add(PathIdentifier(dev, n), "passing")
            # Between two touches of one entry the four threads make at most 4 * 8 additions: none can be evicted.
            if n % 8 == 0:
                assert [blocklist.sample_path(id) for id in kept] == ["kept"] * 8
            assert len(blocklist) <= 64

    with at_every_line("harness.watcher.blocklist", 0.1), ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(blocklist) == 64
    assert len({id for id, _ in blocklist.entries()}) == 64


def test_threads_may_evict_what_another_is_looking_up() -> None:
    blocklist = Blocklist(1)

    def work(inode: int) -> None:
        id = PathIdentifier(1, inode)
        for _ in range(200):
            blocklist.add(id, "mine")
            assert blocklist.sample_path(id) in (None, "mine")
            assert len(blocklist) == 1

    with at_every_line("harness.watcher.blocklist", 0.1), ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


@given(st.integers(max_value=0))
def test_no_capacity_is_an_error(capacity: int) -> None:
    with pytest.raises(SettingsError):
        Blocklist(capacity)
