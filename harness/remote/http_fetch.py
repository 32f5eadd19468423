"""The fetcher over HTTPS: the same messages as JSON, ``POST /v0.7/config``.

A connection a request. Law: a request is over at its deadline even if the server sends a byte a second (a timeout of
a socket counts from the last byte; here a timer ends the connection).
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterator
from threading import Lock, Timer

from harness.errors import ClosedError, SettingsError
from harness.remote import json_form, messages
from harness.remote.endpoint import Endpoint
from harness.remote.fetch import (
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
        self._socket: socket.socket | None = None

    def fetch(self, request: ClientGetConfigsRequest) -> ClientGetConfigsResponse:
        """Ask; the deadline is the endpoint's."""
        headers = {"Authorization": bearer(self._token), "Content-Type": "application/json", "Connection": "close"}
        at = self._endpoint.url
        with self._deadline() as late:
            try:
                status, raw = self._exchange(json_form.dump(request), headers)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if self._closed:
                    raise ClosedError("the fetcher is closed") from None
                if late or isinstance(error, TimeoutError):
                    raise self._late() from None
                if isinstance(error, ssl.SSLCertVerificationError):
                    hint = "check the certificate's dates and names, the authority given for it, and the clock"
                    raise CertificateError(f"{at}: no trust between us: {error.verify_message}", hint=hint) from None
                if isinstance(error, http.client.HTTPException):
                    raise AnswerError(f"{at} gave no HTTP answer: {type(error).__name__}: {error}"[:300]) from None
                raise UnreachableError(f"{at} cannot be reached: {error}") from None
            if late:
                # The cut looked like the server's own end.
                raise self._late()
        _check_status(at, status, raw)
        return json_form.load(raw, ClientGetConfigsResponse)

    def close(self) -> None:
        """End a fetch that is under way."""
        self._closed = True
        self._cut()

    def _late(self) -> DeadlineError:
        return DeadlineError(f"{self._endpoint.url} gave no whole answer in {self._endpoint.seconds:g} s")

    def _exchange(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        """Status and body of the answer."""
        host, port = self._endpoint.address
        raw = socket.create_connection((host, port), self._endpoint.seconds)
        name = self._endpoint.server_name or host
        with self._context.wrap_socket(raw, server_hostname=name, do_handshake_on_connect=False) as sock:
            with self._lock:
                self._socket = sock
            try:
                if self._closed:
                    raise ClosedError("the fetcher is closed")
                sock.do_handshake()
                connection = http.client.HTTPConnection(host, port)
                connection.sock = sock
                connection.request("POST", messages.HTTP_PATH, body, headers)
                with connection.getresponse() as response:
                    return response.status, _body(response)
            finally:
                with self._lock:
                    self._socket = None

    @contextlib.contextmanager
    def _deadline(self) -> Iterator[list[bool]]:
        """Cuts the connection at the deadline; what it gives is true once it has."""
        late: list[bool] = []

        def cut() -> None:
            late.append(True)
            self._cut()

        timer = Timer(self._endpoint.seconds, cut)
        timer.daemon = True
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()
            timer.join()

    def _cut(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                # Not the TLS socket's own shutdown: that would pull its TLS from under the thread that reads.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


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
