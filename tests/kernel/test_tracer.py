"""The fentry tracer against what the sockets themselves said: every byte, both ends, and every loss accounted for."""

import ctypes
import os
import select
import socket
import struct
import traceback
from pathlib import Path

import pytest

from fixtures.workloads import tcp
from harness.ebpf.events import Direction, Flags

CLONE_NEWPID = 0x20000000
SO_TIMESTAMPING, TX_SOFTWARE, SOFTWARE = 37, 1 << 1, 1 << 4
"""From linux/net_tstamp.h: stamp what is sent, and give the stamps back by the error queue."""


def drained(tracer):
    """All that was closed so far: the event of a close is there before it returns."""
    return tracer.closed(0)


def ends(conns, exchange):
    """The client's and the server's end of that exchange among the closed connections; exactly one each."""
    by_end = {}
    for conn in conns:
        if conn.tuple.pid != os.getpid():
            continue
        end = ((conn.tuple.source, conn.tuple.sport), (conn.tuple.destination, conn.tuple.dport))
        assert end not in by_end, "an end was closed twice"
        by_end[end] = conn
    return by_end.get((exchange.client, exchange.server)), by_end.get((exchange.server, exchange.client))


@pytest.mark.parametrize(
    ("asked", "answered"), [(100_003, 7), (0, 0), (1, 0), (0, 1), (65536, 65537)], ids=lambda size: str(size)
)
@pytest.mark.parametrize("peek", [False, True], ids=["receive", "peek"])
def test_every_byte_of_an_exchange_comes_out_at_both_ends(tracer, record_property, asked, answered, peek):
    drained(tracer)
    exchange = tcp.exchange(asked, answered, peek=peek)
    client, server = ends(drained(tracer), exchange)
    assert (client.stats.sent_bytes, client.stats.recv_bytes) == (asked, answered)
    assert (server.stats.sent_bytes, server.stats.recv_bytes) == (answered, asked)
    assert (client.stats.direction, server.stats.direction) == (Direction.OUTGOING, Direction.INCOMING)
    netns = Path("/proc/self/ns/net").stat().st_ino
    for end in (client, server):
        assert end.tuple.netns == netns
        assert end.tuple.metadata == 1
        assert 0 < end.stats.duration <= end.stats.timestamp
        assert end.tcp.state_transitions & 1 << 7
    assert bool(client.stats.flags & Flags.L_INIT) == bool(asked)
    assert bool(client.stats.flags & Flags.ASSURED) == bool(asked and answered)
    assert bool(server.stats.flags & Flags.R_INIT) == bool(asked)
    record_property("kmt.tracer", str(tracer))


def test_an_open_connection_is_seen_while_it_is_open(tracer):
    drained(tracer)
    client, server = tcp.connected()
    with client, server:
        tcp.move(client, server, 5)
        tcp.move(server, client, 3)
        sports = {client.getsockname()[1]: (5, 3), server.getsockname()[1]: (3, 5)}
        seen = {t.sport: (s.sent_bytes, s.recv_bytes) for t, s in tracer.connections().items() if t.pid == os.getpid()}
        assert sports.items() <= seen.items()
    assert not [t for t in tracer.connections() if t.pid == os.getpid()]
    assert len(drained(tracer)) == 2


def test_many_connections_are_all_seen(tracer):
    drained(tracer)
    before = tracer.counters()
    done = [tcp.exchange(n, 2 * n, number=n) for n in range(1, 41)]
    conns = drained(tracer)
    for exchange in done:
        client, server = ends(conns, exchange)
        assert (client.stats.sent_bytes, client.stats.recv_bytes) == (exchange.asked, exchange.answered)
        assert (server.stats.sent_bytes, server.stats.recv_bytes) == (exchange.answered, exchange.asked)
    after = tracer.counters()
    assert after.tcp_closed - before.tcp_closed == len(conns) == 80
    assert after[1:] == before[1:], "nothing was lost"


def test_sockets_that_never_connected_are_no_connections(tracer):
    drained(tracer)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with socket.socket() as refused, pytest.raises(ConnectionRefusedError):
        refused.connect(address)
    socket.socket().close()
    assert drained(tracer) == []
    assert list(tracer.connections()) == []


def ended_by_both(client, server):
    """Both shut down and both at the end: one was in TIME_WAIT, the other in LAST_ACK, and the ports are given back."""
    tcp.move(client, server, 5)
    tcp.move(server, client, 3)
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    server.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""


def reset_by_the_peer(client, server):
    tcp.move(client, server, 5)
    tcp.move(server, client, 3)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def read_after_the_end(client, server):
    """What is still queued is read when the connection is over on both sides."""
    client.sendall(bytes(5))
    server.sendall(bytes(3))
    client.shutdown(socket.SHUT_WR)
    server.shutdown(socket.SHUT_WR)
    for end, size in ((server, 5), (client, 3)):
        assert len(end.recv(100)) == size
        assert end.recv(1) == b""


