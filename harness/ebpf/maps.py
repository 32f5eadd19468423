"""Maps of a loaded object: bytes in, bytes out."""

from __future__ import annotations

import ctypes as c
import errno
from collections.abc import Callable, Iterator

from harness.ebpf import abi
from harness.errors import BpfError, ClosedError, SettingsError

HASH, ARRAY, PERF_EVENT_ARRAY, PERCPU_HASH, PERCPU_ARRAY = 1, 2, 4, 5, 6
LRU_HASH, LRU_PERCPU_HASH, RINGBUF = 9, 10, 27
"""Numbers of ``enum bpf_map_type`` (linux/bpf.h)."""

_HASHES = frozenset({HASH, PERCPU_HASH, LRU_HASH, LRU_PERCPU_HASH})
_PER_CPU = frozenset({PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH})
_BATCH = 256


class BpfMap:
    """One map. It lives as long as its object: ``alive`` says whether that is still there."""

    def __init__(self, handle: int, alive: Callable[[], bool]) -> None:
        lib = abi.library()
        self.name: str = lib.bpf_map__name(handle).decode()
        self.handle = handle
        self._alive = alive

    @property
    def type(self) -> int:
        """Its number in ``enum bpf_map_type``."""
        return int(abi.library().bpf_map__type(self._live()))

    @property
    def fd(self) -> int:
        """The descriptor, owned by libbpf."""
        return int(abi.library().bpf_map__fd(self._live()))

    def get(self, key: bytes) -> bytes | None:
        """The value, or None. Per-CPU maps give one value for each possible CPU, each padded to 8 bytes."""
        value = c.create_string_buffer(self._value_size())
        status = abi.library().bpf_map_lookup_elem(self.fd, self._key(key), value)
        return value.raw if self._done("lookup in", status) else None

    def put(self, key: bytes, value: bytes) -> None:
        """Set it, whether or not it was there."""
        if len(value) != self._value_size():
            raise SettingsError(f"map {self.name} has values of {self._value_size()} bytes, not {len(value)}")
        status = abi.library().bpf_map_update_elem(self.fd, self._key(key), value, 0)
        if status:
            raise BpfError(f"update of map {self.name}", -status)

    def delete(self, key: bytes) -> bool:
        """Whether it was there."""
        return self._done("delete from", abi.library().bpf_map_delete_elem(self.fd, self._key(key)))

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry that is there from the first to the last step comes exactly once, whatever comes and goes."""
        return self._buckets() if self.type in _HASHES else self._entries()

    def _entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Key after key: an array's come in order. A hash begins again where the key we stand on has gone."""
        following = c.create_string_buffer(abi.library().bpf_map__key_size(self._live()))
        key: bytes | None = None
        while self._done("walk of", abi.library().bpf_map_get_next_key(self.fd, key, following)):
            key = following.raw
            if (value := self.get(key)) is not None:
                yield key, value

    def _buckets(self) -> Iterator[tuple[bytes, bytes]]:
        """Whole buckets of a hash, each as it was in one moment (5.6): a key's bucket never changes."""
        key_size, value_size = int(abi.library().bpf_map__key_size(self._live())), self._value_size()
        place, following, room = None, c.create_string_buffer(max(4, key_size)), _BATCH
        while True:
            keys, values = c.create_string_buffer(room * key_size), c.create_string_buffer(room * value_size)
            count = c.c_uint32(room)
            status = abi.library().bpf_map_lookup_batch(self.fd, place, following, keys, values, c.byref(count), None)
            if -status == errno.ENOSPC:
                room *= 2  # for a bucket with more entries than that
                continue
            more = self._done("walk of", status)
            for n in range(count.value):
                yield (
                    c.string_at(c.addressof(keys) + n * key_size, key_size),
                    c.string_at(c.addressof(values) + n * value_size, value_size),
                )
            if not more:
                return
            place = following.raw

    def _live(self) -> int:
        if not self._alive():
            raise ClosedError(f"the object of map {self.name} is closed")
        return self.handle

    def _key(self, key: bytes) -> bytes:
        size = abi.library().bpf_map__key_size(self._live())
        if len(key) != size:
            raise SettingsError(f"map {self.name} has keys of {size} bytes, not {len(key)}")
        return key

    def _value_size(self) -> int:
        lib = abi.library()
        size = int(lib.bpf_map__value_size(self._live()))
        return (size + 7) // 8 * 8 * int(lib.libbpf_num_possible_cpus()) if self.type in _PER_CPU else size

    def _done(self, verb: str, status: int) -> bool:
        if status and -status != errno.ENOENT:
            raise BpfError(f"{verb} map {self.name}", -status)
        return not status
