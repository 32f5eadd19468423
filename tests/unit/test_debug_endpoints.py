"""The endpoints' answers, and the server that carries them: real sockets, slow, huge, malformed and hostile clients."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import select
import socket
import stat
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from harness.debugger import Debugger, DebugServer, Limits
from harness.debugger.endpoints import Request
from harness.errors import HarnessError, SettingsError
from harness.telemetry import PROMETHEUS, Registry
from harness.watcher.identity import FilePath, PathIdentifier
from harness.watcher.registry import FileRegistry

TOKEN = "a token of this test"
BEARER = {"authorization": f"Bearer {TOKEN}"}
ATTACH, DETACH = "/debug/usm/attach-pid", "/debug/usm/detach-pid"
SHORT = Limits(head_bytes=2048, body_bytes=4096, seconds=0.4, connections=4)


def nothing(_: FilePath) -> None:
    pass


def refuse(_: FilePath) -> None:
    raise ValueError("not this one")


@pytest.fixture
def metrics() -> Registry:
    return Registry()


@pytest.fixture
def debugger(metrics: Registry) -> Debugger:
    return Debugger(token=TOKEN, metrics=metrics)


@pytest.fixture
def server(debugger: Debugger) -> Iterator[DebugServer]:
    with DebugServer(debugger, "127.0.0.1:0", limits=SHORT) as server:
        yield server


def connect(server: DebugServer) -> socket.socket:
    if server.address.startswith("unix:"):
        client = socket.socket(socket.AF_UNIX)
        client.connect(server.address.removeprefix("unix:"))
    else:
        host, _, port = server.address.rpartition(":")
        client = socket.create_connection((host.strip("[]"), int(port)))
    client.settimeout(60)
    return client


def exchange(server: DebugServer, *pieces: bytes) -> tuple[int, bytes]:
    """What comes back for those bytes: the status (0 for none) and what follows the headers."""
    with connect(server) as client:
        try:
            for piece in pieces:
                client.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return answer(client)


def answer(client: socket.socket) -> tuple[int, bytes]:
    got = b""
    while data := client.recv(1 << 16):
        got += data
    head, _, body = got.partition(b"\r\n\r\n")
    return (int(head.split()[1]), body) if head else (0, b"")


def get(path: str, **headers: str) -> bytes:
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{extra}\r\n".encode()


def post(path: str, body: bytes, token: str = TOKEN) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n"
    )
    return head.encode() + b"\r\n" + body


# What is shown.


def test_nothing_to_show_is_an_empty_list(server: DebugServer) -> None:
    for path in ("/debug/usm/traced_programs", "/debug/usm/blocked_processes", "/debug/usm_telemetry"):
        assert exchange(server, get(path)) == (200, b"[]")


def test_traced_and_blocked_files(debugger: Debugger, server: DebugServer, metrics: Registry, tmp_path: Path) -> None:
    pid = os.getpid()
    for name in ("libssl.so", "libcrypto.so"):
        (tmp_path / name).touch()
    registries = [FileRegistry("twins", metrics=metrics) for _ in range(2)]
    for registry in registries:
        debugger.add_registry(registry)
        debugger.add_registry(registry)
    good, bad = str(tmp_path / "libssl.so"), str(tmp_path / "libcrypto.so")
    registries[0].register(good, pid, nothing, nothing)
    with pytest.raises(ValueError, match="not this one"):
        registries[1].register(bad, pid, refuse, nothing)
    status, body = exchange(server, get("/debug/usm/traced_programs?x=1"))
    assert json.loads(body) == [{"ProgramType": "twins", "FilePath": good, "PIDs": [pid]}]
    id = PathIdentifier.of_file(bad)
    blocked = {"Dev": id.dev, "Inode": id.inode, "SamplePath": f"/proc/{pid}/root{bad}"}
    status, body = exchange(server, get("/debug/usm/blocked_processes"))
    assert (status, json.loads(body)) == (200, [{"ProgramType": "twins", "PathIdentifiers": [blocked]}])
    debugger.remove_registry(registries[0])
    assert debugger.traced_programs() == []


def test_looking_at_the_blocklist_is_no_use_of_it(debugger: Debugger, metrics: Registry) -> None:
    registry = FileRegistry("x", metrics=metrics)
    for inode in (1, 2):
        registry.blocklist.add(PathIdentifier(1, inode), f"/{inode}")
    debugger.add_registry(registry)
    before = registry.blocklist.entries()
    assert debugger.blocked_processes()
    assert registry.blocklist.entries() == before


def test_telemetry_is_sorted_by_name(server: DebugServer, metrics: Registry) -> None:
    metrics.gauge("z").set(-2)
    metrics.counter("a", "k:2", "k:1", PROMETHEUS).add(3)
    assert json.loads(exchange(server, get("/debug/usm_telemetry"))[1]) == [
        {"Name": "a", "Type": "counter", "Tags": ["k:1", "k:2"], "Opts": ["_prometheus"], "Value": 3},
        {"Name": "z", "Type": "gauge", "Opts": [], "Value": -2},
    ]


def test_prometheus_can_scrape_it(server: DebugServer, metrics: Registry) -> None:
    metrics.counter("usm.x", PROMETHEUS).add(3)
    with urllib.request.urlopen(f"http://{server.address}/metrics") as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        (family,) = text_string_to_metric_families(response.read().decode())
    assert (family.name, family.samples[0].value) == ("usm__x", 3)
    status, body = exchange(server, get("/metrics", Accept="application/openmetrics-text; version=1.0.0"))
    assert status == 200
    assert body.endswith(b"# EOF\n")


def test_a_path_that_is_no_utf8_is_shown(debugger: Debugger, metrics: Registry, tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/lib\xff\nssl.so")
    Path(path).touch()
    registry = FileRegistry("x", metrics=metrics)
    registry.register(path, os.getpid(), nothing, nothing)
    debugger.add_registry(registry)
    response = debugger.answer(Request("GET", "/debug/usm/traced_programs", {}))
    assert json.loads(response.body)[0]["FilePath"] == path


# Statuses: a total function of the request.

BODIES = [
    b'{"pid": 7, "type": "native"}',
    b'{"pid": 4294967295, "type": "native", "more": [1]}',
    b'{"pid": 7, "type": "failing"}',
    b'{"pid": 7, "type": "unknown"}',
    b'{"pid": 4294967296, "type": "native"}',
    b'{"pid": -1, "type": "native"}',
    b'{"pid": 7.0, "type": "native"}',
    b'{"pid": true, "type": "native"}',
    b'{"pid": "7", "type": "native"}',
    b'{"type": "native"}',
    b'{"pid": 7}',
    b'{"pid": 7, "type": 1}',
    b"[7]",
    b"7",
    b"",
    b"{",
    b"\xff\xfe",
    b'{"pid": ' + b"9" * 5000 + b', "type": "native"}',
    b"[" * 100_000,
]
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "post"]
TOKENS = [None, f"Bearer {TOKEN}", f"bearer  {TOKEN}", "Bearer ", "Bearer another", f"Basic {TOKEN}", TOKEN]
methods = st.one_of(st.sampled_from(METHODS), st.text(max_size=5))
bodies = st.one_of(st.sampled_from(BODIES), st.binary(max_size=30))
given_tokens = st.one_of(st.sampled_from(TOKENS), st.text(max_size=20))


def expected(method: str, authorization: str | None, body: bytes) -> int:
    if method != "POST":
        return 405
    if authorization is None or authorization.split() != [authorization.split(" ")[0], *TOKEN.split()]:
        return 401
    if authorization.split(" ")[0].lower() != "bearer":
        return 401
    try:
        wanted = json.loads(body)
        pid, name = wanted["pid"], wanted["type"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return 400
    if type(pid) is not int or not 0 <= pid <= 0xFFFFFFFF or not isinstance(name, str):
        return 400
    return {"native": 200, "failing": 500}.get(name, 400)


@given(st.sampled_from(["attach", "detach"]), methods, given_tokens, bodies)
def test_statuses_of_writes(verb: str, method: str, authorization: str | None, body: bytes) -> None:
    write(verb, method, authorization, body)


def test_statuses_of_every_write_that_is_known() -> None:
    """Drawn, few are right in all of their parts."""
    for words in itertools.product(["attach", "detach"], METHODS, TOKENS, BODIES):
        write(*words)


def write(verb: str, method: str, authorization: str | None, body: bytes) -> None:
    """Its answer must be the model's."""
    called: list[tuple[str, int]] = []
    debugger = Debugger(token=TOKEN, metrics=Registry())

    def fail(pid: int) -> None:
        raise OSError(f"no {pid}\udcff")

    debugger.add_attacher(
        "native", lambda pid: called.append(("attach", pid)), lambda pid: called.append(("detach", pid))
    )
    debugger.add_attacher("failing", fail, fail)
    headers = {} if authorization is None else {"authorization": authorization}
    response = debugger.answer(Request(method, f"/debug/usm/{verb}-pid", headers, body))
    assert response.status == expected(method, authorization, body)
    words = response.body.decode()
    assert TOKEN not in words
    if response.status == 200:
        pid = json.loads(body)["pid"]
        assert called == [(verb, pid)]
        assert words == f"native successfully {verb}ed PID {pid}\n"
    else:
        assert called == []
    if response.status == 500:
        assert words == f"Error {verb}ing PID: no 7\\udcff\n"
    if response.status == 405:
        assert words == "Only POST requests are allowed\n"
        assert ("Allow", "POST") in response.headers


