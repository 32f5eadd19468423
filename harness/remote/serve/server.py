"""The serving side over gRPC: TLS, mutual TLS or a unix socket, a bearer token, and the answers of whoever answers.

``Serving`` is the seam: an honest one, or one that was told to misbehave (``misbehave``). A server is a context
manager; it runs from its making to ``close``.
"""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from harness.errors import HarnessError
from harness.remote import messages
from harness.remote.fetch import MAX_MESSAGE
from harness.remote.serve.certificates import Tls
from harness.remote.serve.host import UnavailableError
from harness.remote.serve.misbehave import Broken
from harness.remote.wire import config_pb2 as pb

_log = logging.getLogger(__name__)
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    # Clients may ping while nothing is asked: they poll every few seconds.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
]
KEEP_ALIVE = 30.0
"""Seconds of silence after which a client is asked whether it is still there."""

Serving = Callable[[pb.ClientGetConfigsRequest], "pb.ClientGetConfigsResponse | Broken"]
"""Answers a request, or says what to do instead. UnavailableError: not now; another HarnessError: it is refused."""


def _keep_alive(seconds: float) -> list[tuple[str, int]]:
    timeout = max(1, round(1000 * seconds / 3))
    return [
        ("grpc.keepalive_time_ms", round(1000 * seconds)),
        ("grpc.keepalive_timeout_ms", timeout),
        ("grpc.http2.ping_timeout_ms", timeout),
        ("grpc.http2.max_pings_without_data", 0),
    ]


class ServingError(HarnessError):
    """The serving side cannot listen where it should."""


class GrpcServer:
    """See the module. ``address`` is ``HOST:PORT`` (port 0: any; ``port`` says which) or ``unix:/path``, whose
    socket is for its owner alone.

    ``tls`` None is for unix sockets only. ``token`` None: whoever can connect may ask. A client that has said nothing
    for ``keep_alive`` seconds (1 or more) is asked for a sign of life; without one for a third of that it is let go.
    """

    def __init__(
        self,
        serving: Serving,
        *,
        address: str = "127.0.0.1:0",
        tls: Tls | None = None,
        token: str | None = None,
        threads: int = 16,
        keep_alive: float = KEEP_ALIVE,
    ) -> None:
        if tls is None and not address.startswith("unix:"):
            raise ServingError(f"no certificate for {address}", hint="only a unix socket goes without")
        self._serving = serving
        self._token = token
        self._stopping = Event()
        self._server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="serving"),
            handlers=[_Handler(self)],
            options=[*_OPTIONS, *_keep_alive(keep_alive)],
        )
        try:
            if tls is None:
                self.port = _add_unix_socket(self._server, address)
            else:
                self.port = self._server.add_secure_port(address, _credentials(tls))
        except RuntimeError as error:
            raise ServingError(f"cannot listen on {address}: {error}") from None
        self._server.start()

    def close(self) -> None:
        """Stop listening and end every call; a second time does nothing."""
        self._stopping.set()
        self._server.stop(grace=None).wait()

    def __enter__(self) -> GrpcServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def respond(self, raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """The messages to send for one request's bytes."""
        self._check_token(context)
        try:
            asked = pb.ClientGetConfigsRequest.FromString(raw)
            answer = self._serving(asked)
        except DecodeError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"no request: {error}")
        except UnavailableError as error:
            _log.warning("%s", error)
            context.abort(grpc.StatusCode.INTERNAL, "nothing to serve just now")
        except HarnessError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Exception:
            _log.exception("no answer")
            context.abort(grpc.StatusCode.INTERNAL, "the server failed")
        if isinstance(answer, pb.ClientGetConfigsResponse):
            yield answer.SerializeToString()
        else:
            yield from self._broken(answer, context)

    def _broken(self, how: Broken, context: grpc.ServicerContext) -> Iterator[bytes]:
        if how is Broken.ENDLESS:
            while not self._stopping.is_set():
                yield bytes(1 << 20)
        elif how is Broken.HUGE:
            yield bytes(MAX_MESSAGE + 1)
        elif how is Broken.GARBAGE:
            yield b"\xff" * 100
        elif how is Broken.FAIL:
            context.abort(grpc.StatusCode.INTERNAL, "on purpose")
        elif how is Broken.WRONG_SERVICE:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "on purpose")
        else:
            self._hang(context)

    def _hang(self, context: grpc.ServicerContext) -> None:
        over = Event()
        if context.add_callback(over.set):
            while not over.wait(0.1) and not self._stopping.is_set():
                pass

    def _check_token(self, context: grpc.ServicerContext) -> None:
        if self._token is None:
            return
        given = [_bytes(value) for key, value in context.invocation_metadata() if key == "authorization"]
        wanted = f"Bearer {self._token}".encode()
        if len(given) != 1 or not hmac.compare_digest(given[0], wanted):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token of ours")


class _Handler(grpc.GenericRpcHandler):
    """Streams on the server's side, so that a misbehaving one may send more than the one message it should."""

    def __init__(self, server: GrpcServer) -> None:
        self._server = server

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        if details.method != messages.METHOD:
            return None
        return grpc.unary_stream_rpc_method_handler(self._server.respond)


def _add_unix_socket(server: grpc.Server, address: str) -> int:
    """For its owner alone from the beginning."""
    before = os.umask(0o177)
    try:
        return server.add_insecure_port(address)
    finally:
        os.umask(before)


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    pairs = [(tls.key, tls.certificate)]
    return grpc.ssl_server_credentials(pairs, tls.client_ca, require_client_auth=tls.client_ca is not None)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
