"""(pure) What maps and helpers refused, by the kernel's own count: the maps of ``bpf/include/error_telemetry.h``.

Laws: a map's key is its place in the tuple of names that the object was loaded with, counted from 1 (0 would be a map
that nobody set); an error number above 63 is counted as 63.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection, Mapping

from harness.errors import FormatError

MAP_ERRORS = "map_err_telemetry_map"
HELPER_ERRORS = "helper_err_telemetry_map"
HELPERS = ("probe_read_kernel", "perf_event_output", "ringbuf_output")
_SLOTS = 64
_MAP_VALUE = struct.Struct(f"<{_SLOTS}Q")
_HELPER_VALUE = struct.Struct(f"<{5 * _SLOTS}Q")
HELPER_KEY = struct.pack("<Q", 0)
EMPTY_MAP = bytes(_MAP_VALUE.size)
EMPTY_HELPER = bytes(_HELPER_VALUE.size)


def constants(maps: Collection[str]) -> dict[str, int]:
    """The constants that tell an object's programs under which key each map's errors are counted."""
    return {f"{name}_telemetry_key": number for number, name in enumerate(maps, 1)}


def map_key(number: int) -> bytes:
    """The key in ``map_err_telemetry_map`` of the map with that number."""
    return struct.pack("<Q", number)


def map_errors(value: bytes) -> dict[str, int]:
    """A value of ``map_err_telemetry_map``: errors that happened, by name, to how often."""
    return _named(_unpacked(_MAP_VALUE, value))


def helper_errors(value: bytes) -> dict[str, Mapping[str, int]]:
    """The value of ``helper_err_telemetry_map``: helpers that failed, to errors by name."""
    numbers = _unpacked(_HELPER_VALUE, value)
    rows = {name: _named(numbers[i * _SLOTS : (i + 1) * _SLOTS]) for i, name in enumerate(HELPERS)}
    return {name: row for name, row in rows.items() if row}


def _unpacked(layout: struct.Struct, value: bytes) -> tuple[int, ...]:
    if len(value) != layout.size:
        raise FormatError(f"error telemetry has {layout.size} bytes, not {len(value)}")
    return layout.unpack(value)


def _named(counts: tuple[int, ...]) -> dict[str, int]:
    return {errno.errorcode.get(n, f"errno {n}"): count for n, count in enumerate(counts) if count}
