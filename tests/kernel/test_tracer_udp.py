"""UDP in the tracer: every datagram of every flow, and the end of the flows with their socket."""

import os
import select
import socket

import pytest

from fixtures.workloads import udp
from harness.ebpf.events import TCP, V6, Direction

pytestmark = pytest.mark.thorough

ANY = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
FAMILIES = pytest.mark.parametrize("family", sorted(ANY), ids=["v4", "v6"])


@pytest.fixture(autouse=True)
def _nothing_open(tracer):
    tracer.closed(0)
    yield
    left = [t for t in tracer.connections() if not t.metadata & TCP and t.pid == os.getpid()]
    assert not left, "flows without a socket"


def flows(tracer):
    """What this process's closed flows moved, by both ends' addresses."""
    found = {}
    for conn in tracer.closed(0):
        key = conn.tuple
        if conn.pid == os.getpid() and not conn.metadata & TCP:
            assert (key.source, key.sport, key.destination, key.dport) not in found, "a flow ended twice"
            found[key.source, key.sport, key.destination, key.dport] = conn
    return found


def moved(conn):
    return udp.Moved(conn.sent_bytes, conn.recv_bytes, conn.sent_packets, conn.recv_packets)


@FAMILIES
@pytest.mark.parametrize("peek", [False, True], ids=["receive", "peek"])
@pytest.mark.parametrize("connected", [False, True], ids=["unconnected", "connected"])
def test_every_datagram_of_a_flow(tracer, family, peek, connected):
    asked, answered = [1, 1000, 0, 1400, 20_000], [7, 0]
    client, server = udp.bound(family, ANY[family]), udp.bound(family, ANY[family])
    here, there = udp.name(client), udp.name(server)
    with client, server:
        if connected:
            client.connect(there)
        udp.send(client, there, asked)
        udp.receive(server, asked, peek=peek)
        udp.send(server, here, answered)
        udp.receive(client, answered, peek=peek)
    found = flows(tracer)
    assert set(found) == {(*here, *there), (*there, *here)}
    assert moved(found[*here, *there]) == udp.Moved(sum(asked), sum(answered), len(asked), len(answered))
    assert moved(found[*there, *here]) == udp.Moved(sum(answered), sum(asked), len(answered), len(asked))
    assert {conn.metadata for conn in found.values()} == {V6 if family == socket.AF_INET6 else 0}


