"""Fetchers against real servers, over every form of the wire: what comes back, and what each thing that is wrong is."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from remote_site import FORMS, Site, token
from waiting import wait_for

from harness.errors import ClosedError, HarnessError
from harness.remote import messages
from harness.remote.endpoint import Endpoint, token_of
from harness.remote.fetch import (
    AnswerError,
    CertificateError,
    DeadlineError,
    Fetcher,
    FetchError,
    RefusedError,
    ServerError,
    TokenError,
    UnimplementedError,
    UnreachableError,
)
from harness.remote.serve.certificates import Authority, Tls
from harness.remote.serve.http_server import HttpServer
from harness.remote.serve.wire_faults import Fault, Relay
from harness.remote.wire.config_pb2 import ClientGetConfigsRequest, ClientGetConfigsResponse

PATH = "datadog/2/TESTING1/a/config"
TCP_FORMS = ("grpcs", "https")
T = TypeVar("T")
JUST_NOW = datetime.now(UTC) - timedelta(minutes=1)


@pytest.fixture(scope="module", params=FORMS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("s"), request.param) as made:
        made.put(PATH, b"one")
        yield made


@pytest.fixture(autouse=True)
def _honest(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "site" in request.fixturenames:
        request.getfixturevalue("site").host.way = None


def asking(site: Site) -> ClientGetConfigsRequest:
    return messages.request(site.state(), "x" * 21, ["TESTING1"], messages.Agent())


def fails(
    site: Site, error: type[HarnessError], *, token: Callable[[], str] = token, **changes: object
) -> HarnessError:
    fetcher = site.endpoint(**changes).fetcher(token)
    try:
        with pytest.raises(error) as raised:
            fetcher.fetch(asking(site))
    finally:
        fetcher.close()
    assert type(raised.value) is error
    assert "the-right-one" not in str(raised.value)
    return raised.value


def test_an_answer_comes_whole(site: Site) -> None:
    fetcher = site.endpoint().fetcher(token)
    answer = fetcher.fetch(asking(site))
    assert [(file.path, file.raw) for file in answer.target_files] == [(PATH, b"one")]
    assert list(answer.client_configs) == [PATH]
    assert answer.targets
    change = site.state().apply(messages.update_of(answer), now=datetime.now(UTC))
    assert change.products == {"TESTING1"}
    again = fetcher.fetch(messages.request(change.state, "x" * 21, ["TESTING1"], messages.Agent()))
    assert messages.update_of(again).empty
    fetcher.close()


def test_a_large_answer_comes_whole(site: Site) -> None:
    """Larger than the 4 MiB that gRPC takes if nobody says otherwise."""
    path = "datadog/2/TESTING2/large/config"
    site.put(path, bytes(range(256)) * (24 << 10))
    fetcher = site.endpoint().fetcher(token)
    answer = fetcher.fetch(messages.request(site.state(), "x" * 21, ["TESTING2"], messages.Agent()))
    assert [file.raw for file in answer.target_files] == [bytes(range(256)) * (24 << 10)]
    fetcher.close()
    site.remove(path)


@pytest.mark.parametrize("given", ["", "wrong", "the-right-on", "the-right-one-"])
def test_a_wrong_token(site: Site, given: str) -> None:
    fails(site, RefusedError if given else TokenError, token=lambda: given)


def test_a_token_that_cannot_be_had(site: Site, tmp_path: Path) -> None:
    error = fails(site, TokenError, token=token_of(tmp_path / "none"))
    assert "could not acquire the auth token" in str(error)
    for bad in ("two\nlines", "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n"):
        (tmp_path / "bad").write_text(bad)
        fails(site, TokenError, token=token_of(tmp_path / "bad"))


def test_the_token_is_fetched_for_every_request(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")
    fetcher = site.endpoint().fetcher(token_of(file))
    with pytest.raises(RefusedError):
        fetcher.fetch(asking(site))
    file.write_text(f"{token()}\n")
    assert fetcher.fetch(asking(site)).targets
    fetcher.close()


@pytest.mark.parametrize(
    ("way", "error"),
    [("hang", DeadlineError), ("huge", AnswerError), ("garbage", AnswerError), ("fail", ServerError),
     ("wrong-service", UnimplementedError)],
)  # fmt: skip
def test_a_server_that_does_not_answer(site: Site, way: str, error: type[FetchError]) -> None:
    site.host.way = way
    fails(site, error, seconds=0.3 if way == "hang" else 60)


def test_endless_data(site: Site) -> None:
    site.host.way = "endless"
    fetcher = site.endpoint(seconds=0.5).fetcher(token)
    with pytest.raises((DeadlineError, AnswerError)):
        fetcher.fetch(asking(site))
    fetcher.close()


def test_a_request_that_the_server_refuses(site: Site) -> None:
    fetcher = site.endpoint().fetcher(token)
    with pytest.raises(ServerError, match="no client"):
        fetcher.fetch(ClientGetConfigsRequest())
    fetcher.close()


def test_closing_ends_a_fetch_that_is_under_way(site: Site) -> None:
    site.host.way = "hang"
    fetcher = site.endpoint(seconds=600).fetcher(token)
    with ThreadPoolExecutor(1) as pool:
        before = len(site.host.seen)
        waiting = pool.submit(fetcher.fetch, messages.request(site.state(), f"id-{before}", [], messages.Agent()))
        while len(site.host.seen) == before:
            assert not waiting.done(), waiting.exception()
        fetcher.close()
        with pytest.raises(ClosedError):
            waiting.result(60)
    fetcher.close()
    with pytest.raises(ClosedError):
        fetcher.fetch(asking(site))


@pytest.mark.parametrize("form", FORMS)
def test_nobody_there(tmp_path: Path, form: str) -> None:
    with Site(tmp_path, form) as gone:
        gone.put(PATH, b"one")
        fetcher = gone.endpoint().fetcher(token)
        assert fetcher.fetch(asking(gone)).targets
    for _ in range(3):
        with pytest.raises(UnreachableError):
            fetcher.fetch(asking(gone))
    fetcher.close()


def test_a_server_that_comes_back_is_found_again(tmp_path: Path) -> None:
    with Site(tmp_path, "unix") as first:
        fetcher = first.endpoint().fetcher(token)
        assert fetcher.fetch(asking(first)).targets
    with pytest.raises(UnreachableError):
        fetcher.fetch(asking(first))
    with Site(tmp_path, "unix") as second:
        assert _eventually(lambda: fetcher.fetch(asking(second)).targets)
    fetcher.close()


def _eventually(call: Callable[[], T]) -> T:
    for _ in range(200):
        try:
            return call()
        except UnreachableError:
            threading.Event().wait(0.05)
    raise AssertionError("never")


# Trust.


def served(path: Path, form: str, tls: Tls) -> Site:
    return Site(path, form, tls=tls)


@pytest.mark.parametrize("form", TCP_FORMS)
@pytest.mark.parametrize("what", ["expired", "not yet valid", "another name", "unknown authority", "self-made"])
def test_a_certificate_that_is_not_to_be_trusted(tmp_path: Path, form: str, what: str) -> None:
    authority, other = Authority(), Authority()
    issued = {
        "expired": lambda: authority.issue(start=JUST_NOW - timedelta(days=30), last=timedelta(days=1)),
        "not yet valid": lambda: authority.issue(start=JUST_NOW + timedelta(days=30)),
        "another name": lambda: authority.issue(["elsewhere.example"]),
        "unknown authority": lambda: other.issue(),
        "self-made": lambda: Authority("localhost").issue(),
    }[what]()
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    with served(tmp_path, form, Tls(*issued)) as site:
        error = fails(site, CertificateError, ca=tmp_path / "ca.pem")
        assert "clock" in error.hint
        assert not site.host.seen, "no request, and so no token, went to a server that is not trusted"


@pytest.mark.parametrize("form", TCP_FORMS)
def test_another_name_may_be_expected(tmp_path: Path, form: str) -> None:
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    with served(tmp_path, form, Tls(*authority.issue(["elsewhere.example"]))) as site:
        fetcher = site.endpoint(ca=tmp_path / "ca.pem", server_name="elsewhere.example").fetcher(token)
        assert fetcher.fetch(asking(site)).targets
        fetcher.close()


@pytest.mark.parametrize("form", TCP_FORMS)
def test_mutual_tls(tmp_path: Path, form: str) -> None:
    with Site(tmp_path, form, mutual=True) as site:
        own = {"certificate": site.certificates / "client.pem", "key": site.certificates / "client.key"}
        fetcher = site.endpoint(**own).fetcher(token)
        assert fetcher.fetch(asking(site)).targets
        fetcher.close()
        stranger = tmp_path / "stranger"
        for name, pem in zip((".pem", ".key"), Authority().issue(("client",)), strict=True):
            stranger.with_suffix(name).write_bytes(pem)
        theirs = {"certificate": stranger.with_suffix(".pem"), "key": stranger.with_suffix(".key")}
        for bad in ({}, theirs):
            fetcher = site.endpoint(**bad).fetcher(token)
            with pytest.raises((CertificateError, UnreachableError)):
                fetcher.fetch(asking(site))
            fetcher.close()
        assert len(site.host.seen) == 1


# Another service.


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    authority = Authority()
    (tmp_path / "ca.pem").write_bytes(authority.certificate)
    return Tls(*authority.issue())


def against(url: str, tmp_path: Path, **changes: object) -> Fetcher:
    settings = {"ca": tmp_path / "ca.pem", "seconds": 20.0} | changes
    return Endpoint(url, **settings).fetcher(token)  # type: ignore[arg-type]


ASK = ClientGetConfigsRequest()


def test_another_grpc_service(tmp_path: Path, tls: Tls) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(tls.key, tls.certificate)]))
    server.start()
    fetcher = against(f"grpcs://127.0.0.1:{port}", tmp_path)
    with pytest.raises(UnimplementedError, match=messages.SERVICE):
        fetcher.fetch(ASK)
    fetcher.close()
    server.stop(None).wait()


@pytest.mark.parametrize("length", ["", "-1", "x", str((16 << 20) + 1), "9" * 11, "9" * 5000, "\u0664"])
def test_a_request_without_a_sensible_length(tls: Tls, length: str) -> None:
    """Thousands of digits are more than Python reads as a number."""
    context = ssl._create_unverified_context()
    with (
        HttpServer(lambda _: ClientGetConfigsResponse(), tls=tls) as server,
        context.wrap_socket(socket.create_connection(("127.0.0.1", server.port))) as client,
    ):
        head = f"POST {messages.HTTP_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(100).split(b" ")[1] == b"413"


class Page(BaseHTTPRequestHandler):
    """A web server: any path is a page."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>welcome</html>")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("form", TCP_FORMS)