def test_an_unknown_type_is_named(debugger: Debugger) -> None:
    response = debugger.answer(Request("POST", ATTACH, BEARER, b'{"pid": 1, "type": "java"}'))
    assert (response.status, response.body) == (400, b'Module "java" is not enabled\n')


@given(methods, st.text(max_size=20))
def test_statuses_of_everything_else(method: str, target: str) -> None:
    debugger = Debugger(metrics=Registry())
    assert debugger.answer(Request(method, target, {})).status in (400, 404)
    for path in ("/metrics", "/debug/usm_telemetry?a", "http://localhost/debug/usm/traced_programs"):
        assert debugger.answer(Request(method, path, {})).status == (200 if method in ("GET", "HEAD") else 405)


def test_an_attacher_can_be_replaced_and_removed(debugger: Debugger) -> None:
    called: list[str] = []
    for name in ("old", "new"):
        debugger.add_attacher("native", lambda _, name=name: called.append(name), lambda _: None)
    write = Request("POST", ATTACH, BEARER, BODIES[0])
    assert debugger.answer(write).status == 200
    debugger.remove_attacher("native")
    debugger.remove_attacher("native")
    assert debugger.answer(write).status == 400
    assert called == ["new"]


def test_a_callback_may_ask_the_debugger_again(debugger: Debugger) -> None:
    seen: list[int] = []
    inner = Request("POST", DETACH, BEARER, BODIES[0])
    debugger.add_attacher("native", lambda _: seen.append(debugger.answer(inner).status), lambda _: None)
    assert debugger.answer(Request("POST", ATTACH, BEARER, BODIES[0])).status == 200
    assert seen == [200]


