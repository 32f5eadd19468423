"""(pure) Maps as the kernel keeps them: what can be made, and what each kind answers, in the kernel's error numbers.

Laws: an operation either does all of it or raises ``Refused`` and changes nothing; an array has all of its entries
always; a hash has at most ``max_entries``, an LRU hash makes room for one more; of a per-CPU map a value is every
processor's, each padded to eight bytes. Rules: kernel/bpf/{arraymap,hashtab,ringbuf,syscall}.c; what a program does
to a map, ``Store.lookup`` and ``Store.update`` do with ``cpu``.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from kmt.errors import CannotTellError
from kmt.simulator.lru import BATCH, Lru, Node

ENOTSUPP = 524
"""An error number that the kernel keeps to itself, and shows all the same."""
_U32 = (1 << 32) - 1
LARGEST = 1 << 22
"""KMALLOC_MAX_SIZE, which no key with its value may reach."""
_PER_CPU = frozenset({"percpu_hash", "percpu_array", "lru_percpu_hash"})
ARRAYS = frozenset({"array", "percpu_array"})
HASHES = frozenset({"hash", "percpu_hash", "lru_hash", "lru_percpu_hash"})
EVENTS = frozenset({"perf_event_array", "ringbuf"})
KNOWN = ARRAYS | HASHES | EVENTS
"""Types of maps that are simulated."""
PAGE = 4096
STACK = 512
"""MAX_BPF_STACK: the longest key of a hash before 5.11."""
_PER_CPU_UNIT = 32 << 10
"""PCPU_MIN_UNIT_SIZE: a processor's value that is larger is refused, as E2BIG or ENOMEM."""
_NO_PREALLOC, _RDONLY_PROG = 0x01, 0x80


class Refused(Exception):
    """The kernel's answer is an error number."""

    def __init__(self, code: int) -> None:
        super().__init__(errno.errorcode.get(code, str(code)))
        self.code = code


@dataclass(frozen=True)
class Definition:
    """What a map is to be: its type in words (``lru_hash``), sizes in bytes, entries, ``BPF_F_*`` flags."""

    type: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0

    @property
    def per_cpu(self) -> bool:
        """Whether each processor has its own values."""
        return self.type in _PER_CPU

    def width(self, cpus: int) -> int:
        """Bytes of a value as user space sees it."""
        return (self.value_size + 7) // 8 * 8 * cpus if self.per_cpu else self.value_size


def check(definition: Definition, memory: int, cpus: int = 1, longest_key: int = LARGEST) -> None:
    """Whether such a map can be made with so many bytes of memory. Raises Refused, or CannotTellError."""
    _check_flags(definition)
    key, value, entries = definition.key_size, definition.value_size, definition.max_entries
    if definition.type == "ringbuf":
        if key or value or not entries or entries & (entries - 1) or entries % PAGE:
            raise Refused(errno.EINVAL)
        if entries > memory:
            raise Refused(errno.ENOMEM)
    elif definition.type in ARRAYS or definition.type == "perf_event_array":
        if not entries or key != 4 or not value or (definition.type == "perf_event_array" and value != 4):
            raise Refused(errno.EINVAL)
        if value > (1 << 31) - 1:
            raise Refused(errno.E2BIG)
        _check_unit(definition)
        if definition.width(cpus) * entries > memory:
            raise Refused(errno.ENOMEM)
    else:
        _check_hash(definition, memory, cpus, longest_key)


def _check_flags(definition: Definition) -> None:
    kind, flags = definition.type, definition.flags
    if flags & _NO_PREALLOC and kind in ARRAYS | EVENTS:
        raise Refused(errno.EINVAL)
    if flags == _NO_PREALLOC and kind.startswith("lru"):
        raise Refused(ENOTSUPP)
    if flags & ~{"array": _RDONLY_PROG, "hash": _NO_PREALLOC}.get(kind, 0):
        raise CannotTellError(f"a map of type {kind} with flags {flags:#x}, which are not simulated")


def _check_unit(definition: Definition) -> None:
    if definition.per_cpu and definition.width(1) > _PER_CPU_UNIT:
        raise CannotTellError(f"a map of type {definition.type} whose values have {definition.value_size} bytes")


