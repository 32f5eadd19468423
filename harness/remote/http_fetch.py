"""The fetcher over HTTPS: the same messages as JSON, ``POST /v0.7/config``.

A connection a request. Law: a request is over at its deadline, and at once when the fetcher is closed, whatever it
waits for: a name, a connection, a server that sends a byte a second (a socket's timeout counts from the last byte);
and so is its thread, but for one that the system's resolver keeps, which nothing can interrupt.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterator
from threading import Event, Lock, Thread

from harness.errors import ClosedError, SettingsError
from harness.remote import json_form, messages
from harness.remote.endpoint import Endpoint
from harness.remote.fetch import (
    HINT_TLS,
    MAX_MESSAGE,
    AnswerError,
    CertificateError,
    DeadlineError,
    RefusedError,
    ServerError,
    Token,
    UnimplementedError,
    UnreachableError,
    bearer,
)
from harness.remote.wire.config_pb2 import ClientGetConfigsRequest, ClientGetConfigsResponse


class HttpFetcher:
    """See the module."""

    def __init__(self, endpoint: Endpoint, token: Token) -> None:
        self._endpoint = endpoint
        self._token = token
        self._context = _context(endpoint)
        self._lock = Lock()
        self._closed = False
        self._under_way: set[_Exchange] = set()

    def fetch(self, request: ClientGetConfigsRequest) -> ClientGetConfigsResponse:
        """Ask; the deadline is the endpoint's."""
        headers = {"Authorization": bearer(self._token), "Content-Type": "application/json", "Connection": "close"}
        exchange = _Exchange(self._endpoint, self._context, json_form.dump(request), headers)
        with self._lock:
            if self._closed:
                raise ClosedError("the fetcher is closed")
            self._under_way.add(exchange)
        try:
            exchange.start()
            in_time = exchange.over.wait(self._endpoint.seconds)
        finally:
            with self._lock:
                self._under_way.discard(exchange)
            exchange.end()
        if self._closed:
            raise ClosedError("the fetcher is closed")
        at = self._endpoint.url
        if not in_time or isinstance(exchange.error, TimeoutError):
            raise DeadlineError(f"{at} gave no whole answer in {self._endpoint.seconds:g} s")
        if exchange.error is not None:
            raise _typed(exchange.error, at) from None
        _check_status(at, exchange.status, exchange.raw)
        return json_form.load(exchange.raw, ClientGetConfigsResponse)

    def close(self) -> None:
        """End a fetch that is under way."""
        with self._lock:
            self._closed = True
            under_way = list(self._under_way)
        for exchange in under_way:
            exchange.end()


class _Exchange(Thread):
    """One request and its answer, in a thread of its own: looking up a name cannot be interrupted, waiting can."""

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext, body: bytes, headers: dict[str, str]) -> None:
        super().__init__(name="remote-config-https", daemon=True)
        self.over = Event()
        self.status, self.raw = 0, b""
        self.error: Exception | None = None
        self._endpoint, self._context, self._body, self._headers = endpoint, context, body, headers
        self._lock = Lock()
        self._ended = False
        self._socket: socket.socket | None = None

    def run(self) -> None:
        try:
            self._exchange()
        except Exception as error:
            self.error = error
        finally:
            self.over.set()

    def end(self) -> None:
        """Nobody waits any more: cut the connection, whatever it is at."""
        with self._lock:
            self._ended = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # Not the TLS socket's own shutdown: that would pull its TLS from under the thread that reads.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        self.over.set()

    def _exchange(self) -> None:
        host, port = self._endpoint.address
        name = self._endpoint.server_name or host
        with (
            self._connected(host, port) as raw,
            self._context.wrap_socket(raw, server_hostname=name, do_handshake_on_connect=False) as sock,
            self._cutting(sock),
        ):
            sock.do_handshake()
            connection = http.client.HTTPConnection(host, port)
            connection.sock = sock
            connection.request("POST", messages.HTTP_PATH, self._body, self._headers)
            with connection.getresponse() as response:
                self.status, self.raw = response.status, _body(response)

    def _connected(self, host: str, port: int) -> socket.socket:
        """What ``socket.create_connection`` does, but that ``end`` can cut it from the first moment on."""
        failed = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with contextlib.ExitStack() as undo:
                try:
                    sock = undo.enter_context(socket.socket(family, kind, protocol))
                    sock.settimeout(self._endpoint.seconds)
                    with self._cutting(sock):
                        sock.connect(address)
                    undo.pop_all()
                    return sock
                except OSError as error:
                    failed = error
        raise failed

    @contextlib.contextmanager
    def _cutting(self, sock: socket.socket) -> Iterator[None]:
        """``end`` cuts this one meanwhile; ConnectionAbortedError where it has come already."""
        with self._lock:
            if self._ended:
                raise ConnectionAbortedError("nobody waits any more")
            self._socket = sock
        try:
            yield
        finally:
            with self._lock:
                self._socket = None


def _typed(error: Exception, at: str) -> Exception:
    """The ``FetchError`` that a failed exchange means; what is no failure of one, as it is."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return CertificateError(f"{at}: no trust between us: {error.verify_message}", hint=HINT_TLS)
    if isinstance(error, http.client.HTTPException):
        return AnswerError(f"{at} gave no HTTP answer: {type(error).__name__}: {error}"[:300])
    if isinstance(error, OSError | ValueError):
        return UnreachableError(f"{at} cannot be reached: {error}")
    return error


def _body(response: http.client.HTTPResponse) -> bytes:
    if response.status == 200 and response.length is None and not response.chunked:
        raise http.client.HTTPException("a body without a length, whose end cannot be told from a cut")
    raw = response.read(MAX_MESSAGE + 1)
    if len(raw) > MAX_MESSAGE:
        raise http.client.HTTPException(f"more than {MAX_MESSAGE} bytes")
    if response.length:
        raise http.client.IncompleteRead(raw, response.length)
    return raw


def _check_status(at: str, status: int, raw: bytes) -> None:
    words = raw[:200].decode("utf-8", "replace").strip()
    if status in (404, 405, 501):
        raise UnimplementedError(f"{at} has no {messages.HTTP_PATH} ({status})", hint="is this the right port?")
    if status in (401, 403):
        raise RefusedError(f"{at} refuses us ({status}): {words}", hint="is the token the server's own?")
    if status != 200:
        raise ServerError(f"{at} failed ({status}): {words}")


def _context(endpoint: Endpoint) -> ssl.SSLContext:
    for file in (endpoint.ca, endpoint.certificate, endpoint.key):
        endpoint.read(file)
    try:
        context = ssl.create_default_context(cafile=endpoint.ca)
        if endpoint.certificate is not None:
            context.load_cert_chain(endpoint.certificate, endpoint.key)
    except OSError as error:
        raise SettingsError(f"endpoint {endpoint.url}: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