def test_a_web_server(tmp_path: Path, tls: Tls, form: str) -> None:
    with web_server(tmp_path, tls, Page) as port:
        fetcher = against(f"{form}://127.0.0.1:{port}", tmp_path)
        with pytest.raises((AnswerError, UnreachableError, ServerError, CertificateError)):
            fetcher.fetch(ASK)
        fetcher.close()


class Redirect(Page):
    def do_POST(self) -> None:
        self.send_response(307)
        self.send_header("Location", "https://elsewhere.example/")
        self.end_headers()


def test_a_redirect_is_not_followed(tmp_path: Path, tls: Tls) -> None:
    with web_server(tmp_path, tls, Redirect) as port:
        fetcher = against(f"https://127.0.0.1:{port}", tmp_path)
        with pytest.raises(ServerError, match="307"):
            fetcher.fetch(ASK)
        fetcher.close()


class Dribble(Page):
    """A good beginning, and then a byte at a time."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(1000):
                self.wfile.write(b" ")
                threading.Event().wait(0.02)


def test_a_byte_at_a_time_is_too_slow(tmp_path: Path, tls: Tls) -> None:
    """The deadline is the whole request's, and no byte makes it longer."""
    with web_server(tmp_path, tls, Dribble) as port:
        fetcher = against(f"https://127.0.0.1:{port}", tmp_path, seconds=0.5)
        with pytest.raises(DeadlineError):
            fetcher.fetch(ASK)
        fetcher.close()


