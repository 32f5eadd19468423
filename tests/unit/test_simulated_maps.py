"""Simulated maps and buffers against plain models of them, in any order of calls."""

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kmt.errors import CannotTellError
from kmt.simulator import opening
from kmt.simulator.lru import BATCH, Lru, batch
from kmt.simulator.rings import PerfRings, Ring
from kmt.simulator.stores import ENOTSUPP, HASHES, KNOWN, PAGE, Definition, Refused, check, make

KINDS = st.sampled_from(sorted(HASHES | {"array", "percpu_array"}))
CPUS = 2
GIGABYTE = 1 << 30


class Maps(RuleBasedStateMachine):
    """One map beside a dictionary; of an LRU hash it is only known that what it has is right, and how much that is."""

    @initialize(kind=KINDS, entries=st.integers(1, 6), seed=st.integers(0, 3))
    def begin(self, kind, entries, seed):
        self.kind, self.entries = kind, entries
        self.definition = Definition(kind, 4, 6, entries)
        check(self.definition, GIGABYTE)
        self.map = make(self.definition, CPUS, seed=seed)
        self.array, self.lru = "array" in kind, kind.startswith("lru")
        self.model = {n: bytes(self.map.width) for n in range(entries)} if self.array else {}

    def keys(self):
        return {int.from_bytes(key, "little") for key in list(self.map.keys())}

    def value(self, number):
        return bytes([number]) * self.map.width

    @rule(key=st.integers(0, 8), number=st.integers(1, 9), cpu=st.integers(0, CPUS - 1))
    def put(self, key, number, cpu):
        full = key not in self.model and (self.array or len(self.model) >= self.entries)
        if full and not self.lru:
            with pytest.raises(Refused) as caught:
                self.map.put(key.to_bytes(4, "little"), self.value(number), cpu)
            assert caught.value.code == errno.E2BIG
            return
        self.map.put(key.to_bytes(4, "little"), self.value(number), cpu)
        self.model[key] = self.value(number)
        if self.lru:
            left = self.keys()
            assert key in left, "what was just put in is there"
            self.model = {k: v for k, v in self.model.items() if k in left}

    @rule(key=st.integers(0, 8), number=st.integers(1, 9), cpu=st.integers(0, CPUS - 1))
    def program_updates(self, key, number, cpu):
        """A program on one processor changes its own value only."""
        if key not in self.model:
            return
        own = bytes([number]) * 6
        self.map.update(key.to_bytes(4, "little"), own, cpu)
        left = self.keys()
        assert key in left
        self.model = {k: v for k, v in self.model.items() if k in left}
        if self.definition.per_cpu:
            before = bytearray(self.model[key])
            before[cpu * 8 : cpu * 8 + 6] = own
            self.model[key] = bytes(before)
        else:
            self.model[key] = own
        assert self.map.lookup(key.to_bytes(4, "little"), cpu) == own

    @rule(key=st.integers(0, 8))
    def get(self, key):
        assert self.map.get(key.to_bytes(4, "little")) == self.model.get(key)

    @rule(key=st.integers(0, 8), cpu=st.integers(0, CPUS - 1))
    def program_looks(self, key, cpu):
        assert (self.map.lookup(key.to_bytes(4, "little"), cpu) is not None) == (key in self.model)

    @rule(key=st.integers(0, 8))
    def delete(self, key):
        if self.array:
            with pytest.raises(Refused) as caught:
                self.map.delete(key.to_bytes(4, "little"))
            assert caught.value.code == errno.EINVAL
        else:
            assert self.map.delete(key.to_bytes(4, "little")) is (self.model.pop(key, None) is not None)

    @invariant()
    def same(self):
        if hasattr(self, "map"):
            found = {key: self.map.get(key.to_bytes(4, "little")) for key in self.keys()}
            assert found == self.model
            assert len(found) <= self.entries

    @precondition(lambda self: hasattr(self, "map") and self.lru)
    @invariant()
    def every_place_is_in_one_list(self):
        lists = self.map._lru
        homes = [lists._free, lists._active, lists._inactive, *lists._local, *lists._pending]
        assert sum(map(len, homes)) == self.entries
        used = [node.key for home in (lists._active, lists._inactive, *lists._pending) for node in home]
        assert sorted(k for k in used if k is not None) == sorted(self.map._nodes)


TestMaps = Maps.TestCase


def lru(size, **how):
    made = make(Definition("lru_hash", 8, 8, size), 1, **how)
    return made, lambda n: made.put(n.to_bytes(8, "little"), bytes(8))


