"""The kernel's process connector (CONFIG_PROC_EVENTS): execs and exits by netlink.

Laws: once open, the kernel has acknowledged us, and no later event is missed unless ``read`` says so by an
OverrunError; a filter in the kernel keeps out what we do not read (forks, names, the ends of mere threads), so that
they take no room. It takes root (CAP_NET_ADMIN) in the first network, pid and user namespaces.
"""

from __future__ import annotations

import ctypes as c
import errno
import os
import random
import socket
import struct
import time
from contextlib import suppress

from harness.errors import FormatError
from harness.processes.errors import OverrunError, ProcessSourceError
from harness.processes.events import IGNORE, LISTEN, ProcessEvent, acknowledged, connector_event, request

_NETLINK_CONNECTOR = 11
_GROUP = 1
"""CN_IDX_PROC."""
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
BUFFER = 8 << 20
"""Bytes in the kernel; an event takes about 768 of them (its skb counts): some 10,000 fit."""
_MOST = 4096
"""Events of one read."""
_HINT = "it takes root in the first network, pid and user namespaces, and CONFIG_PROC_EVENTS"


def _instruction(code: int, yes: int, no: int, k: int) -> bytes:
    return struct.pack("=HBBI", code, yes, no, k)


# Classic BPF reads big-endian: the constants are swapped on a little-endian machine.
_LOAD, _TO_X, _EQUALS_K, _EQUALS_X, _RETURN = 0x20, 0x07, 0x15, 0x1D, 0x06
_FILTER = b"".join(
    [
        _instruction(_LOAD, 0, 0, 36),  # proc_event.what
        _instruction(_EQUALS_K, 6, 0, socket.htonl(0)),  # an acknowledgement
        _instruction(_EQUALS_K, 5, 0, socket.htonl(2)),  # exec
        _instruction(_EQUALS_K, 0, 5, socket.htonl(0x80000000)),  # exit
        _instruction(_LOAD, 0, 0, 52),  # of which thread
        _instruction(_TO_X, 0, 0, 0),
        _instruction(_LOAD, 0, 0, 56),  # of which process
        _instruction(_EQUALS_X, 0, 1, 0),
        _instruction(_RETURN, 0, 0, 0xFFFFFFFF),
        _instruction(_RETURN, 0, 0, 0),
    ]
)


class Connector:
    """A socket that hears of every exec and exit on this machine. ``buffer`` is its room in bytes."""

    name = "process connector"

    def __init__(self, buffer: int = BUFFER) -> None:
        self._overrun = False
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_CONNECTOR)
        except OSError as error:
            raise ProcessSourceError(f"{self.name}: {error.strerror}", hint=_HINT) from None
        try:
            self._listen(buffer)
        except OSError as error:
            self.close()
            raise ProcessSourceError(f"{self.name}: {error.strerror or error}", hint=_HINT) from None
        except BaseException:
            self.close()
            raise

    def read(self, seconds: float) -> list[ProcessEvent]:
        """See ``Source``."""
        if self._overrun:
            raise OverrunError(self.name, 1)
        events: list[ProcessEvent] = []
        self._socket.settimeout(max(seconds, 0))
        while len(events) < _MOST:
            try:
                message = self._socket.recv(8192)
            except (BlockingIOError, TimeoutError):
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._overrun = True
                break
            self._socket.settimeout(0)
            with suppress(FormatError):  # some other connector's
                event = connector_event(message)
                if event is not None:
                    events.append(event)
        if self._overrun and not events:
            raise OverrunError(self.name, 1)
        return events

    def close(self) -> None:
        """Stop hearing; a second time does nothing."""
        with suppress(OSError):
            self._socket.send(request(IGNORE, os.getpid(), 0))
        self._socket.close()

    def _listen(self, buffer: int) -> None:
        code = c.create_string_buffer(_FILTER, len(_FILTER))
        program = struct.pack("=HxxxxxxQ", len(_FILTER) // 8, c.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._socket.bind((0, _GROUP))
        number = random.getrandbits(31) or 1
        self._socket.send(request(LISTEN, os.getpid(), number))
        self._await_answer(number, time.monotonic() + 1.0)

    def _await_answer(self, number: int, end: float) -> None:
        # The kernel answers within the send, where it answers at all: it is silent towards other namespaces.
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            with suppress(FormatError, TimeoutError):
                code = acknowledged(self._socket.recv(8192), number)
                if code == 0:
                    return
                if code is not None:
                    raise OSError(code, os.strerror(code))
        raise ProcessSourceError(f"{self.name}: the kernel does not answer", hint=_HINT)
