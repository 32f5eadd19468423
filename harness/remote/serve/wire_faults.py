"""Faults below the messages: a relay on loopback that cuts, holds or alters what a server sends, at any byte.

Stands between a client and a real server. ``Fault.after`` counts the bytes that the server sent on one connection;
TLS turns an altered byte into a broken connection, so what is tested here is the client's and its library's handling
of that, and that nothing half-read is ever used.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
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
    """Listens on a port of its own (``port``) and passes connections on to ``host:port``; ``fault`` may be changed."""

    def __init__(self, host: str, port: int, fault: Fault | None = None, *, listen: tuple[str, int] = ("", 0)) -> None:
        self.fault = fault
        self.passed = 0
        """Bytes of the server's that the last connection let through."""
        self._to = (host, port)
        self._lock = Lock()
        self._stopping = Event()
        self._open: set[socket.socket] = set()
        self._threads: list[Thread] = []
        self._listener = socket.create_server((listen[0] or "127.0.0.1", listen[1]))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def close(self) -> None:
        """Cut every connection and stop."""
        self._stopping.set()
        with self._lock:
            for sock in [self._listener, *self._open]:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self, run: object, *arguments: object) -> None:
        thread = Thread(target=run, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._relay, client)

    def _relay(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._to, 5) as server:
            server.settimeout(None)
            with self._lock:
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

    def _copy(self, client: socket.socket, server: socket.socket, gone: Event) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                server.sendall(data)
        gone.set()

    def _answer(self, server: socket.socket, client: socket.socket, gone: Event) -> None:
        """Server to client, up to the fault and through it."""
        fault, passed = self.fault, 0
        while data := server.recv(1 << 16):
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
