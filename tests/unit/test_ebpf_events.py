"""Events: bytes to values and back, and what is no event."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ebpf import events
from harness.ebpf.events import Conn, ConnStats, ConnTuple, LibraryOpen, TcpStats
from harness.errors import FormatError

U8, U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
TUPLES = st.builds(ConnTuple, U64, U64, U64, U64, U16, U16, U32, U32, U32)
STATS = st.builds(ConnStats, U64, U64, U32, U32, U64, U64, U32, U8, U8, U8, U8, U8, U8)
TCP = st.builds(TcpStats, U32, U32, U16)
CONNS = st.builds(lambda t, s, tcp, retransmits: Conn(*t, *s, *tcp, retransmits), TUPLES, STATS, TCP, U32)


@given(CONNS)
def test_a_connection_comes_back(conn):
    data = events.pack(conn)
    assert len(data) == events.CONN_SIZE == 120
    assert events.closed(data) == [conn]
    assert conn == Conn(*conn.tuple, *conn.stats, *conn.tcp, conn.retransmits)
    assert events.closed(data + bytes(4)) == [conn], "perf pads a record"
    assert events.conn_tuple(data[:48]) == conn.tuple
    assert events.conn_stats(data[48:104]) == conn.stats
    assert data[:48] == events.pack(conn.tuple)
    assert data[48:104] == events.pack(conn.stats)
    assert data[104:116] == events.pack(conn.tcp)


def test_offsets():
    """The layout of the C header, field by field where it is easy to get wrong."""
    stats = ConnStats(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
    data = events.pack(stats)
    assert len(data) == 56
    assert struct.unpack_from("<I", data, 40) == (7,)
    assert data[44:50] == bytes([8, 9, 10, 11, 12, 13])
    tuple_ = ConnTuple(0, 0, 0, 0, 1, 2, 3, 4, 5)
    assert struct.unpack("<32xHHIII", events.pack(tuple_)) == (1, 2, 3, 4, 5)


@given(st.lists(CONNS, max_size=4), U64, U32)
def test_a_batch_comes_back(conns, number, cpu):
    data = b"".join(events.pack(c) for c in conns).ljust(480, b"\0") + struct.pack("<QIHxx", number, cpu, len(conns))
    assert len(data) == events.BATCH_SIZE == 496
    assert events.closed(data) == events.closed(data + bytes(4)) == conns
    assert events.batch(data) == (conns, number, cpu)


def test_a_batch_of_five_is_none():
    with pytest.raises(FormatError, match="at most 4, not 5"):
        events.closed(bytes(480) + struct.pack("<QIHxx", 0, 0, 5))


@given(st.binary(max_size=600))
def test_other_sizes_are_refused(data):
    if len(data) not in (120, 124, 496, 500):
        with pytest.raises(FormatError, match="not"):
            events.closed(data)


@given(U32, st.binary(min_size=1, max_size=119))
def test_a_library_comes_back(pid, path):
    data = struct.pack("<II120s", pid, len(path), path)
    assert events.library_open(data) == LibraryOpen(pid, path)
    assert events.library_open(data + bytes(4)) == LibraryOpen(pid, path)


@pytest.mark.parametrize("data", [b"", bytes(127), bytes(128), struct.pack("<II120s", 1, 120, b"x" * 120), bytes(200)])
def test_what_is_no_library_is_refused(data):
    with pytest.raises(FormatError):
        events.library_open(data)


def test_a_batch_of_another_size_is_none():
    with pytest.raises(FormatError, match="a batch has 496 bytes, not 495"):
        events.batch(bytes(495))


@pytest.mark.parametrize(
    "decode", [events.tracer_counters, events.tcp_stats, events.library_counters, events.conn_tuple]
)
def test_counters_of_another_size_are_refused(decode):
    with pytest.raises(FormatError, match="bytes, not 3"):
        decode(b"abc")


def test_addresses_in_words():
    v4 = ConnTuple(0, 0x0100007F, 0, 0x0200A8C0, 1, 2, 0, 0, events.TCP)
    assert (v4.source, v4.destination) == ("127.0.0.1", "192.168.0.2")
    v6 = ConnTuple(0, 1 << 56, 0, 1 << 56, 1, 2, 0, 0, events.TCP | events.V6)
    assert v6.source == "::1"
