"""Maps and event buffers of a simulated object, as a caller holds them: values of the right length, locks, ``close``.

Laws: those of ``harness.kernel_api``, with the errors of ``harness.ebpf.maps`` and ``harness.ebpf.buffers``; what a map
and a buffer hold is in ``stores`` and ``rings``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from harness.errors import BpfError, ClosedError, SettingsError
from kmt.simulator.rings import PerfRings, Ring
from kmt.simulator.stores import Refused, Store

T = TypeVar("T")


class SimulatedMap:
    """A map of a loaded object."""

    def __init__(self, name: str, store: Store) -> None:
        self.name, self.store = name, store
        self._lock = threading.Lock()
        self._closed = False

    def get(self, key: bytes) -> bytes | None:
        """The value, or None. Per-CPU maps give one value for each possible CPU, each padded to 8 bytes."""
        return self._ask("lookup in", lambda: self.store.get(self._key(key)))

    def put(self, key: bytes, value: bytes) -> None:
        """Set it, whether or not it was there."""

        def put() -> None:
            if len(value) != self.store.width:
                raise SettingsError(f"map {self.name} has values of {self.store.width} bytes, not {len(value)}")
            self.store.put(self._key(key), value)

        self._ask("update of", put)

    def delete(self, key: bytes) -> bool:
        """Whether it was there."""
        return self._ask("delete from", lambda: self.store.delete(self._key(key)))

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry that stays while this runs, once."""
        return self._walk(self._ask("walk of", lambda: list(self.store.keys())))

    def _walk(self, keys: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for key in keys:
            if (value := self.get(key)) is not None:
                yield key, value

    def close(self) -> None:
        """From now on every call is a ClosedError."""
        with self._lock:
            self._closed = True

    def _ask(self, verb: str, do: Callable[[], T]) -> T:
        with self._lock:
            if self._closed:
                raise ClosedError(f"the object of map {self.name} is closed")
            try:
                return do()
            except Refused as refused:
                raise BpfError(f"{verb} map {self.name}", refused.code) from None

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.store.definition.key_size:
            size = self.store.definition.key_size
            raise SettingsError(f"map {self.name} has keys of {size} bytes, not {len(key)}")
        return key


class SimulatedBuffer:
    """The reading end of a perf event array or ring buffer."""

    def __init__(self, name: str, ring: PerfRings | Ring) -> None:
        self.name, self.ring = name, ring
        self.lost = 0
        self._arrived = threading.Condition()
        self._closed = False

    def output(self, data: bytes, cpu: int) -> int:
        """An event arrives; 0 or a negative error number."""
        with self._arrived:
            status = self.ring.output(data, cpu) if isinstance(self.ring, PerfRings) else self.ring.output(data)
            self._arrived.notify_all()
            return status

    def read(self, seconds: float = 0.1) -> list[bytes]:
        """All that has arrived; only if that is nothing, waits up to ``seconds`` for the first."""
        with self._arrived:
            found = self._take()
            if not found and seconds > 0:
                self._arrived.wait(seconds)
                found = self._take()
            return found

    def _take(self) -> list[bytes]:
        if self._closed:
            raise ClosedError(f"the buffer of map {self.name} is closed")
        if isinstance(self.ring, Ring):
            return self.ring.read()
        found, lost = self.ring.read()
        self.lost += lost
        return found

    def close(self) -> None:
        """Free it; a second time does nothing."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