@pytest.mark.parametrize("token", [None, "other", "", "\N{SNOWMAN}"])
def test_no_write_without_the_token(metrics: Registry, token: str | None) -> None:
    called: list[int] = []
    debugger = Debugger(token=None if token is None else TOKEN, metrics=metrics)
    debugger.add_attacher("native", called.append, called.append)
    headers = {"authorization": f"Bearer {'None' if token is None else token}"}
    assert debugger.answer(Request("POST", ATTACH, headers, BODIES[0])).status == 401
    assert called == []


@pytest.mark.parametrize("token", ["", " "])
def test_an_empty_token_is_refused(token: str) -> None:
    with pytest.raises(SettingsError):
        Debugger(token=token)


# The server: what arrives is served within limits, and nothing else is.


def test_a_write_over_the_wire(debugger: Debugger, server: DebugServer) -> None:
    called: list[int] = []
    debugger.add_attacher("native", called.append, lambda _: None)
    assert exchange(server, post(ATTACH, BODIES[0])) == (200, b"native successfully attached PID 7\n")
    assert exchange(server, post(ATTACH, BODIES[0], token="wrong"))[0] == 401
    pieces = [post(ATTACH, BODIES[0])[n : n + 1] for n in range(len(post(ATTACH, BODIES[0])))]
    assert exchange(server, *pieces)[0] == 200, "a byte at a time"
    chunked = b"POST %b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in BODIES[0]) + b"0\r\n\r\n"
    assert exchange(server, chunked % (ATTACH.encode(), TOKEN.encode()) + body)[0] == 200
    assert called == [7, 7, 7]