@pytest.mark.parametrize("run", [ended_by_both, reset_by_the_peer, read_after_the_end], ids=lambda run: run.__name__)
def test_a_socket_that_was_over_before_it_was_closed_is_told_once(tracer, run):
    drained(tracer)
    before = tracer.counters()
    client, server = tcp.connected()
    done = tcp.Exchange(client.getsockname(), server.getsockname(), 5, 3)
    with client, server:
        run(client, server)
    conns = drained(tracer)
    assert len(conns) == tracer.counters().tcp_closed - before.tcp_closed == 2
    at_client, at_server = ends(conns, done)
    assert (at_client.stats.sent_bytes, at_client.stats.recv_bytes) == (5, 3)
    assert (at_server.stats.sent_bytes, at_server.stats.recv_bytes) == (3, 5)
    assert (at_client.stats.direction, at_server.stats.direction) == (Direction.OUTGOING, Direction.INCOMING)
    assert list(tracer.connections()) == []


def test_a_connect_that_came_to_nothing_is_no_connection(tracer):
    """Without waiting: after a refusal the socket keeps the address of both ends, as it does while nobody answers."""
    drained(tracer)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with socket.socket() as refused:
        refused.setblocking(False)
        refused.connect_ex(address)
        assert refused.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        first = socket.create_connection(listener.getsockname())
        with first, socket.socket() as unanswered:
            unanswered.setblocking(False)
            unanswered.connect_ex(listener.getsockname())
            assert not select.select([], [unanswered], [], 0.2)[1], "the listener has room for one"
            port = first.getsockname()[1]
    assert [conn.tuple.sport for conn in drained(tracer)] == [port]
    assert list(tracer.connections()) == []


def test_the_error_queue_is_nothing_received(tracer):
    """A stamp comes back with a copy of the packet that it belongs to."""
    drained(tracer)
    client, server = tcp.connected()
    done = tcp.Exchange(client.getsockname(), server.getsockname(), 5, 3)
    with client, server:
        client.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, TX_SOFTWARE | SOFTWARE)
        tcp.move(client, server, 5)
        waiting = select.poll()
        waiting.register(client, 0)
        assert waiting.poll(10_000) == [(client.fileno(), select.POLLERR)]
        assert client.recvmsg(4096, 1024, socket.MSG_ERRQUEUE)[0]
        tcp.move(server, client, 3)
    at_client, _ = ends(drained(tracer), done)
    assert (at_client.stats.sent_bytes, at_client.stats.recv_bytes) == (5, 3)


@pytest.mark.requires("ringbuf")
@pytest.mark.parametrize("ringbuf", [True, pytest.param(False, marks=pytest.mark.thorough)], ids=["ring", "perf"])
def test_losses_are_counted_exactly(load, ringbuf):
    """With room for a few dozen closes, and nobody reading: what was read and what was lost add up."""
    with load(enable_ringbuffers=ringbuf, close_event_pages=1) as tracer:
        for n in range(60):
            tcp.exchange(1, 0, number=n)
        conns = drained(tracer)
        counters = tracer.counters()
        assert tracer.ringbuf is ringbuf
        assert counters.tcp_closed == 120
        assert counters.events_lost > 0
        assert len(conns) + counters.events_lost == 120
        # There is room again.
        exchange = tcp.exchange(3, 4)
        assert ends(drained(tracer), exchange)[0].stats.sent_bytes == 3


@pytest.mark.thorough
def test_connections_beyond_the_limit_are_counted(load):
    with load(max_tracked_connections=1) as tracer:
        tcp.exchange(10, 10)
        assert tracer.counters().stats_lost > 0
        assert len(drained(tracer)) == 2


@pytest.mark.thorough
def test_an_accept_without_room_is_counted_once(load):
    with load(max_tracked_connections=1) as tracer:
        client, server = tcp.connected()
        with client, server:
            assert tracer.counters().stats_lost == 1


def test_another_pid_namespace_is_not_seen(tracer):
    drained(tracer)
    before = tracer.counters()
    assert in_new_pid_namespace(lambda: tcp.exchange(5, 5)) == 0
    assert drained(tracer) == []
    assert list(tracer.connections()) == []
    assert tracer.counters() == before


@pytest.mark.thorough
def test_what_another_pid_namespace_moves_over_our_connection_is_not_ours(tracer):
    """Though the socket counts it; what we move before and after it is."""
    drained(tracer)
    client, server = tcp.connected()
    done = tcp.Exchange(client.getsockname(), server.getsockname(), 110, 6)

    def move(asked, answered):
        tcp.move(client, server, asked)
        tcp.move(server, client, answered)

    with client, server:
        move(100, 4)
        assert in_new_pid_namespace(lambda: move(5000, 700)) == 0
        move(10, 2)
    at_client, at_server = ends(drained(tracer), done)
    assert (at_client.sent_bytes, at_client.recv_bytes) == (110, 6)
    assert (at_server.sent_bytes, at_server.recv_bytes) == (6, 110)


def in_new_pid_namespace(call):
    """The exit status of a process that is the first of a new pid namespace."""

    def child():
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWPID):
            raise OSError(ctypes.get_errno(), "unshare")
        return forked(call)

    return forked(child)


def forked(call):
    """What ``call`` returns in a child (an exit status, or nothing for 0); 1 if it raises."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            answer = call()
            status = answer if isinstance(answer, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