class Short(Page):
    """Less than it said, and by chance an answer."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"{}")
        self.close_connection = True


def test_half_an_answer_is_none(tmp_path: Path, tls: Tls) -> None:
    with web_server(tmp_path, tls, Short) as port:
        fetcher = against(f"https://127.0.0.1:{port}", tmp_path)
        with pytest.raises(AnswerError, match="IncompleteRead"):
            fetcher.fetch(ASK)
        fetcher.close()


class web_server:
    def __init__(self, tmp_path: Path, tls: Tls, handler: type[BaseHTTPRequestHandler]) -> None:
        (tmp_path / "both.pem").write_bytes(tls.certificate + tls.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "both.pem")
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self) -> int:
        self.thread.start()
        return int(self.server.server_address[1])

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.mark.parametrize("form", TCP_FORMS)
def test_a_server_that_says_nothing_at_all(tmp_path: Path, tls: Tls, form: str) -> None:
    """Not even a handshake."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fetcher = against(f"{form}://127.0.0.1:{listener.getsockname()[1]}", tmp_path, seconds=0.3)
        with pytest.raises(DeadlineError):
            fetcher.fetch(ASK)
        fetcher.close()


@pytest.mark.parametrize("form", TCP_FORMS)
def test_noise_is_no_server(tmp_path: Path, tls: Tls, form: str) -> None:
    stop = threading.Event()

    def dribble() -> None:
        connection, _ = listener.accept()
        with connection:
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"\x16")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=dribble)
        thread.start()
        fetcher = against(f"{form}://127.0.0.1:{listener.getsockname()[1]}", tmp_path, seconds=0.5)
        with pytest.raises((DeadlineError, UnreachableError, CertificateError)):
            fetcher.fetch(ASK)
        fetcher.close()
        stop.set()
        thread.join()


