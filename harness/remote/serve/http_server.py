"""The serving side's JSON form over HTTPS: ``POST /v0.7/config``, the same token and the same answers.

For tests and demos, on the standard library's server: a thread a connection, and no limit on how many.
"""

from __future__ import annotations

import hmac
import logging
import ssl
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

from harness.errors import HarnessError
from harness.remote import json_form, messages
from harness.remote.fetch import MAX_MESSAGE
from harness.remote.serve.certificates import Tls
from harness.remote.serve.host import UnavailableError
from harness.remote.serve.misbehave import Broken
from harness.remote.serve.server import Serving, ServingError
from harness.remote.wire import config_pb2 as pb

_log = logging.getLogger(__name__)
_MOST = 16 << 20
_MOST_DIGITS = 10
"""Of a length; Python refuses to read numbers of thousands of them."""


class HttpServer:
    """See the module. ``address`` is ``HOST:PORT``, port 0: any; ``port`` says which."""

    def __init__(self, serving: Serving, *, address: str = "127.0.0.1:0", tls: Tls, token: str | None = None) -> None:
        self.serving = serving
        self.token = token
        self.stopping = Event()
        host, _, port = address.rpartition(":")
        try:
            self._server = _Server((host, int(port)), _Handler)
        except (OSError, ValueError) as error:
            raise ServingError(f"cannot listen on {address}: {error}") from None
        self._server.owner = self
        # A connection's handshake is its own thread's business: one that says nothing holds up nobody.
        context = _context(tls)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port: int = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), name="serving-http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; connections that are open end with their threads."""
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> HttpServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: HttpServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.debug("a connection failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30

    def do_POST(self) -> None:
        owner = self.server.owner
        if self.path != messages.HTTP_PATH:
            return self._say(404, b"no such path")
        given = self.headers.get_all("authorization") or []
        wanted = f"Bearer {owner.token}".encode()
        if owner.token is not None and not (
            len(given) == 1 and hmac.compare_digest(given[0].encode("utf-8", "replace"), wanted)
        ):
            return self._say(401, b"no token of ours")
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or len(length) > _MOST_DIGITS or int(length) > _MOST:
            return self._say(413, b"a request has a length, of 16 MiB at most")
        try:
            answer = owner.serving(json_form.load(self.rfile.read(int(length)), pb.ClientGetConfigsRequest))
        except UnavailableError as error:
            _log.warning("%s", error)
            return self._say(503, b"nothing to serve just now")
        except HarnessError as error:
            return self._say(400, str(error).encode())
        except Exception:
            _log.exception("no answer")
            return self._say(500, b"the server failed")
        if isinstance(answer, pb.ClientGetConfigsResponse):
            return self._say(200, json_form.dump(answer))
        return self._break(answer)

    def _break(self, how: Broken) -> None:
        if how is Broken.GARBAGE:
            self._say(200, b"\xff" * 100)
        elif how is Broken.FAIL:
            self._say(500, b"on purpose")
        elif how is Broken.WRONG_SERVICE:
            self._say(404, b"on purpose")
        elif how is Broken.HANG:
            while not self.server.owner.stopping.wait(0.05):
                pass
        else:
            self._head(200, MAX_MESSAGE + 1 if how is Broken.HUGE else None)
            left = MAX_MESSAGE + 1 if how is Broken.HUGE else float("inf")
            while left > 0 and not self.server.owner.stopping.is_set():
                left -= self.wfile.write(b" " * int(min(left, 1 << 20)))

    def _say(self, status: int, body: bytes) -> None:
        self._head(status, len(body))
        self.wfile.write(body)

    def _head(self, status: int, length: int | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # The library takes a certificate's key by file name only.
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder, "certificate"), Path(folder, "key")
        certificate.write_bytes(tls.certificate)
        key.write_bytes(tls.key)
        context.load_cert_chain(certificate, key)
    if tls.client_ca is not None:
        context.load_verify_locations(cadata=tls.client_ca.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    return context