def test_a_client_that_waits_to_be_asked_for_the_body(debugger: Debugger, server: DebugServer) -> None:
    debugger.add_attacher("native", lambda _: None, lambda _: None)
    head, body = post(ATTACH, BODIES[0]).split(b"\r\n\r\n", 1)
    with connect(server) as client:
        client.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert client.recv(1 << 10).startswith(b"HTTP/1.1 100 ")
        client.sendall(body)
        assert answer(client)[0] == 200


def test_head_has_no_body(server: DebugServer) -> None:
    with connect(server) as client:
        client.sendall(get("/debug/usm_telemetry").replace(b"GET", b"HEAD", 1))
        got = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert got.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Length: 2\r\n" in got
    assert got.endswith(b"\r\n\r\n")


def test_a_connection_carries_one_request(server: DebugServer) -> None:
    status, body = exchange(server, get("/debug/usm_telemetry") * 3)
    assert (status, body) == (200, b"[]")


MALFORMED = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", 400),
    "no version": (b"GET /metrics\r\n\r\n", 400),
    "another version": (b"GET /metrics HTTP/3.0\r\nHost: localhost\r\n\r\n", 505),
    "no host": (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "a length that is no number": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
    "a length with many digits": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 1500 + b"\r\n\r\n", 400),
    "a length that no number of the machine holds": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 20 + b"\r\n\r\n",
        413,
    ),
    "an unknown encoding": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    "a bad chunk": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "a header with a NUL": (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: \0\r\n\r\n", 400),
    "a header that is folded to hide": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    "a target that is no URL": (b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "long headers": (get("/metrics", Padding="x" * 5000), 431),
    "headers without an end": (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a: b\r\n" * 2000, 431),
    "a long line": (b"GET /" + b"x" * 100_000, 431),
    "a huge body": (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n" + bytes(500_000), 413),
    "a huge body in chunks": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"400\r\n%b\r\n" % bytes(1024)) * 9,
        413,
    ),
    "cut in its headers": (b"GET /metrics HTTP/1.1\r\nHos", 408),
    "cut in its body": (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{", 408),
    "a host that is not here": (b"GET /metrics HTTP/1.1\r\nHost: rebound.example\r\n\r\n", 421),
    "a port and a host that is not here": (b"GET /metrics HTTP/1.1\r\nHost: localhost.example:80\r\n\r\n", 421),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_no_request_gets_its_status(server: DebugServer, kind: str) -> None:
    sent, status = MALFORMED[kind]
    assert exchange(server, sent)[0] == status
    assert exchange(server, get("/debug/usm_telemetry")) == (200, b"[]"), "the server goes on"


@pytest.mark.parametrize("host", ["localhost:80", "127.0.0.1", "127.8.9.10:1", "[::1]:80", "[::1]", "LOCALHOST"])
def test_hosts_that_are_this_machine(server: DebugServer, host: str) -> None:
    assert exchange(server, get("/debug/usm_telemetry").replace(b"localhost", host.encode()))[0] == 200


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_break_the_server(noise: bytes, request_first: bool) -> None:
    sent = get("/metrics")[: len(noise)] + noise if request_first else noise
    with connect(SHARED) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        status, _ = answer(client)
    assert status in (0, 200, 400, 404, 405, 408, 413, 421, 431, 501, 505)


SHARED = DebugServer(Debugger(metrics=Registry()), "127.0.0.1:0")
"""Of the test with many examples."""


def test_a_client_that_closes_at_once_costs_nothing(server: DebugServer) -> None:
    for _ in range(20):
        connect(server).close()
    status = 503
    while status != 200:
        with contextlib.suppress(ConnectionResetError):
            status, _ = exchange(server, get("/debug/usm_telemetry"))


def test_slow_clients_are_shed_and_hold_no_place_for_ever(debugger: Debugger) -> None:
    """More of them than there are places, each with a byte now and then: all end, and others are served again."""
    ended = []
    with DebugServer(debugger, "127.0.0.1:0", limits=SHORT) as server:

        def trickle(client: socket.socket) -> None:
            with client:
                try:
                    for byte in itertools.cycle(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nA: b\r\n"):
                        client.send(bytes([byte]))
                        threading.Event().wait(0.05)
                except OSError:
                    ended.append(client)

        slow = [threading.Thread(target=trickle, args=(connect(server),)) for _ in range(3 * SHORT.connections)]
        for thread in slow:
            thread.start()
        for thread in slow:
            thread.join(60)
        assert len(ended) == len(slow)
        assert exchange(server, get("/debug/usm_telemetry")) == (200, b"[]")


def test_a_slow_client_is_told_and_a_byte_now_and_then_wins_no_time(server: DebugServer) -> None:
    with connect(server) as client:
        for byte in itertools.cycle(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nA: b\r\n"):
            if select.select([client], [], [], 0.05)[0]:
                break
            client.send(bytes([byte]))
        assert answer(client)[0] == 408


def test_a_client_that_never_reads_is_shed(metrics: Registry) -> None:
    for n in range(3000):
        metrics.counter(f"n.{n}", "tag:" + "x" * 3000)
    debugger = Debugger(metrics=metrics)
    limits = Limits(seconds=0.3, connections=1)
    with DebugServer(debugger, "127.0.0.1:0", limits=limits) as server, connect(server) as deaf:
        deaf.sendall(get("/debug/usm_telemetry"))
        status = 503
        while status != 200:  # until it is shed
            with connect(server) as client, contextlib.suppress(OSError):
                client.sendall(get("/metrics"))
                status, _ = answer(client)


def test_without_a_place_clients_are_told(debugger: Debugger, server: DebugServer) -> None:
    clients = [connect(server) for _ in range(SHORT.connections)]
    with connect(server) as one_more:
        assert answer(one_more)[0] == 503
    for client in clients:
        client.close()


def test_callbacks_that_hang_hold_no_place_of_a_read(metrics: Registry) -> None:
    release = threading.Event()
    inside = threading.Semaphore(0)
    debugger = Debugger(token=TOKEN, metrics=metrics, writes=2)

    def hang(_: int) -> None:
        inside.release()
        release.wait(60)

    debugger.add_attacher("native", hang, hang)
    with DebugServer(debugger, "127.0.0.1:0", limits=SHORT) as server:
        hanging = [connect(server) for _ in range(2)]
        for client in hanging:
            client.sendall(post(ATTACH, BODIES[0]))
            inside.acquire()
        assert exchange(server, post(ATTACH, BODIES[0]))[0] == 503
        assert exchange(server, get("/metrics"))[0] == 200
        release.set()
        assert [answer(client)[0] for client in hanging] == [200, 200]
        assert exchange(server, post(ATTACH, BODIES[0]))[0] == 200
        for client in hanging:
            client.close()


def test_neither_token_nor_body_is_logged(server: DebugServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = b'{"pid": 7, "type": "a-body-of-this-test"}'
    assert exchange(server, post(ATTACH, secret))[0] == 400
    assert exchange(server, post(ATTACH, secret, token="nearly" + TOKEN))[0] == 401
    assert exchange(server, post(ATTACH, secret) + b"\0")[0] == 400
    server.stop()
    assert "POST '/debug/usm/attach-pid': 400" in caplog.text
    for hidden in (TOKEN, "a-body-of-this-test", "Bearer"):
        assert hidden not in caplog.text
    assert TOKEN not in repr(vars(server))


# Where it listens.


def test_a_unix_socket_is_its_owners_alone(debugger: Debugger, tmp_path: Path) -> None:
    path = tmp_path / "debug.sock"
    before = os.umask(0)
    try:
        server = DebugServer(debugger, f"unix:{path}")
    finally:
        os.umask(before)
    with server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert exchange(server, get("/debug/usm_telemetry").replace(b"localhost", b"any.example")) == (200, b"[]")
        with pytest.raises(HarnessError, match="another process listens there"):
            DebugServer(debugger, f"unix:{path}")
    assert not path.exists()


def test_a_socket_that_was_left_behind_is_replaced(debugger: Debugger, tmp_path: Path) -> None:
    path = tmp_path / "debug.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with DebugServer(debugger, f"unix:{path}") as server:
        assert exchange(server, get("/debug/usm_telemetry"))[0] == 200
        path.unlink()
        path.write_text("somebody else's by now")
    assert path.read_text() == "somebody else's by now"
    with pytest.raises(HarnessError, match="a file that is no socket"):
        DebugServer(debugger, f"unix:{path}")


ELSEWHERE = ["0.0.0.0:0", "192.0.2.1:80", "[::]:0", "example.org:80", "localhost", ":80", "127.0.0.1:", "127.0.0.1:-1"]
NO_PLACE = ["127.0.0.1:70000", "127.0.0.1:\N{SUPERSCRIPT TWO}", "unix:relative", "unix:", "unix:/a\0b", ""]


@pytest.mark.parametrize("address", ELSEWHERE + NO_PLACE)
def test_other_places_are_refused(debugger: Debugger, address: str) -> None:
    with pytest.raises(SettingsError, match=r"127\.0\.0\.1:PORT"):
        DebugServer(debugger, address)


def test_a_place_that_cannot_be_had(debugger: Debugger, server: DebugServer, tmp_path: Path) -> None:
    for address in (server.address, f"unix:{tmp_path}/none/debug.sock", f"unix:{tmp_path}/{'x' * 200}"):
        with pytest.raises(HarnessError, match="debug endpoints at"):
            DebugServer(debugger, address)


def test_ipv6_loopback(debugger: Debugger) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        with pytest.raises(HarnessError):
            DebugServer(debugger, "[::1]:0")
        return
    with DebugServer(debugger, "[::1]:0") as server:
        assert exchange(server, get("/debug/usm_telemetry"))[0] == 200


def test_stop_is_idempotent_ends_connections_and_frees_the_address(debugger: Debugger) -> None:
    before = set(threading.enumerate())
    server = DebugServer(debugger, "127.0.0.1:0")
    client = connect(server)
    client.sendall(b"GET /met")
    server.stop()
    server.stop()
    with client, contextlib.suppress(ConnectionResetError):
        assert answer(client)[0] == 0
    assert set(threading.enumerate()) <= before
    with DebugServer(debugger, server.address) as again:
        assert again.address == server.address


def test_a_callback_may_stop_the_server(debugger: Debugger) -> None:
    with DebugServer(debugger, "127.0.0.1:0") as server:
        debugger.add_attacher("native", lambda _: server.stop(), lambda _: None)
        exchange(server, post(ATTACH, BODIES[0]))
        with pytest.raises((OSError, urllib.error.URLError)):
            connect(server)


def test_the_model_knows_every_status_of_a_write_but_503() -> None:
    seen = {expected(m, a, b) for m in ("GET", "POST") for a in (None, f"Bearer {TOKEN}") for b in BODIES}
    assert seen == {200, 400, 401, 405, 500}