def test_a_mapped_address_is_ipv4_and_counts_once(tracer):
    """udpv6_sendmsg hands it to udp_sendmsg: two functions end, one datagram went."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client, udp.bound(socket.AF_INET, "127.0.0.1") as server:
        there = udp.name(server)
        udp.send(client, ("::ffff:127.0.0.1", there[1]), [5, 6])
        udp.receive(server, [5, 6])
        port = udp.name(client)[1]
        udp.send(server, ("127.0.0.1", port), [9])
        udp.receive(client, [9])
    found = flows(tracer)
    assert moved(found["127.0.0.1", port, *there]) == udp.Moved(11, 9, 2, 1)
    assert moved(found[*there, "127.0.0.1", port]) == udp.Moved(9, 11, 1, 2)


@FAMILIES
def test_many_flows_of_one_socket_end_with_it(tracer, family):
    """Also beside the peer that it is connected to."""
    peers = [udp.bound(family, ANY[family]) for _ in range(5)]
    with udp.bound(family, ANY[family]) as server:
        there = udp.name(server)
        for number, peer in enumerate(peers):
            udp.send(peer, there, [number] * 2)
            udp.receive(server, [number] * 2)
        server.connect(udp.name(peers[0]))
        udp.send(server, udp.name(peers[1]), [100])
    before = tracer.counters()
    found = flows(tracer)
    ends = [udp.name(peer) for peer in peers]
    assert set(found) == {(*there, *end) for end in ends}
    assert [found[*there, *end].recv_bytes for end in ends] == [0, 2, 4, 6, 8]
    assert [found[*there, *end].sent_bytes for end in ends] == [0, 100, 0, 0, 0]
    for peer in peers:
        peer.close()
    assert len(flows(tracer)) == 5
    assert tracer.counters().udp_closed - before.udp_closed == 5


def test_who_is_bound_was_asked(tracer):
    """A port that was asked for by number says so; one that the system gave does not."""
    with udp.bound(socket.AF_INET, "127.0.0.1") as free:
        number = udp.name(free)[1]
    flows(tracer)
    with udp.bound(socket.AF_INET, "127.0.0.1", number) as server, udp.bound(socket.AF_INET, "127.0.0.1") as client:
        udp.send(client, udp.name(server), [3])
        udp.receive(server, [3])
    directions = {conn.sport == number: Direction(conn.direction) for conn in flows(tracer).values()}
    assert directions == {True: Direction.INCOMING, False: Direction.OUTGOING}
    # And the binding has gone with its socket.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, udp.bound(socket.AF_INET, "127.0.0.1") as server:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        udp.send(client, udp.name(server), [1])
        udp.receive(server, [1])
    assert {Direction(conn.direction) for conn in flows(tracer).values()} == {Direction.OUTGOING}


def test_a_short_buffer_takes_the_whole_datagram(tracer):
    """What did not fit has gone: the datagram counts as it was sent."""
    with udp.bound(socket.AF_INET, "127.0.0.1") as client, udp.bound(socket.AF_INET, "127.0.0.1") as server:
        udp.send(client, udp.name(server), [1000])
        udp.receive(server, [1000], room=10)
        there = udp.name(server)
    assert {conn.sport: conn.recv_bytes for conn in flows(tracer).values()}[there[1]] == 1000


@FAMILIES
def test_a_corked_datagram_counts_all_its_parts(tracer, family):
    before = tracer.counters()
    with udp.bound(family, ANY[family]) as client, udp.bound(family, ANY[family]) as server:
        client.connect(udp.name(server))
        client.send(bytes(10), socket.MSG_MORE)
        client.send(bytes(20), socket.MSG_MORE)
        client.send(bytes(30))
        udp.receive(server, [60])
        port = udp.name(client)[1]
    (found,) = [conn for conn in flows(tracer).values() if conn.sport == port]
    assert moved(found) == udp.Moved(60, 0, 1, 0)
    assert tracer.counters().udp_sends_missed == before.udp_sends_missed


@FAMILIES
def test_what_a_cork_holds_back_without_a_peer_is_called_lost(tracer, family):
    before = tracer.counters()
    with udp.bound(family, ANY[family]) as client, udp.bound(family, ANY[family]) as server:
        client.sendto(bytes(10), socket.MSG_MORE, udp.name(server))
        client.sendto(bytes(30), udp.name(server))
        udp.receive(server, [40])
        port = udp.name(client)[1]
    (found,) = [conn for conn in flows(tracer).values() if conn.sport == port]
    after = tracer.counters()
    assert found.sent_bytes == 30
    assert after.udp_sends_missed - before.udp_sends_missed == 1
    assert after.sent_bytes_lost - before.sent_bytes_lost == 10


def test_what_failed_did_not_happen(tracer):
    """Nobody listens: the second send hears of it. And the error queue is nothing received."""
    with udp.bound(socket.AF_INET, "127.0.0.1") as gone:
        there = udp.name(gone)
    flows(tracer)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        client.connect(there)
        client.send(b"12345")
        waiting = select.poll()
        waiting.register(client, 0)
        assert waiting.poll(10_000)
        with pytest.raises(ConnectionRefusedError):
            client.send(b"123")
        assert client.recvmsg(100, 1024, socket.MSG_ERRQUEUE)[0] == b"12345"
    (found,) = flows(tracer).values()
    assert moved(found) == udp.Moved(5, 0, 1, 0)


def test_a_socket_without_a_flow_tells_nothing(tracer):
    before = tracer.counters()
    udp.bound(socket.AF_INET, "127.0.0.1").close()
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    after = tracer.counters()
    assert flows(tracer) == {}
    assert after.udp_dropped_conns - before.udp_dropped_conns == 2
    assert after.udp_closed == before.udp_closed


def test_splice_into_a_datagram_counts(tracer):
    """sendpage before 6.5, sendmsg since."""
    read, write = os.pipe()
    with udp.bound(socket.AF_INET, "127.0.0.1") as client, udp.bound(socket.AF_INET, "127.0.0.1") as server:
        client.connect(udp.name(server))
        os.write(write, bytes(700))
        assert os.splice(read, client.fileno(), 700) == 700
        server.recv(65536)
        port = udp.name(client)[1]
    os.close(read)
    os.close(write)
    (found,) = [conn for conn in flows(tracer).values() if conn.sport == port]
    assert found.sent_bytes == 700
