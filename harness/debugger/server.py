"""HTTP for the debug endpoints: sockets, threads and limits over h11, which has all of the protocol.

Laws: a connection carries one request; whoever is slow, silent, too big or no HTTP gets a status (400, 408, 413, 421,
431, 501, 503, 505) or nothing, and never holds a place longer than twice ``Limits.seconds``, the time of the
endpoint's own work apart; what is refused is never given to an endpoint; neither headers nor bodies are logged.
``stop`` may come at any time, twice, and ends every connection.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from dataclasses import dataclass
from types import TracebackType

import h11

from harness.debugger import address
from harness.debugger.endpoints import Debugger, Request, Response, text
from harness.errors import HarnessError

_log = logging.getLogger(__name__)
_CHUNK = 1 << 14


@dataclass(frozen=True)
class Limits:
    """Of one request: its line and headers and its body in bytes, seconds to come in and seconds to go out; and how
    many connections there may be at a time."""

    head_bytes: int = 16 << 10
    body_bytes: int = 64 << 10
    seconds: float = 5.0
    connections: int = 32


class DebugServer:
    """Serves a ``Debugger`` at an address (``address.listen`` says which) from its making to ``stop``."""

    def __init__(self, debugger: Debugger, at: str, *, limits: Limits | None = None) -> None:
        self._debugger = debugger
        self._limits = limits or Limits()
        self._listener = address.listen(at)
        self.address = address.shown(self._listener)
        path = self.address.removeprefix("unix:")
        self._file = (path, os.lstat(path).st_ino) if path != self.address else None
        self._lock = threading.Lock()
        self._stopped = False
        self._open: dict[threading.Thread, socket.socket] = {}
        self._acceptor = threading.Thread(target=self._accept, name="debug server", daemon=True)
        self._acceptor.start()

    def stop(self) -> None:
        """Listen no more and end all connections; a second time does nothing.

        Returns when all of its threads have ended, but for those in a callback that hangs.
        """
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            serving = dict(self._open)
        if self._file:
            address.forget(*self._file)
        for waiting in (self._listener, *serving.values()):
            with contextlib.suppress(OSError):
                waiting.shutdown(socket.SHUT_RDWR)
        end = time.monotonic() + self._limits.seconds
        for thread in {self._acceptor, *serving} - {threading.current_thread()}:
            thread.join(max(0.0, end - time.monotonic()))
        self._listener.close()

    def __enter__(self) -> DebugServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._stopped:
                    return
                _log.warning("debug server: %s", error)
                time.sleep(0.1)  # EMFILE and its like last a while
                continue
            if not self._start(connection):
                _turn_away(connection)

    def _start(self, connection: socket.socket) -> bool:
        """Serve it in a thread of its own; False if there is no place for one."""
        thread = threading.Thread(target=self._serve, args=(connection,), name="debug request", daemon=True)
        with self._lock:
            if len(self._open) >= self._limits.connections or self._stopped:
                return False
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more threads
                _log.warning("debug server: %s", error)
                return False
            self._open[thread] = connection
            return True

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                exchange = _Exchange(connection, self._limits)
                try:
                    request = exchange.request()
                    response = self._refusal(request) or self._debugger.answer(request)
                    _log.debug("%s %r: %d", request.method, request.target, response.status)
                except _RefusedError as refused:
                    response = refused.response
                    _log.debug("refused: %d", response.status)
                exchange.answer(response)
        except (OSError, h11.LocalProtocolError) as error:  # the client has gone
            _log.debug("debug request: %s", error)
        except Exception:
            _log.exception("debug request")
        finally:
            with self._lock:
                self._open.pop(threading.current_thread(), None)

    def _refusal(self, request: Request) -> Response | None:
        """Not for a name that a browser was made to take for this machine."""
        host = request.headers.get("host", "localhost")
        host = host if host.endswith("]") else host.rsplit(":", 1)[0] if ":" in host else host
        if self._file is None and not address.is_loopback(host):
            return text(421, "this server is for loopback addresses only")
        return None


class _RefusedError(HarnessError):
    """A request that no endpoint is to see."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.response = text(status, words)


class _Exchange:
    """One connection's request and answer."""

    def __init__(self, connection: socket.socket, limits: Limits) -> None:
        self._socket = connection
        self._limits = limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes)
        self._deadline = time.monotonic() + limits.seconds
        self._method = b""

    def request(self) -> Request:
        """Read it whole, or say why not."""
        head, body = None, bytearray()
        while True:
            event = self._event()
            if isinstance(event, h11.Request):
                head, self._method = event, event.method
                self._check(event)
                if self._http.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._limits.body_bytes:
                    raise _RefusedError(413, f"a body has at most {self._limits.body_bytes} bytes")
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
                return Request(head.method.decode("latin-1"), head.target.decode("latin-1"), headers, bytes(body))
            else:
                raise ConnectionError("closed before a whole request")

    def _check(self, head: h11.Request) -> None:
        if not head.http_version.startswith(b"1."):
            raise _RefusedError(505, "this server speaks HTTP/1.1")
        # h11 counts while something is missing, not what comes in one piece.
        if len(head.target) + sum(len(name) + len(value) for name, value in head.headers) > self._limits.head_bytes:
            raise _RefusedError(431, f"line and headers have at most {self._limits.head_bytes} bytes")
        if int(dict(head.headers).get(b"content-length", b"0")) > self._limits.body_bytes:
            raise _RefusedError(413, f"a body has at most {self._limits.body_bytes} bytes")

    def answer(self, response: Response) -> None:
        """Send it, and wait a little for the client to close: data that it still sends would destroy the answer."""
        self._deadline = time.monotonic() + self._limits.seconds
        headers = [("Content-Type", response.content_type), ("Content-Length", str(len(response.body)))]
        headers += [("Connection", "close"), ("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
        self._send(h11.Response(status_code=response.status, headers=[*headers, *response.headers]))
        if self._method != b"HEAD":
            self._send(h11.Data(data=response.body))
        self._send(h11.EndOfMessage())
        self._socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):
            while self._receive():
                pass

    def _event(self) -> object:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(self._receive())
        except h11.RemoteProtocolError as error:
            raise _RefusedError(error.error_status_hint, str(error)) from None
        except TimeoutError:
            raise _RefusedError(408, f"a request comes in within {self._limits.seconds:g} s") from None
        return event

    def _receive(self) -> bytes:
        self._socket.settimeout(self._left())
        return self._socket.recv(_CHUNK)

    def _send(self, event: h11.Event) -> None:
        if data := self._http.send(event):
            self._socket.settimeout(self._left())
            self._socket.sendall(data)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time of this request is over")
        return left


def _turn_away(connection: socket.socket) -> None:
    """Say that there is no room, to those who hear it at once."""
    with connection, contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