def test_a_small_lru_hash_forgets_all_at_once():
    """Of 16 places one processor takes all; the 17th entry finds none free, and all that is not in use goes."""
    made, put = lru(16)
    for n in range(16):
        put(n)
    assert len(list(made.keys())) == 16
    put(16)
    assert list(made.keys()) == [(16).to_bytes(8, "little")]


def test_what_a_program_looked_at_stays():
    made, put = lru(16)
    for n in range(16):
        put(n)
    made.lookup(bytes(8), 0)
    put(16)
    assert sorted(made.keys()) == [bytes(8), (16).to_bytes(8, "little")]


def test_a_small_batch_forgets_less():
    made, put = lru(16, batch=batch((6, 18, 0), 16, 1))
    for n in range(17):
        put(n)
    assert len(list(made.keys())) == 9


@pytest.mark.parametrize(
    ("version", "size", "cpus", "places"),
    [
        ((6, 1, 0), 16, 1, BATCH),
        ((6, 12, 117), 16, 1, 8),
        ((6, 15, 9), 16, 1, BATCH),
        ((6, 16, 0), 16, 1, 8),
        ((7, 3, 4), 1, 4, 1),
        ((7, 3, 4), 1 << 20, 4, BATCH),
    ],
)
def test_how_many_places_are_taken_at_a_time(version, size, cpus, places):
    assert batch(version, size, cpus) == places


def test_one_processor_takes_what_others_have():
    """When neither the global lists nor its own have a place."""
    dropped = []
    shared = Lru(1, 2, dropped.append)
    first = shared.take(b"a", 0)
    assert shared.take(b"b", 1) is first
    assert dropped == [b"a"]


@pytest.mark.parametrize(
    ("definition", "code"),
    [
        (Definition("hash", 8, 8, 0), errno.EINVAL),
        (Definition("hash", 0, 8, 1), errno.EINVAL),
        (Definition("lru_hash", 8, 0, 1), errno.EINVAL),
        (Definition("hash", 8, 1 << 22, 1), errno.E2BIG),
        (Definition("hash", 8, 8, (1 << 32) - 1), errno.E2BIG),
        (Definition("hash", 8, 1 << 20, 1 << 20), errno.ENOMEM),
        (Definition("array", 8, 8, 1), errno.EINVAL),
        (Definition("array", 4, 1 << 31, 1), errno.E2BIG),
        (Definition("array", 4, 8, (1 << 32) - 1), errno.ENOMEM),
        (Definition("perf_event_array", 4, 8, 1), errno.EINVAL),
        (Definition("ringbuf", 0, 0, 4097), errno.EINVAL),
        (Definition("ringbuf", 4, 0, 4096), errno.EINVAL),
        (Definition("ringbuf", 0, 0, 1 << 31), errno.ENOMEM),
    ],
)
def test_what_cannot_be_made(definition, code):
    with pytest.raises(Refused) as caught:
        check(definition, GIGABYTE)
    assert caught.value.code == code


def test_event_maps_have_no_values():
    perf = make(Definition("perf_event_array", 4, 4, 2), 2)
    ring = make(Definition("ringbuf", 0, 0, PAGE), 2)
    for do, code in (
        (lambda: perf.get(bytes(4)), ENOTSUPP),
        (lambda: perf.put(bytes(4), bytes(4)), errno.EBADF),
        (lambda: perf.put(b"\2\0\0\0", bytes(4)), errno.E2BIG),
        (lambda: perf.delete(b"\2\0\0\0"), errno.E2BIG),
        (lambda: ring.get(b""), errno.EINVAL),
        (lambda: ring.put(b"", b""), errno.EINVAL),
        (lambda: ring.delete(b""), errno.EINVAL),
        (lambda: ring.keys(), ENOTSUPP),
    ):
        with pytest.raises(Refused) as caught:
            do()
        assert caught.value.code == code
    assert perf.delete(bytes(4)) is False
    with pytest.raises(KeyError):
        make(Definition("arena", 0, 0, 1), 1)
    assert "arena" not in KNOWN


def test_read_only_data_stays_as_it_is():
    data = make(Definition("array", 4, 4, 1), 1, content=b"abcd", frozen=True)
    assert data.get(bytes(4)) == b"abcd"
    for do in (lambda: data.put(bytes(4), b"efgh"), lambda: data.delete(bytes(4))):
        with pytest.raises(Refused) as caught:
            do()
        assert caught.value.code == errno.EPERM


