"""Maps of a loaded object: bytes in, bytes out."""

from __future__ import annotations

import ctypes as c
import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from harness.ebpf import abi
from harness.errors import BpfError, ClosedError, SettingsError

HASH, ARRAY, PERF_EVENT_ARRAY, PERCPU_HASH, PERCPU_ARRAY = 1, 2, 4, 5, 6
LRU_HASH, LRU_PERCPU_HASH, ARRAY_OF_MAPS, RINGBUF = 9, 10, 12, 27
"""Numbers of ``enum bpf_map_type`` (linux/bpf.h)."""

_HASHES = frozenset({HASH, PERCPU_HASH, LRU_HASH, LRU_PERCPU_HASH})
_PER_CPU = frozenset({PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH})
_BATCH = 256


class BpfMap:
    """One map. It lives as long as its object; from any thread, a call after that is a ClosedError.

    ``handle`` is libbpf's, for edits before the load; from then on only the descriptor is used, under a lock, so that
    no call meets a descriptor that was closed and opened again as something else.
    """

    def __init__(self, handle: int, name: str = "") -> None:
        self.handle = handle
        self.name = name or str(abi.library().bpf_map__name(handle).decode(errors="replace"))
        self._lock = threading.Lock()
        self._fd: int | None = None
        self.type = self._key_size = self._value_size = 0

    @classmethod
    def of_descriptor(cls, name: str, fd: int, type: int, key_size: int, value_size: int) -> BpfMap:
        """A map that something else has made and owns."""
        found = cls(0, name)
        found._is(fd, type, key_size, value_size)
        return found

    def made(self) -> None:
        """It is in the kernel now, as it will stay."""
        lib = abi.library()
        ask = (lib.bpf_map__fd, lib.bpf_map__type, lib.bpf_map__key_size, lib.bpf_map__value_size)
        self._is(*(int(function(self.handle)) for function in ask))

    def _is(self, fd: int, type: int, key_size: int, value_size: int) -> None:
        cpus = int(abi.library().libbpf_num_possible_cpus())
        self.type, self._key_size = type, key_size
        self._value_size = (value_size + 7) // 8 * 8 * cpus if type in _PER_CPU else value_size
        self._fd = fd

    def close(self) -> None:
        """Let no call begin any more, and wait for the one that is under way."""
        with self._lock:
            self._fd = None

    @property
    def fd(self) -> int:
        """The descriptor, owned by libbpf: for who keeps the object from being closed."""
        return self._live()

    @contextmanager
    def _using(self) -> Iterator[int]:
        with self._lock:
            yield self._live()

    def get(self, key: bytes) -> bytes | None:
        """The value, or None. Per-CPU maps give one value for each possible CPU, each padded to 8 bytes."""
        value = c.create_string_buffer(self._value_size)
        with self._using() as fd:
            status = abi.library().bpf_map_lookup_elem(fd, self._key(key), value)
        return value.raw if self._done("lookup in", status) else None

    def put(self, key: bytes, value: bytes) -> None:
        """Set it, whether or not it was there."""
        with self._using() as fd:
            if len(value) != self._value_size:
                raise SettingsError(f"map {self.name} has values of {self._value_size} bytes, not {len(value)}")
            status = abi.library().bpf_map_update_elem(fd, self._key(key), value, 0)
        if status:
            raise BpfError(f"update of map {self.name}", -status)

    def delete(self, key: bytes) -> bool:
        """Whether it was there."""
        with self._using() as fd:
            status = abi.library().bpf_map_delete_elem(fd, self._key(key))
        return self._done("delete from", status)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry that is there from the first to the last step comes exactly once, whatever comes and goes."""
        self._live()
        return self._buckets() if self.type in _HASHES else self._entries()

    def _entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Key after key: an array's come in order. A hash begins again where the key we stand on has gone."""
        following = c.create_string_buffer(self._key_size)
        key: bytes | None = None
        while True:
            with self._using() as fd:
                status = abi.library().bpf_map_get_next_key(fd, key, following)
            if not self._done("walk of", status):
                return
            key = following.raw
            if (value := self.get(key)) is not None:
                yield key, value

    def _buckets(self) -> Iterator[tuple[bytes, bytes]]:
        """Whole buckets of a hash, each as it was in one moment (5.6): a key's bucket never changes."""
        key_size, value_size = self._key_size, self._value_size
        place, following, room = None, c.create_string_buffer(max(4, key_size)), _BATCH
        while True:
            keys, values = c.create_string_buffer(room * key_size), c.create_string_buffer(room * value_size)
            count = c.c_uint32(room)
            with self._using() as fd:
                status = abi.library().bpf_map_lookup_batch(fd, place, following, keys, values, c.byref(count), None)
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
        if self._fd is None:
            raise ClosedError(f"the object of map {self.name} is closed")
        return self._fd

    def _key(self, key: bytes) -> bytes:
        if len(key) != self._key_size:
            raise SettingsError(f"map {self.name} has keys of {self._key_size} bytes, not {len(key)}")
        return key

    def _done(self, verb: str, status: int) -> bool:
        if status and -status != errno.ENOENT:
            raise BpfError(f"{verb} map {self.name}", -status)
        return not status
