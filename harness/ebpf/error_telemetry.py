"""What maps and helpers refused, by the kernel's own count: the maps of ``bpf/include/error_telemetry.h``.

Laws: a map's key is its place among those that the object counts for, from 1 on (0 would be a map that nobody set); an
error number above 63 is counted as 63. Every object that counts, from its load to its close, is in the counters
``ebpf.maps.errors`` (tags ``module``, ``map_name``, ``error``) and ``ebpf.helpers.errors`` (``module``, ``helper``,
``error``), which are brought up to date when metrics are read.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Collection, Mapping, Sequence
from threading import Lock
from weakref import WeakSet

from harness.ebpf import elf
from harness.ebpf.btf_parser import Btf
from harness.errors import AssetError, ClosedError, FormatError, HarnessError
from harness.kernel_api import Map
from harness.telemetry import DEFAULT, PROMETHEUS, MetricGroup, Registry

MAP_ERRORS = "map_err_telemetry_map"
HELPER_ERRORS = "helper_err_telemetry_map"
HELPERS = ("probe_read_kernel", "perf_event_output", "ringbuf_output", "probe_read_user", "probe_read_user_str")
_KEY = "_telemetry_key"
_SLOTS = 64
_MAP_VALUE = struct.Struct(f"<{_SLOTS}Q")
_HELPER_VALUE = struct.Struct(f"<{len(HELPERS) * _SLOTS}Q")
_HELPER_KEY = struct.pack("<Q", 0)
Errors = Mapping[str, Mapping[str, int]]
"""Of each map or helper that refused something: errors by name, to how often."""

_log = logging.getLogger(__name__)


def counted(image: bytes) -> tuple[str, ...]:
    """(pure) The maps whose errors an object's programs count: those with a constant ``NAME_telemetry_key``.

    Of bytes that are no object it is none: whoever opens them is told.
    """
    try:
        btf = elf.contents(image).get(".BTF", b"")
        names = Btf.parse(btf).section(".rodata") if btf else {}
    except FormatError:
        return ()
    return tuple(sorted(name.removesuffix(_KEY) for name in names if name.endswith(_KEY)))


def constants(maps: Collection[str]) -> dict[str, int]:
    """(pure) The constants that tell an object's programs under which key each map's errors are counted."""
    return {f"{name}{_KEY}": number for number, name in enumerate(maps, 1)}


class ErrorTelemetry:
    """Of an object that was loaded with the ``constants`` of these maps, and is not attached yet."""

    def __init__(self, module: str, maps: Mapping[str, Map], counted: Sequence[str]) -> None:
        """Put in the entries that programs look for and cannot make. AssetError where the object has no such maps."""
        if missing := [name for name in (MAP_ERRORS, HELPER_ERRORS) if name not in maps]:
            raise AssetError(
                f"object {module} has no map {' nor '.join(missing)}: another version of this project built it",
                hint="build the programs anew",
            )
        self.module = module
        self._maps, self._helpers = maps[MAP_ERRORS], maps[HELPER_ERRORS]
        self._keys = {name: struct.pack("<Q", number) for number, name in enumerate(counted, 1)}
        self._published: dict[tuple[str, ...], int] = {}
        self._lock = Lock()
        for key in self._keys.values():
            self._maps.put(key, bytes(_MAP_VALUE.size))
        self._helpers.put(_HELPER_KEY, bytes(_HELPER_VALUE.size))
        with _lock:
            _live.add(self)

    def maps(self) -> Errors:
        """Updates that maps refused."""
        values = {name: self._maps.get(key) for name, key in self._keys.items()}
        errors = {name: map_errors(value) for name, value in values.items() if value is not None}
        return {name: counts for name, counts in errors.items() if counts}

    def helpers(self) -> Errors:
        """Other helpers that failed."""
        value = self._helpers.get(_HELPER_KEY)
        return {} if value is None else helper_errors(value)

    def publish(self, registry: Registry = DEFAULT) -> None:
        """Bring the counters up to date."""
        with self._lock:
            for kind, label, found in (("maps", "map_name", self.maps()), ("helpers", "helper", self.helpers())):
                group = MetricGroup(f"ebpf.{kind}", PROMETHEUS, f"module:{self.module}", registry=registry)
                for name, errors in found.items():
                    for error, number in errors.items():
                        before = self._published.get((kind, name, error), 0)
                        words = f"{label}:{name}", f"error:{error}"
                        counter = group.counter("errors", *words, help=f"What {kind} refused programs in the kernel.")
                        counter.add(number - before)
                        self._published[kind, name, error] = number

    def finish(self) -> None:
        """The last time, before the object is closed; what cannot be read any more is logged."""
        _publish(self)


_lock = Lock()
_live: WeakSet[ErrorTelemetry] = WeakSet()


def _publish_all() -> None:
    with _lock:
        live = list(_live)
    for errors in live:
        _publish(errors)


def _publish(errors: ErrorTelemetry) -> None:
    """One object's trouble is not another's, nor its owner's."""
    try:
        errors.publish()
    except ClosedError:
        with _lock:
            _live.discard(errors)
    except HarnessError as error:
        _log.warning("%s: what its maps and helpers refused cannot be read: %s", errors.module, error)


DEFAULT.before_reading(_publish_all)


def map_errors(value: bytes) -> dict[str, int]:
    """(pure) A value of ``map_err_telemetry_map``: errors that happened, by name, to how often."""
    return _named(_unpacked(_MAP_VALUE, value))


def helper_errors(value: bytes) -> dict[str, Mapping[str, int]]:
    """(pure) The value of ``helper_err_telemetry_map``: helpers that failed, to errors by name."""
    numbers = _unpacked(_HELPER_VALUE, value)
    rows = {name: _named(numbers[i * _SLOTS : (i + 1) * _SLOTS]) for i, name in enumerate(HELPERS)}
    return {name: row for name, row in rows.items() if row}


def _unpacked(layout: struct.Struct, value: bytes) -> tuple[int, ...]:
    if len(value) != layout.size:
        raise FormatError(f"error telemetry has {layout.size} bytes, not {len(value)}")
    return layout.unpack(value)


def _named(counts: tuple[int, ...]) -> dict[str, int]:
    return {errno.errorcode.get(n, f"errno {n}"): count for n, count in enumerate(counts) if count}
