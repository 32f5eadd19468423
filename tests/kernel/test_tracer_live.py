"""The tracer while it runs: families switched on and off, whose connection it is, batches, losses, errors of maps."""

import ctypes
import os
import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from fixtures.workloads import tcp, udp
from harness.ebpf.events import TCP, V6, Direction
from tests.kernel.test_tracer import ends

pytestmark = pytest.mark.thorough

IPPROTO_MPTCP = 262


@pytest.fixture(autouse=True)
def _drained(tracer):
    tracer.closed(0)


def mine(conns):
    return [conn for conn in conns if conn.pid == os.getpid()]


def datagram(target):
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with udp.bound(family, target) as client, udp.bound(family, target) as server:
        udp.send(client, udp.name(server), [4])
        udp.receive(server, [4])


def families(conns):
    return sorted({(bool(c.metadata & TCP), bool(c.metadata & V6)) for c in mine(conns)})


def use_all():
    for target in ("127.0.0.1", "::1"):
        tcp.exchange(3, 4, target=target)
        datagram(target)


def test_families_are_switched_while_it_runs(load):
    with load() as tracer:
        switch(tracer)


def switch(tracer):
    use_all()
    everything = [(False, False), (False, True), (True, False), (True, True)]
    assert families(tracer.closed(0)) == everything
    before = tracer.programs
    for off, gone in (("tcp_v4", (True, False)), ("tcp_v6", (True, True)), ("udp_v4", (False, False))):
        tracer.collect(**{off: False})
        use_all()
        everything.remove(gone)
        assert families(tracer.closed(0)) == everything
    assert not [p for p in tracer.programs if p.startswith("tcp_")], "nothing of TCP is attached"
    tracer.collect(udp_v6=False)
    assert tracer.programs == ()
    use_all()
    assert tracer.closed(0) == []
    tracer.collect(tcp_v4=True, tcp_v6=True, udp_v4=True, udp_v6=True)
    assert tracer.programs == before
    use_all()
    assert len(families(tracer.closed(0))) == 4


def test_what_is_switched_off_is_forgotten(tracer):
    client, server = tcp.connected()
    with client, server:
        tcp.move(client, server, 5)
        assert any(t.pid == os.getpid() for t in tracer.connections())
        tracer.collect(tcp_v4=False)
        assert not any(t.pid == os.getpid() for t in tracer.connections())
        assert list(tracer.tcp_stats()) == []
        tracer.collect(tcp_v4=True)
        tcp.move(client, server, 7)
    assert sorted((c.sent_bytes, c.recv_bytes) for c in mine(tracer.closed(0))) == [(0, 7), (7, 0)]