def test_a_buffer_is_never_quite_full():
    """Sixteen events that would fill it to the last byte: the last of them finds no room."""
    ring, perf = Ring(PAGE), PerfRings(1, 1)
    assert [ring.output(bytes(256 - 8)) for _ in range(16)] == [0] * 15 + [-errno.EAGAIN]
    assert [perf.output(bytes(256 - 12), 0) for _ in range(16)] == [0] * 15 + [-errno.ENOSPC]


EVENTS = st.lists(st.tuples(st.integers(0, CPUS - 1), st.binary(max_size=600)) | st.none(), max_size=60)


@given(EVENTS)
@settings(max_examples=200)
def test_perf_events_come_once_in_order_and_losses_are_counted(events):
    """None reads all. What was refused is told as lost as soon as something fits again."""
    rings, kept, refused, heard = PerfRings(1, CPUS), [[], []], [0, 0], 0
    for event in [*events, None, (0, b""), (1, b""), None]:
        if event is None:
            found, lost = rings.read()
            heard += lost
            for n, (record, sent) in enumerate(zip(found, [*kept[0], *kept[1]], strict=True)):
                assert record[: len(sent)] == sent, n
                assert (len(record) + 4) % 8 == 0
                assert len(record) - len(sent) < 8
            kept = [[], []]
        else:
            cpu, data = event
            status = rings.output(data, cpu)
            assert status in (0, -errno.ENOSPC)
            if status:
                refused[cpu] += 1
                assert sum(12 + len(e) for e in kept[cpu]) + len(data) + 12 + 24 > PAGE - 8 * 61
            else:
                kept[cpu].append(data)
    assert heard == sum(refused)


@given(EVENTS, st.sampled_from([PAGE, 2 * PAGE]))
def test_a_ring_holds_what_fits(events, size):
    ring, kept, used = Ring(size), [], 0
    for event in [*events, None]:
        if event is None:
            assert ring.read() == kept
            kept, used = [], 0
            continue
        _, data = event
        needed = (8 + len(data) + 7) // 8 * 8
        fits = used + needed < size
        assert ring.output(data) == (0 if fits else -errno.EAGAIN)
        if fits:
            kept.append(data)
            used += needed


@pytest.mark.parametrize(
    ("kind", "flags", "code"),
    [("lru_hash", 1, ENOTSUPP), ("lru_percpu_hash", 1, ENOTSUPP), ("array", 1, errno.EINVAL), ("hash", 1, 0),
     ("array", 0x80, 0), ("hash", 0x80, None), ("hash", 4, None), ("array", 0x400, None), ("percpu_hash", 1, None)],
)  # fmt: skip
def test_flags_of_maps_are_answered_or_not_told(kind, flags, code):
    asked = Definition(kind, 4, 8, 4, flags)
    if code == 0:
        return check(asked, GIGABYTE)
    with pytest.raises(CannotTellError if code is None else Refused) as caught:
        check(asked, GIGABYTE)
    assert getattr(caught.value, "code", None) == code or code is None
    return None


@pytest.mark.parametrize("kind", ["percpu_array", "percpu_hash", "lru_percpu_hash"])
def test_each_processor_takes_memory(kind):
    asked = Definition(kind, 4, 1024, 1000)
    check(asked, 4 << 20, cpus=2)
    with pytest.raises(Refused) as caught:
        check(asked, 4 << 20, cpus=8)
    assert caught.value.code == errno.ENOMEM
    check(Definition(kind, 4, 32 << 10, 1), GIGABYTE)
    with pytest.raises(CannotTellError):
        check(Definition(kind, 4, (32 << 10) + 1, 1), GIGABYTE)


def test_a_hash_without_entries_ahead_takes_memory_for_its_table_only():
    check(Definition("hash", 4, 1 << 20, 1 << 12, 1), 1 << 20)
    with pytest.raises(Refused):
        check(Definition("hash", 4, 1 << 20, 1 << 12), 1 << 20)


def test_a_key_is_as_long_as_that_kernel_takes():
    check(Definition("hash", 513, 8, 4), GIGABYTE)
    check(Definition("hash", 512, 8, 4), GIGABYTE, longest_key=512)
    with pytest.raises(Refused) as caught:
        check(Definition("hash", 513, 8, 4), GIGABYTE, longest_key=512)
    assert caught.value.code == errno.E2BIG


@pytest.mark.parametrize(
    ("section", "said"),
    [(".bss", "shared_l.bss"), (".data", "shared_l.data"), (".rodata", "shared_l.rodata"), (".data.x", ".data.x")],
)
def test_maps_of_sections_are_named_as_libbpf_does(section, said):
    assert opening._data_map("shared_libraries", section) == said
