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
    """A closed connection: the fields of its tuple, stats and TCP stats in a row, so that one is made in one step."""

    saddr_h: int
    saddr_l: int
    daddr_h: int
    daddr_l: int
    sport: int
    dport: int
    netns: int
    pid: int
    metadata: int
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
    rtt: int
    rtt_var: int
    state_transitions: int
    retransmits: int

    @property
    def tuple(self) -> ConnTuple:
        """The connection's key."""
        return ConnTuple._make(self[:9])

    @property
    def stats(self) -> ConnStats:
        """What it had moved at its end."""
        return ConnStats._make(self[9:22])

    @property
    def tcp(self) -> TcpStats:
        """What TCP had measured; zeros for UDP."""
        return TcpStats._make(self[22:25])


class Batch(NamedTuple):
    """Connections closed on one CPU; ``id`` counts that CPU's batches."""

    conns: list[Conn]
    id: int
    cpu: int


class TracerCounters(NamedTuple):
    """What the tracer's programs counted (``struct telemetry`` in bpf/tracer/tracer.h says what each is)."""

    tcp_closed: int
    udp_closed: int
    events_lost: int
    stats_lost: int
    sent_bytes_lost: int
    recv_bytes_lost: int
    connects_lost: int
    udp_sends_missed: int
    unbatched_tcp_close: int
    unbatched_udp_close: int
    udp_dropped_conns: int


class LibraryOpen(NamedTuple):
    """A library that a process opened, by the path it gave (bytes: a path need not be UTF-8)."""

    pid: int
    path: bytes


class LibraryCounters(NamedTuple):
    """What the shared-libraries programs counted, ``lost`` and ``unread`` being losses; ``missed`` is the kernel's own
    count of runs that it left out (which opens these were, if any, nobody knows)."""

    emitted: int
    lost: int
    unread: int
    missed: int = 0


_TUPLE = struct.Struct("<QQQQHHIII")
_STATS = struct.Struct("<QQIIQQIBBBBBB6x")
_TCP = struct.Struct("<IIHxx")
_CONN = struct.Struct("<QQQQHHIIIQQIIQQIBBBBBB6xIIHxxI")
_BATCH_END = struct.Struct("<QIHxx")
_BINDING = struct.Struct("<IHxx")
_TRACER = struct.Struct("<11Q")
_PATH = struct.Struct("<II120s")
_LIBRARY = struct.Struct("<3Q")

CONN_SIZE = _CONN.size
BATCH_CONNS = 4
_CONNS_SIZE = BATCH_CONNS * CONN_SIZE
BATCH_SIZE = _CONNS_SIZE + _BATCH_END.size
_SINGLE = (CONN_SIZE, CONN_SIZE + 4)
_WHOLE = (BATCH_SIZE, BATCH_SIZE + 4)
"""perf pads records, so that the size field and the data end on 8 bytes together."""


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
    return Conn._make(_CONN.unpack_from(data, offset))


def batch(data: bytes) -> Batch:
    """A batch as it stands in its map: with as many connections as its length says."""
    if len(data) not in _WHOLE:
        raise FormatError(f"a batch has {BATCH_SIZE} bytes, not {len(data)}")
    number, cpu, size = _BATCH_END.unpack_from(data, _CONNS_SIZE)
    if size > BATCH_CONNS:
        raise FormatError(f"a batch of closed connections holds at most {BATCH_CONNS}, not {size}")
    return Batch(list(map(Conn._make, _CONN.iter_unpack(data[: size * CONN_SIZE]))), number, cpu)


def is_single(data: bytes) -> bool:
    """Whether a close event is one connection by itself; if not, it is a batch. The sizes tell them apart."""
    if len(data) in _SINGLE:
        return True
    if len(data) in _WHOLE:
        return False
    raise FormatError(f"a close event has {CONN_SIZE} or {BATCH_SIZE} bytes, not {len(data)}")


def closed(data: bytes) -> list[Conn]:
    """The connections of a close event."""
    return [conn(data)] if is_single(data) else batch(data).conns


def tcp_stats(data: bytes) -> TcpStats:
    """A value of ``tcp_stats``."""
    return TcpStats._make(_unpack(_TCP, data, "tcp_stats"))


def port_binding(netns: int, port: int) -> bytes:
    """A key of ``port_bindings`` and ``udp_port_bindings``."""
    return _BINDING.pack(netns, port)


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
    return LibraryCounters(*_unpack(_LIBRARY, data, "lib_counters"))


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
            return _CONN.pack(*value)


def _unpack(layout: struct.Struct, data: bytes, what: str) -> tuple[Any, ...]:
    if len(data) != layout.size:
        raise FormatError(f"{what} has {layout.size} bytes, not {len(data)}")
    return layout.unpack(data)


def _address(high: int, low: int, metadata: int) -> str:
    halves = struct.pack("<QQ", high, low)
    return (
        socket.inet_ntop(socket.AF_INET6, halves) if metadata & V6 else socket.inet_ntop(socket.AF_INET, halves[8:12])
    )