def _check_hash(definition: Definition, memory: int, cpus: int, longest_key: int) -> None:
    key, value, entries = definition.key_size, definition.value_size, definition.max_entries
    if not key or not value or not entries:
        raise Refused(errno.EINVAL)
    buckets = 1 << (entries - 1).bit_length()
    if key > longest_key or key + value >= LARGEST - 64 or buckets > _U32 // 16:
        raise Refused(errno.E2BIG)
    _check_unit(definition)
    entry = 64 + (key + 7) // 8 * 8 + (definition.width(cpus) + 7) // 8 * 8
    if buckets * 16 + entry * (0 if definition.flags & _NO_PREALLOC else entries) > memory:
        raise Refused(errno.ENOMEM)


class Store:
    """A map's entries. User space's calls are ``get``, ``put``, ``delete`` and ``keys``; keys and values are of the
    right length (whoever calls sees to it), ``cpu`` is the processor that the call runs on."""

    def __init__(self, definition: Definition, cpus: int) -> None:
        self.definition, self.cpus = definition, cpus
        self.width = definition.width(cpus)

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        raise NotImplementedError

    def put(self, key: bytes, value: bytes, cpu: int = 0) -> None:
        """Set it, whether or not it was there. Raises Refused."""
        raise NotImplementedError

    def delete(self, key: bytes) -> bool:
        """Whether it was there. Raises Refused."""
        raise NotImplementedError

    def keys(self) -> Iterator[bytes]:
        """Those that are there, in the map's own order. Raises Refused."""
        raise NotImplementedError

    def lookup(self, key: bytes, cpu: int) -> bytes | None:
        """What a program on that processor sees; it counts as use."""
        value = self.get(key)
        return self._own(value, cpu) if value is not None else None

    def update(self, key: bytes, value: bytes, cpu: int) -> None:
        """What a program on that processor puts in. Raises Refused."""
        if not self.definition.per_cpu:
            return self.put(key, value, cpu)
        step = self.width // self.cpus
        whole = bytearray(self.get(key) or bytes(self.width))
        whole[cpu * step : cpu * step + len(value)] = value
        self.put(key, bytes(whole), cpu)
        return None

    def _own(self, value: bytes, cpu: int) -> bytes:
        if not self.definition.per_cpu:
            return value
        step = self.width // self.cpus
        return value[cpu * step :][: self.definition.value_size]


class Array(Store):
    """``array`` and ``percpu_array``; ``frozen``: nothing is put in any more (``.rodata``)."""

    def __init__(self, definition: Definition, cpus: int, content: bytes = b"", *, frozen: bool = False) -> None:
        super().__init__(definition, cpus)
        self._values: dict[int, bytes] = {0: content} if content else {}
        self._zero = bytes(self.width)
        self._frozen = frozen

    def get(self, key: bytes) -> bytes | None:
        """Zeros where nothing was put in."""
        index = int.from_bytes(key, "little")
        return self._values.get(index, self._zero) if index < self.definition.max_entries else None

    def put(self, key: bytes, value: bytes, cpu: int = 0) -> None:
        """E2BIG behind its end."""
        if self._frozen:
            raise Refused(errno.EPERM)
        index = int.from_bytes(key, "little")
        if index >= self.definition.max_entries:
            raise Refused(errno.E2BIG)
        self._values[index] = value

    def delete(self, key: bytes) -> bool:
        """No entry of an array goes: EINVAL."""
        raise Refused(errno.EPERM if self._frozen else errno.EINVAL)

    def keys(self) -> Iterator[bytes]:
        """All indexes."""
        return (index.to_bytes(4, "little") for index in range(self.definition.max_entries))


