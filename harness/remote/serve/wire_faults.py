"""Faults below the messages: a relay on loopback that cuts, holds or alters what a server sends, at any byte.

Stands between a client and a real server. ``Fault.after`` counts the bytes that the server sent on one connection;
TLS turns an altered byte into a broken connection, so what is tested here is the client's and its library's handling
of that, and that nothing half-read is ever used.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Literal

from harness.errors import SettingsError

Kind = Literal["drop", "hang", "flip", "flood"]


@dataclass(frozen=True)
class Fault:
    """What happens after so many bytes from the server.

    ``drop``: the connection ends with a reset; ``hang``: nothing more comes; ``flip``: the next byte is altered;
    ``flood``: zeros for ever.
    """

    kind: Kind
    after: int

    @classmethod
    def of(cls, words: str) -> Fault:
        """From ``KIND@BYTES``, as on the command line."""
        kind, _, after = words.partition("@")
        if kind not in ("drop", "hang", "flip", "flood") or not (after.isascii() and after.isdecimal()):
            raise SettingsError(f"{words!r} is no fault of the wire", hint="drop@N, hang@N, flip@N or flood@N")
        return cls(kind, int(after))  # type: ignore[arg-type]


class Relay:
    """Passes connections on to the server at ``to``, which is ``HOST:PORT`` or ``unix:/path``.

    ``address`` is where it listens itself: another port (``port``) of that host, or a socket beside ``/path``.
    ``fault`` may be changed; each connection has the one that there was when it began.
    """

    def __init__(self, to: str, fault: Fault | None = None) -> None:
        self.fault = fault
        self.passed = 0
        """Bytes of the server's that the last connection let through."""
        self._to = to
        self._lock = Lock()
        self._stopping = Event()
        self._open: set[socket.socket] = set()
        self._silent: set[socket.socket] = set()
        self._threads: set[Thread] = set()
        self._listener, self.address, self.port = _listen(to)
        self._start(self._accept)

    def vanish(self) -> None:
        """From now on no byte passes on the present connections, as when a machine or a link is gone; new ones work."""
        with self._lock:
            self._silent |= self._open

    def close(self) -> None:
        """Cut every connection and stop."""
        self._stopping.set()
        with self._lock:
            for sock in [self._listener, *self._open]:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            threads = list(self._threads)
        for thread in threads:
            thread.join()
        self._listener.close()
        if self.address.startswith("unix:"):
            Path(self.address.removeprefix("unix:")).unlink(missing_ok=True)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        def work() -> None:
            run(*arguments)
            with self._lock:
                self._threads.discard(thread)

        thread = Thread(target=work, daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._relay, client)

    def _relay(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), _connect(self._to) as server:
            with self._lock:
                if self._stopping.is_set():
                    return
                self._open |= {client, server}
            gone = Event()
            back = Thread(target=self._copy, args=(client, server, gone), daemon=True)
            back.start()
            try:
                self._answer(server, client, gone)
            finally:
                for sock in (client, server):
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)
                back.join()
                with self._lock:
                    self._open -= {client, server}
                    self._silent -= {client, server}

    def _copy(self, client: socket.socket, server: socket.socket, gone: Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                if client not in self._silent:
                    server.sendall(data)
        gone.set()

    def _answer(self, server: socket.socket, client: socket.socket, gone: Event) -> None:
        """Server to client, up to the fault and through it."""
        fault, passed = self.fault, 0
        while data := server.recv(1 << 16):
            if client in self._silent:
                continue
            if fault is None or passed + len(data) <= fault.after:
                client.sendall(data)
                passed = self.passed = passed + len(data)
                continue
            at = fault.after - passed
            client.sendall(data[:at])
            self.passed = passed = fault.after
            if fault.kind != "flip":
                return self._end(fault.kind, client, gone)
            client.sendall(bytes([data[at] ^ 1]) + data[at + 1 :])
            fault = None

    def _end(self, kind: Kind, client: socket.socket, gone: Event) -> None:
        if kind == "drop":
            # Linger of 0 seconds: a reset, as from a machine that has gone, and no orderly end.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.shutdown(socket.SHUT_RD)
            client.close()
        while kind == "hang" and not (gone.wait(0.02) or self._stopping.is_set()):
            pass
        while kind == "flood" and not self._stopping.is_set():
            client.sendall(bytes(1 << 16))


def _listen(beside: str) -> tuple[socket.socket, str, int]:
    """A listener beside that address, its own address, and its port (of a unix socket 0)."""
    if beside.startswith("unix:"):
        path = f"{beside.removeprefix('unix:')}.{secrets.token_hex(4)}"
        return socket.create_server(path, family=socket.AF_UNIX), f"unix:{path}", 0
    host = beside.rpartition(":")[0]
    bare = host.strip("[]")
    listener = socket.create_server((bare, 0), family=socket.AF_INET6 if ":" in bare else socket.AF_INET)
    port: int = listener.getsockname()[1]
    return listener, f"{host}:{port}", port


def _connect(to: str) -> socket.socket:
    if to.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(to.removeprefix("unix:"))
        return sock
    host, _, port = to.rpartition(":")
    sock = socket.create_connection((host.strip("[]"), int(port)), 5)
    sock.settimeout(None)
    return sock
