"""(pure) What the programs write, as named tuples: bytes in, values out.

Laws: bytes of any other length raise FormatError, never ``struct.error``; a decoded value holds every field, and
``pack`` of it gives the same bytes (padding is zero). The layouts are those that ``bpf/tracer/tracer.h`` and
``bpf/shared_libraries/shared-libraries.h`` assert; the machine's byte order is little-endian.
"""

from __future__ import annotations

import socket
import struct
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

from harness.errors import FormatError


class Direction(IntEnum):
    """Who opened the connection, seen from this end."""

    UNKNOWN = 0
    INCOMING = 1
    OUTGOING = 2


class Flags(IntFlag):
    """Who sent first, and whether both have sent."""

    L_INIT = 1
    R_INIT = 2
    ASSURED = 4


TCP, V6 = 1, 2
"""Bits of ``ConnTuple.metadata``."""


class ConnTuple(NamedTuple):
    """One end of a connection: addresses as two 64-bit halves each, ports in host order."""

    saddr_h: int
    saddr_l: int
    daddr_h: int
    daddr_l: int
    sport: int
    dport: int
    netns: int
    pid: int
    metadata: int

    @property
    def source(self) -> str:
        """This end's address in words."""
        return _address(self.saddr_h, self.saddr_l, self.metadata)

    @property
    def destination(self) -> str:
        """The other end's address in words."""
        return _address(self.daddr_h, self.daddr_l, self.metadata)


class ConnStats(NamedTuple):
    """Times in ns of CLOCK_MONOTONIC; ``duration`` is the time of creation while the connection lives."""

    sent_bytes: int
    recv_bytes: int
    sent_packets: int
    recv_packets: int
    timestamp: int
    duration: int
    cookie: int
    api: int
    application: int
    encryption: int
    protocol_flags: int
    flags: int
    direction: int


class TcpStats(NamedTuple):
    """``rtt`` and ``rtt_var`` in us; ``state_transitions`` has bit N set for TCP state N."""

    rtt: int
    rtt_var: int
    state_transitions: int


class Conn(NamedTuple):
    """A closed connection."""

    tuple: ConnTuple
    stats: ConnStats
    tcp: TcpStats
    retransmits: int


class TracerCounters(NamedTuple):
    """What the tracer's programs counted; the last three are losses."""

    tcp_closed: int
    events_lost: int
    stats_lost: int
    connects_lost: int


class LibraryOpen(NamedTuple):
    """A library that a process opened, by the path it gave (bytes: a path need not be UTF-8)."""

    pid: int
    path: bytes


class LibraryCounters(NamedTuple):
    """What the shared-libraries programs counted; the last two are losses."""

    emitted: int
    lost: int
    unread: int


_TUPLE = struct.Struct("<QQQQHHIII")
_STATS = struct.Struct("<QQIIQQIBBBBBB6x")
_TCP = struct.Struct("<IIHxx")
_CONN = struct.Struct("<QQQQHHIIIQQIIQQIBBBBBB6xIIHxxI")
_TRACER = struct.Struct("<4Q")
_PATH = struct.Struct("<II120s")
_LIBRARY = struct.Struct("<3Q")

CONN_SIZE = _CONN.size
BATCH_SIZE = 4 * CONN_SIZE + 16
"""Four connections, then id u64, cpu u32 and len u16."""


def conn_tuple(data: bytes) -> ConnTuple:
    """A key of ``conn_stats``."""
    return ConnTuple._make(_unpack(_TUPLE, data, "conn_tuple"))


def conn_stats(data: bytes) -> ConnStats:
    """A value of ``conn_stats``."""
    return ConnStats._make(_unpack(_STATS, data, "conn_stats"))


def conn(data: bytes, offset: int = 0) -> Conn:
    """One closed connection; ``offset`` says where in ``data`` it begins."""
    if offset < 0 or len(data) - offset < CONN_SIZE:
        raise FormatError(f"conn has {CONN_SIZE} bytes, not {len(data) - offset}")
    f = _CONN.unpack_from(data, offset)
    return Conn(ConnTuple._make(f[:9]), ConnStats._make(f[9:22]), TcpStats._make(f[22:25]), f[25])


def closed(data: bytes) -> list[Conn]:
    """A close event: a single connection, or a batch of up to four, told apart by size."""
    if len(data) < BATCH_SIZE:
        # perf pads records, so that the size field and the data end on 8 bytes together.
        return [conn(data)] if len(data) in (CONN_SIZE, CONN_SIZE + 4) else [_refuse(data)]
    if len(data) not in (BATCH_SIZE, BATCH_SIZE + 4):
        return [_refuse(data)]
    (number,) = struct.unpack_from("<H", data, 4 * CONN_SIZE + 12)
    if number > 4:
        raise FormatError(f"a batch of closed connections holds at most 4, not {number}")
    return [conn(data, i * CONN_SIZE) for i in range(number)]


def _refuse(data: bytes) -> Conn:
    raise FormatError(f"a close event has {CONN_SIZE} or {BATCH_SIZE} bytes, not {len(data)}")


def library_open(data: bytes) -> LibraryOpen:
    """An event of the shared-libraries programs (128 bytes, and what perf pads them with)."""
    if len(data) == _PATH.size + 4:
        data = data[: _PATH.size]
    pid, size, path = _unpack(_PATH, data, "lib_path")
    if not 0 < size < len(path):
        raise FormatError(f"lib_path has a path of 1 to {len(path) - 1} bytes, not {size}")
    return LibraryOpen(pid, path[:size])


def tracer_counters(data: bytes) -> TracerCounters:
    """The tracer's ``telemetry`` map."""
    return TracerCounters._make(_unpack(_TRACER, data, "telemetry"))


def library_counters(data: bytes) -> LibraryCounters:
    """The shared-libraries ``counters`` map."""
    return LibraryCounters._make(_unpack(_LIBRARY, data, "lib_counters"))


def pack(value: ConnTuple | ConnStats | TcpStats | Conn) -> bytes:
    """The bytes that decode to ``value``."""
    match value:
        case ConnTuple():
            return _TUPLE.pack(*value)
        case ConnStats():
            return _STATS.pack(*value)
        case TcpStats():
            return _TCP.pack(*value)
        case _:
            return _CONN.pack(*value.tuple, *value.stats, *value.tcp, value.retransmits)


def _unpack(layout: struct.Struct, data: bytes, what: str) -> tuple[Any, ...]:
    if len(data) != layout.size:
        raise FormatError(f"{what} has {layout.size} bytes, not {len(data)}")
    return layout.unpack(data)


def _address(high: int, low: int, metadata: int) -> str:
    halves = struct.pack("<QQ", high, low)
    return (
        socket.inet_ntop(socket.AF_INET6, halves) if metadata & V6 else socket.inet_ntop(socket.AF_INET, halves[8:12])
    )
