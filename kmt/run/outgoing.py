"""(pure) A file to write to that goes to a guest in DATA frames of a good size."""

from __future__ import annotations

from collections.abc import Callable

from kmt.guest.wire import CHUNK


class Outgoing:
    """``send`` takes the bytes of one frame; ``flush`` sends what is left."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._buffer = bytearray()

    def write(self, data: bytes) -> int:
        """Take ``data``; frames go when they are full."""
        self._buffer += data
        while len(self._buffer) >= CHUNK:
            self._send(bytes(self._buffer[:CHUNK]))
            del self._buffer[:CHUNK]
        return len(data)

    def flush(self) -> None:
        """Send the last frame, if there is anything for it."""
        if self._buffer:
            self._send(bytes(self._buffer))
            self._buffer.clear()