@pytest.mark.parametrize("target", ["::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("peek", [False, True], ids=["receive", "peek"])
def test_tcp_over_ipv6_sockets(tracer, target, peek):
    """A mapped address is IPv4: so it goes over the wire."""
    done = tcp.exchange(70_001, 9, peek=peek, target=target)
    client, server = ends(tracer.closed(0), done)
    assert (client.sent_bytes, client.recv_bytes) == (server.recv_bytes, server.sent_bytes) == (70_001, 9)
    assert (client.direction, server.direction) == (Direction.OUTGOING, Direction.INCOMING)
    assert {client.metadata, server.metadata} == {TCP if "." in target else TCP | V6}


def test_splice_and_sendfile_count(tracer, tmp_path):
    """Into a socket (sendpage before 6.5) and out of it (no recvmsg at all)."""
    file = tmp_path / "file"
    file.write_bytes(bytes(50_000))
    client, server = tcp.connected()
    done = tcp.Exchange(tcp.name(client), tcp.name(server), 50_000, 0)
    read, write = os.pipe()
    with client, server:
        with file.open("rb") as source:
            assert client.sendfile(source) == 50_000
        left = 50_000
        while left:
            got = os.splice(server.fileno(), write, left)
            left -= len(os.read(read, got))
    os.close(read)
    os.close(write)
    at_client, at_server = ends(tracer.closed(0), done)
    assert (at_client.sent_bytes, at_server.recv_bytes) == (50_000, 50_000)


def test_a_connection_belongs_to_who_opened_it(tracer):
    """A child uses it and is the last to close it: one connection, of the parent, with all that went through."""
    client, server = tcp.connected()
    done = tcp.Exchange(tcp.name(client), tcp.name(server), 5, 3)

    def child():
        tcp.move(client, server, 5)
        tcp.move(server, client, 3)
        time.sleep(0.2)

    pid = os.fork()
    if not pid:
        status = 1
        try:
            child()
            status = 0
        finally:
            os._exit(status)
    client.close()
    server.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    conns = tracer.closed(0)
    at_client, at_server = ends(conns, done)
    assert (at_client.sent_bytes, at_client.recv_bytes, at_server.sent_bytes) == (5, 3, 3)
    assert not [c for c in conns if c.pid == pid]
    assert list(tracer.connections()) == []


def test_a_connection_taken_apart_has_ended(tracer):
    """connect() to AF_UNSPEC; the socket may be used for another."""
    client, server = tcp.connected()
    done = tcp.Exchange(tcp.name(client), tcp.name(server), 5, 0)
    with client, server:
        tcp.move(client, server, 5)
        unspecified(client)
        (ended,) = mine(tracer.closed(0))
        assert ((ended.tuple.source, ended.sport), ended.sent_bytes) == (done.client, 5)
    assert len(mine(tracer.closed(0))) == 1, "the server's end"


def unspecified(sock):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16):
        raise OSError(ctypes.get_errno(), "connect")


def test_who_waits_when_the_tracer_comes(load, tracer):
    """Neither the connect nor the accept was seen: the port that somebody listens at says who began."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        done = tcp.Exchange(tcp.name(client), tcp.name(server), 4, 0)
        with load() as late, client, server:
            tcp.move(client, server, 4)
            seen = {t.sport: s.direction for t, s in late.connections().items() if t.pid == os.getpid()}
            assert seen == {done.client[1]: Direction.OUTGOING, done.server[1]: Direction.INCOMING}


def test_bindings_come_and_go_with_listeners(tracer):
    netns = Path("/proc/self/ns/net").stat().st_ino
    bindings = tracer._maps["port_bindings"]

    def bound(port):
        return bindings.get(struct.pack("<IHxx", netns, port))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for _ in range(3):
            with socket.create_connection(listener.getsockname()):
                listener.accept()[0].close()
        assert bound(port) == struct.pack("<I", 1), "however many it accepted"
    assert bound(port) is None


def test_a_batch_that_waits_for_its_fourth_is_read(tracer):
    before = tracer.counters()
    seen = []
    for number in range(7):
        tcp.exchange(number, 0, number=number)
        got = mine(tracer.closed(0))
        assert len(got) == 2, "at once, whole batch or not"
        seen += got
    after = tracer.counters()
    assert len(set(seen)) == after.tcp_closed - before.tcp_closed == 14
    assert after.events_lost == before.events_lost
    assert after.unbatched_tcp_close == before.unbatched_tcp_close


def fill(sock):
    """Send until neither side has room for more."""
    while True:
        try:
            sock.send(bytes(1 << 16))
        except BlockingIOError:
            return


def test_a_full_batch_is_passed_by(tracer):
    """The close that fills the batch lingers, so the batch waits for another exit: who comes then is told alone."""
    client, server = tcp.connected()
    done = tcp.Exchange(tcp.name(client), tcp.name(server), 0, 0)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 20))
    client.setblocking(False)
    fill(client)
    spare = [tcp.connected(number) for number in range(1, 4)]
    ready = [end for pair in spare for end in pair]
    while len(tracer._batch(bytes(4)).conns) != 3:
        ready.pop().close()
    before = tracer.counters()
    lingering = threading.Thread(target=client.close)
    lingering.start()
    while tracer.counters().tcp_closed == before.tcp_closed:
        time.sleep(0.01)
    assert len(tracer._batch(bytes(4)).conns) == 4
    # Even so the four that wait can be read.
    conns = mine(tracer.closed(0))
    ready.pop().close()
    assert tracer.counters().unbatched_tcp_close - before.unbatched_tcp_close == 1
    assert tracer._batch(bytes(4)).conns == [], "the exit of any close sends it"
    with server:
        while server.recv(1 << 20):
            pass
        lingering.join()
    for end in ready:
        end.close()
    conns += mine(tracer.closed(0))
    assert len(conns) == len(set(conns)) == 8
    assert ends(conns, done)[0] is not None


@pytest.mark.requires("mptcp")
def test_subflows_of_mptcp_leave_nothing(tracer):
    """They are closed by the kernel, without tcp_close."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as client:
            client.connect(listener.getsockname())
            server, _ = listener.accept()
            with server:
                client.sendall(b"12345")
                assert server.recv(10) == b"12345"
    all_over(tracer)


def all_over(tracer):
    """The kernel ends a connection that nobody closes when it is done with it, at the latest after a minute (the time
    that MPTCP waits for its other end, too)."""
    end = time.monotonic() + 90
    while any(t.pid == os.getpid() for t in tracer.connections()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [t for t in tracer.connections() if t.pid == os.getpid()]


def test_an_end_is_told_though_the_kernel_passed_programs_by(load):
    """Of kprobes it passes all by while their CPU is in a system call on a map, as when the connections are looked at.
    Here those at the end are taken off, but the last."""
    with load() as tracer:
        for program in ("tcp_close", "tcp_v4_destroy_sock", "kprobe__tcp_close", "kprobe__tcp_v4_destroy_sock"):
            if program in tracer.programs:
                tracer._way.detach(program)
        done = tcp.exchange(70_000, 9)
        all_over(tracer)
        client, server = ends(tracer.closed(0), done)
        assert (client.sent_bytes, client.recv_bytes) == (server.recv_bytes, server.sent_bytes) == (70_000, 9)


def test_bytes_without_a_connection_to_count_for_are_called_lost(load):
    """Of many that are open at once one has an entry: every byte is told or called lost."""
    with load(max_tracked_connections=1, close_event_pages=64) as tracer:
        pairs = [tcp.connected(number) for number in range(6)]
        for client, server in pairs:
            tcp.move(client, server, 1000)
            tcp.move(server, client, 10)
        for pair in pairs:
            for end in pair:
                end.close()
        conns, counters = mine(tracer.closed(0)), tracer.counters()
        assert len(conns) == counters.tcp_closed == 12
        assert counters.stats_lost > 0
        assert sum(c.sent_bytes for c in conns) + counters.sent_bytes_lost == 6 * 1010
        assert sum(c.recv_bytes for c in conns) + counters.recv_bytes_lost == 6 * 1010
        assert counters.sent_bytes_lost < 6 * 1010, "one has an entry"


def test_errors_of_maps_and_helpers_are_told(load):
    """With room for one connection, and for a few events."""
    with load(max_tracked_connections=1, close_event_pages=1) as tracer:
        assert tracer.errors.maps() == tracer.errors.helpers() == {}
        for number in range(40):
            tcp.exchange(10, 20, number=number)
        refused = tracer.errors.maps()
        counters = tracer.counters()
        assert set(refused) <= {"tracked_sockets", "conn_stats", "tcp_stats", "tcp_listeners", "port_bindings"}
        assert refused["tracked_sockets"] == {"E2BIG": counters.stats_lost}
        helper = "ringbuf_output" if tracer.ringbuf else "perf_event_output"
        assert sum(tracer.errors.helpers()[helper].values()) > 0
        # And every byte that has no connection to count for is called lost.
        conns = mine(tracer.closed(0))
        counters = tracer.counters()
        lost = 2 * 40 - len(conns)
        assert counters.events_lost == lost > 0
        assert counters.sent_bytes_lost > 0
        assert counters.recv_bytes_lost > 0