# Broken connections.


class Wire:
    """A site whose connections pass a relay; ``address`` is the server's own."""

    def __init__(self, site: Site, size: int) -> None:
        self.site = site
        site.put(PATH, bytes(size))
        unix = site.form == "unix"
        self.address = f"unix:{site.path}/.socket" if unix else f"127.0.0.1:{site.server.port}"
        self.request = asking(site)
        with self.relay() as relay:
            answer = self.fetch(relay)
            assert answer is not None
            self.whole, self.bytes = answer, relay.passed

    def relay(self) -> Relay:
        return Relay(self.address)

    def fetch(self, relay: Relay, seconds: float = 20.0) -> ClientGetConfigsResponse | None:
        """The answer over a new connection through the relay, or None where it is an error."""
        unix = self.site.form == "unix"
        url = f"unix://{relay.address[5:]}" if unix else f"{self.site.form}://localhost:{relay.port}"
        fetcher = self.site.endpoint(url=url, seconds=seconds).fetcher(token)
        try:
            return fetcher.fetch(self.request)
        except FetchError:
            return None
        finally:
            fetcher.close()

    def cut(self, offsets: Sequence[int]) -> list[ClientGetConfigsResponse | None]:
        """What comes of it if a connection is dropped after so many bytes of the server's, in the order of these."""
        with self.relay() as relay:
            found = []
            for after in offsets:
                relay.fault = Fault("drop", after)
                found.append(self.fetch(relay))
            relay.fault = None
            assert self.fetch(relay) == self.whole, "with the fault gone it works again"
            return found


@pytest.mark.parametrize("form", FORMS)
def test_a_connection_that_is_dropped_between_any_two_bytes(tmp_path: Path, form: str) -> None:
    """Every one of a small answer, its handshake included: the client has a whole answer or an error."""
    with Site(tmp_path, form) as site, ThreadPoolExecutor(8) as pool:
        wire = Wire(site, 10)
        offsets = range(wire.bytes)
        parts = list(pool.map(wire.cut, [offsets[n::8] for n in range(8)]))
    found = [answer for part in parts for answer in part]
    assert len(found) == wire.bytes > 500
    assert all(answer is None or answer == wire.whole for answer in found)
    # The last bytes may be an orderly end that the answer does not need; what comes before its own end it does need.
    assert found.count(None) > wire.whole.ByteSize()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["drop", "hang", "flip", "flood"])
