"""Calls that no program saw: at the end of a TCP connection its socket's own counts make up for them.

The kernel passes programs by when it likes; here they are taken off, so that every byte is one that nobody saw.
"""

import os
import socket
import struct

import pytest

from fixtures.workloads import tcp
from harness.ebpf.events import Flags
from tests.kernel.test_tracer import ended_by_both, ends, read_after_the_end, reset_by_the_peer

pytestmark = pytest.mark.thorough

TRANSFER = ("tcp_sendmsg", "tcp_sendpage", "tcp_recvmsg", "tcp_splice_read", "sock_send_length", "sock_recv_length")


@pytest.fixture(scope="module")
def half_seen(load):
    """A tracer whose programs at sends and receives are gone, and a connection that was in use before they went."""
    with load() as tracer:
        client, server = tcp.connected()
        with client, server:
            tcp.move(client, server, 1000)
            tcp.move(server, client, 10)
            for program in tracer.programs:
                if any(function in program for function in TRANSFER):
                    tracer._loaded.detach(program)
            yield tracer, client, server


@pytest.fixture
def deaf(half_seen):
    tracer, *_ = half_seen
    tracer.closed(0)
    return tracer


def told(tracer, done):
    client, server = ends(tracer.closed(0), done)
    return (client.sent_bytes, client.recv_bytes), (server.sent_bytes, server.recv_bytes)


def pair(number=0):
    client, server = tcp.connected(number)
    return client, server, tcp.Exchange(tcp.name(client), tcp.name(server), 0, 0)


def test_what_was_seen_and_what_was_not_are_told_together(half_seen):
    tracer, client, server = half_seen
    done = tcp.Exchange(tcp.name(client), tcp.name(server), 0, 0)
    tcp.move(client, server, 70_000)
    tcp.move(server, client, 7)
    live = {t.sport: s for t, s in tracer.connections().items() if t.pid == os.getpid()}
    assert (live[done.client[1]].sent_bytes, live[done.client[1]].recv_bytes) == (1000, 10), "the test shows nothing"
    client.close()
    server.close()
    assert told(tracer, done) == ((71_000, 17), (17, 71_000))


@pytest.mark.parametrize("target", ["", "::1", "::ffff:127.0.0.1"], ids=["v4", "v6", "mapped"])
@pytest.mark.parametrize(("asked", "answered"), [(100_003, 7), (0, 0), (1, 0), (0, 1)])
@pytest.mark.parametrize("peek", [False, True], ids=["receive", "peek"])
def test_every_byte_is_told_at_the_end(deaf, asked, answered, peek, target):
    done = tcp.exchange(asked, answered, peek=peek, target=target)
    client, server = ends(deaf.closed(0), done)
    assert (client.sent_bytes, client.recv_bytes) == (server.recv_bytes, server.sent_bytes) == (asked, answered)
    assert bool(client.flags & Flags.ASSURED) == bool(asked and answered)


@pytest.mark.parametrize("run", [ended_by_both, reset_by_the_peer, read_after_the_end], ids=lambda run: run.__name__)
def test_however_it_was_over(deaf, run):
    client, server, done = pair()
    with client, server:
        run(client, server)
    (sent, received), (answered, asked) = told(deaf, done)
    assert (received, answered, asked) == (3, 3, 5)
    # A socket that is over does not tell whether it sent its end: of one that was reset a byte may be missing.
    assert sent == 5 if run is not reset_by_the_peer else sent in (4, 5)


def test_what_nobody_read_was_sent_and_not_received(deaf):
    client, server, done = pair()
    with client, server:
        client.sendall(bytes(5000))
        assert len(server.recv(2000)) == 2000
        server.sendall(bytes(3))
        server.close()
    assert told(deaf, done)[1] == (3, 2000)


def test_what_is_still_on_its_way_was_sent(deaf):
    """Not acknowledged, not even sent by the kernel: the other side's buffer is full."""
    client, server, done = pair()
    client.setblocking(False)
    with client, server:
        size = 0
        try:
            while True:
                size += client.send(bytes(1 << 16))
        except BlockingIOError:
            pass
        client.close()
        (conn,) = [conn for conn in deaf.closed(0) if conn.pid == os.getpid()]
        assert (conn.sport, conn.sent_bytes, conn.recv_bytes) == (done.client[1], size, 0)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_splice_and_sendfile(deaf, tmp_path):
    (tmp_path / "file").write_bytes(bytes(50_000))
    client, server, done = pair()
    read, write = os.pipe()
    with client, server:
        with (tmp_path / "file").open("rb") as source:
            assert client.sendfile(source) == 50_000
        left = 50_000
        while left:
            left -= len(os.read(read, os.splice(server.fileno(), write, left)))
    os.close(read)
    os.close(write)
    assert told(deaf, done) == ((50_000, 0), (0, 50_000))


def test_a_connection_that_nobody_saw_begin_counts_from_then_on(half_seen, load):
    """What it did before is not told, though the socket has counted it."""
    client, server, done = pair()
    with client, server:
        tcp.move(client, server, 1000)
        tcp.move(server, client, 10)
        with load() as late:
            tcp.move(client, server, 300)
            tcp.move(server, client, 4)
            client.close()
            server.close()
            assert told(late, done) == ((300, 4), (4, 300))
