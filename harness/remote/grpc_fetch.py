"""The fetcher over gRPC: TLS, mutual TLS or a unix socket.

One channel, kept alive between polls; after a failure it connects again with the next request. Answers are taken as
bytes and parsed here, so that what is wrong with one is our error and not the library's. Law: a status of gRPC
becomes the one ``FetchError`` that says what to do about it.
"""

from __future__ import annotations

import contextlib
import os

# The library's C core writes a line to standard error at every failed handshake, whoever listens; read at its import.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc

from harness.errors import ClosedError
from harness.remote import messages
from harness.remote.endpoint import Endpoint
from harness.remote.fetch import (
    HINT_TLS,
    MAX_MESSAGE,
    AnswerError,
    CertificateError,
    DeadlineError,
    FetchError,
    RefusedError,
    ServerError,
    Token,
    UnimplementedError,
    UnreachableError,
    bearer,
)
from harness.remote.wire.config_pb2 import ClientGetConfigsRequest, ClientGetConfigsResponse

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # The library would wait up to two minutes before it connects again; how often to ask is the client's business.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # No proxy that the environment names: it would see, or keep us from, a serving side on this machine.
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    # Two fetchers for one address share no connection: each has its own certificates and its own end.
    ("grpc.use_local_subchannel_pool", 1),
]
_TLS_WORDS = ("CERTIFICATE_VERIFY_FAILED", "Ssl handshake", "SSL_ERROR", "erification check failed")
"""What stands in the details of a connection that failed by its TLS; the library has no status for it."""


class GrpcFetcher:
    """See the module."""

    def __init__(self, endpoint: Endpoint, token: Token) -> None:
        self._endpoint = endpoint
        self._token = token
        self._closed = False
        self._channel = _channel(endpoint)
        self._method: grpc.UnaryUnaryMultiCallable[ClientGetConfigsRequest, bytes] = self._channel.unary_unary(
            messages.METHOD, request_serializer=ClientGetConfigsRequest.SerializeToString, response_deserializer=None
        )

    def fetch(self, request: ClientGetConfigsRequest) -> ClientGetConfigsResponse:
        """Ask; the deadline is the endpoint's."""
        metadata = (("authorization", bearer(self._token)),)
        try:
            raw = self._method(request, timeout=self._endpoint.seconds, metadata=metadata)
        except grpc.RpcError as error:
            raise self._error(error) from None
        except ValueError:
            # Of a channel that is closed.
            raise ClosedError("the fetcher is closed") from None
        return messages.parse_answer(raw)

    def close(self) -> None:
        """End a fetch that is under way, and the connection."""
        self._closed = True
        with contextlib.suppress(ValueError):
            self._channel.close()

    def _error(self, error: grpc.RpcError) -> FetchError | ClosedError:
        if self._closed:
            return ClosedError("the fetcher is closed")
        return translate(error.code(), str(error.details() or ""), self._endpoint)


def translate(code: grpc.StatusCode, details: str, endpoint: Endpoint) -> FetchError:
    """(pure) The error that a status means."""
    words = details[:500]
    at = endpoint.url
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return UnimplementedError(f"{at} has no service {messages.SERVICE}", hint="is this the right port?")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return RefusedError(f"{at} refuses us: {words}", hint="is the token the server's own?")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"{at} gave no whole answer in {endpoint.seconds:g} s")
    if code is grpc.StatusCode.UNAVAILABLE:
        if any(word in details for word in _TLS_WORDS):
            return CertificateError(f"{at}: no trust between us: {words}", hint=HINT_TLS)
        return UnreachableError(f"{at} cannot be reached: {words}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return AnswerError(f"{at} sent more than {MAX_MESSAGE} bytes")
    return ServerError(f"{at} failed: {code.name}: {words}")


def _channel(endpoint: Endpoint) -> grpc.Channel:
    host, port = endpoint.address
    options = [*_OPTIONS, *_keep_alive(endpoint.keep_alive)]
    if endpoint.scheme == "unix":
        return grpc.insecure_channel(f"unix:{host}", options=options)
    credentials = grpc.ssl_channel_credentials(
        endpoint.read(endpoint.ca), endpoint.read(endpoint.key), endpoint.read(endpoint.certificate)
    )
    name = [("grpc.ssl_target_name_override", endpoint.server_name)] if endpoint.server_name else []
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return grpc.secure_channel(target, credentials, options=[*options, *name])


def _keep_alive(seconds: float) -> list[tuple[str, int]]:
    """A server that vanished without a word is noticed, and the next request connects anew."""
    timeout = max(1, round(1000 * seconds / 3))
    return [
        ("grpc.keepalive_time_ms", max(1, round(1000 * seconds))),
        ("grpc.keepalive_timeout_ms", timeout),
        # With another ping under way (to measure bandwidth) a keep-alive waits for that one, by default for a minute.
        ("grpc.http2.ping_timeout_ms", timeout),
        ("grpc.keepalive_permit_without_calls", 1),
        # Otherwise the library would ask twice and then stay silent until the next request.
        ("grpc.http2.max_pings_without_data", 0),
    ]