def test_a_large_answer_over_a_connection_that_breaks(tmp_path: Path, form: str, kind: str) -> None:
    """At some of its bytes."""
    with Site(tmp_path, form) as site:
        wire, seen = Wire(site, 100_000), []
        with wire.relay() as relay:
            for after in sorted({*range(0, wire.bytes, wire.bytes // 12), wire.bytes - 1, wire.bytes}):
                relay.fault = Fault(kind, after)  # type: ignore[arg-type]
                seen.append(wire.fetch(relay, 0.3 if kind in ("hang", "flood") else 20.0))
            relay.fault = None
            assert wire.fetch(relay) == wire.whole
    # Nothing protects the bytes on a unix socket: who reads and writes there is this machine's system.
    altered = form == "unix" and kind == "flip"
    assert altered or all(answer is None or answer == wire.whole for answer in seen)
    assert altered or seen.count(None) > 6


# Servers that vanish.


@pytest.mark.parametrize("form", ["grpcs", "unix"])
def test_a_server_that_vanishes_between_two_requests(tmp_path: Path, form: str) -> None:
    """Its connection is given up, though nothing says that it has ended, and the next request finds the server.

    (The library's own ping would be given up too, but after a minute: past the deadline.)
    """
    with Site(tmp_path, form) as site:
        wire = Wire(site, 10)
        with wire.relay() as relay:
            url = f"unix://{relay.address[5:]}" if form == "unix" else f"grpcs://localhost:{relay.port}"
            fetcher = site.endpoint(url=url, seconds=30, keep_alive=0.3).fetcher(token)
            assert fetcher.fetch(wire.request) == wire.whole
            relay.vanish()
            assert _eventually(lambda: fetcher.fetch(wire.request)) == wire.whole
            fetcher.close()


def test_a_server_that_vanishes_during_a_request(tmp_path: Path) -> None:
    with Site(tmp_path) as site:
        wire = Wire(site, 10)
        with wire.relay() as relay, ThreadPoolExecutor(1) as pool:
            endpoint = site.endpoint(url=f"grpcs://localhost:{relay.port}", seconds=30, keep_alive=0.3)
            site.host.way = "hang"
            site.host.seen.clear()
            fetcher = endpoint.fetcher(token)
            waiting = pool.submit(fetcher.fetch, wire.request)
            wait_for(lambda: site.host.seen)
            relay.vanish()
            with pytest.raises(UnreachableError, match="ping timeout"):
                waiting.result(60)
            fetcher.close()


@pytest.mark.parametrize("form", TCP_FORMS)
def test_a_server_that_does_not_even_accept(tmp_path: Path, tls: Tls, form: str) -> None:
    """The backlog is full, so connecting takes for ever: as far as the deadline, or until the client is closed."""
    with socket.socket() as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with socket.create_connection(listener.getsockname()):
            url = f"{form}://127.0.0.1:{listener.getsockname()[1]}"
            fetcher = against(url, tmp_path, seconds=0.3)
            with pytest.raises(DeadlineError):
                fetcher.fetch(ASK)
            fetcher.close()
            fetcher = against(url, tmp_path, seconds=600)
            waiting = pool.submit(fetcher.fetch, ASK)
            with pytest.raises(TimeoutError):
                waiting.result(0.2)
            fetcher.close()
            with pytest.raises(ClosedError):
                waiting.result(60)
            # 600 s are left; nobody uses them.
            wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "remote-config-https"])


def test_a_name_that_takes_for_ever_to_look_up(tmp_path: Path, tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC resolves by itself; the standard library's resolver cannot be interrupted."""
    found, real = threading.Event(), socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **more: found.wait(60) and real(*words, **more))
    with ThreadPoolExecutor(1) as pool:
        fetcher = against("https://localhost:1", tmp_path, seconds=0.2)
        with pytest.raises(DeadlineError):
            fetcher.fetch(ASK)
        fetcher = against("https://localhost:1", tmp_path, seconds=600)
        waiting = pool.submit(fetcher.fetch, ASK)
        wait_for(lambda: fetcher._under_way)  # type: ignore[attr-defined]
        fetcher.close()
        with pytest.raises(ClosedError):
            waiting.result(60)
    found.set()
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "remote-config-https"])