class Hash(Store):
    """``hash`` and ``percpu_hash``; ``seed`` decides the order of its keys, as the kernel's own random number does."""

    def __init__(self, definition: Definition, cpus: int, seed: int = 0) -> None:
        super().__init__(definition, cpus)
        self._entries: dict[bytes, bytes] = {}
        self._salt = seed.to_bytes(8, "little", signed=True)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> bytes | None:
        """User space's look does not count as use."""
        return self._entries.get(key)

    def put(self, key: bytes, value: bytes, cpu: int = 0) -> None:
        """E2BIG where it is full and the key new."""
        if key not in self._entries and len(self._entries) >= self.definition.max_entries:
            raise Refused(errno.E2BIG)
        self._entries[key] = value

    def delete(self, key: bytes) -> bool:
        """Whether it was there."""
        return self._entries.pop(key, None) is not None

    def keys(self) -> Iterator[bytes]:
        """By their place in the table."""
        return iter(sorted(self._entries, key=lambda key: hashlib.blake2b(key, key=self._salt, digest_size=8).digest()))


class LruHash(Hash):
    """``lru_hash`` and ``lru_percpu_hash``: never full."""

    def __init__(self, definition: Definition, cpus: int, seed: int = 0, batch: int = BATCH) -> None:
        super().__init__(definition, cpus, seed)
        self._nodes: dict[bytes, Node] = {}
        self._lru = Lru(definition.max_entries, cpus, self._drop, batch)

    def _drop(self, key: bytes) -> None:
        del self._entries[key], self._nodes[key]

    def lookup(self, key: bytes, cpu: int) -> bytes | None:
        """A program's look is use."""
        if key in self._nodes:
            self._nodes[key].used = True
        return super().lookup(key, cpu)

    def put(self, key: bytes, value: bytes, cpu: int = 0) -> None:
        """A place is taken before the key is looked for, so that putting in what is there may cost another entry."""
        node = self._lru.take(key, cpu)
        if node is None:
            raise Refused(errno.ENOMEM)
        old = self._nodes.get(key)
        self._entries[key] = value
        if self.definition.per_cpu and old is not None:
            old.used = True
            self._lru.give(node)
            return
        self._nodes[key] = node
        if old is not None:
            node.used = True
            self._lru.give(old)

    def delete(self, key: bytes) -> bool:
        """Its place goes back to where it came from."""
        node = self._nodes.pop(key, None)
        if node is not None:
            self._lru.give(node)
        return super().delete(key)


class Events(Store):
    """``perf_event_array`` and ``ringbuf``, which have no values to look at; the events are in ``rings.py``."""

    def get(self, key: bytes) -> bytes | None:
        """Nobody reads such a map: ENOTSUPP; a ring buffer has not even keys: EINVAL."""
        raise Refused(ENOTSUPP if self.definition.type == "perf_event_array" else errno.EINVAL)

    def put(self, key: bytes, value: bytes, cpu: int = 0) -> None:
        """Only descriptors of perf events go in."""
        if self.definition.type == "ringbuf":
            raise Refused(errno.EINVAL)
        full = int.from_bytes(key, "little") >= self.definition.max_entries
        raise Refused(errno.E2BIG if full else errno.EBADF)

    def delete(self, key: bytes) -> bool:
        """What is not there does not go."""
        if self.definition.type == "ringbuf":
            raise Refused(errno.EINVAL)
        if int.from_bytes(key, "little") >= self.definition.max_entries:
            raise Refused(errno.E2BIG)
        return False

    def keys(self) -> Iterator[bytes]:
        """A perf event array's indexes; a ring buffer has none: ENOTSUPP."""
        if self.definition.type == "ringbuf":
            raise Refused(ENOTSUPP)
        return (index.to_bytes(4, "little") for index in range(self.definition.max_entries))


def make(definition: Definition, cpus: int, *, seed: int = 0, batch: int = BATCH, content: bytes = b"",
         frozen: bool = False) -> Store:  # fmt: skip
    """A map that was checked; ``content`` and ``frozen`` are of data sections. KeyError for a type not in ``KNOWN``."""
    if definition.type in ARRAYS:
        return Array(definition, cpus, content, frozen=frozen)
    if definition.type in EVENTS:
        return Events(definition, cpus)
    if definition.type not in HASHES:
        raise KeyError(definition.type)
    if definition.type.startswith("lru"):
        return LruHash(definition, cpus, seed, batch)
    return Hash(definition, cpus, seed)
