"""The guest's end of the channel: a virtio-serial port, or a socket or two pipes that were handed down.

Writes block until the host reads. A port that the host has not opened yet reads as ended (virtio_console's
``port_fops_read`` returns 0 then), so on a port an empty read means wait; on a socket it means that the host is gone.
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path
from typing import Any

from .wire import Decoder, Frame, Kind, pack

PORT_NAME = "kmt.agent"
HEARTBEAT_SECONDS = 2.0


class HostGoneError(Exception):
    """The host closed the channel."""


def find_port() -> Path:
    """The device of the virtio-serial port named for us. FileNotFoundError when this machine has none."""
    for name in Path("/sys/class/virtio-ports").glob("*/name"):
        if name.read_text().strip() == PORT_NAME:
            return Path("/dev") / name.parent.name
    raise FileNotFoundError(f"no virtio-serial port is named {PORT_NAME}")


class Port:
    """Frames to and from the host; while it waits it sends a heartbeat every two seconds, unless it is still."""

    def __init__(self) -> None:
        handed = os.environ.get("KMT_CHANNEL_FD")
        self.is_socket = handed is not None
        # One descriptor for both ways, or "IN,OUT".
        numbers = [int(word) for word in handed.split(",")] if handed is not None else [os.open(find_port(), os.O_RDWR)]
        self.fd, self._out = numbers[0], numbers[-1]
        for number in numbers:
            os.set_inheritable(number, False)
        self._decoder = Decoder()
        self._frames: list[Frame] = []
        self._last = time.monotonic()
        self.still = False
        """True: no heartbeats until the host speaks, for it is about to freeze this machine."""

    @property
    def patience(self) -> float | None:
        """How long to wait for something to happen, in seconds; None: as long as it takes."""
        return None if self.still else HEARTBEAT_SECONDS

    def send(self, kind: Kind, body: dict[str, Any] | None = None, raw: bytes = b"") -> None:
        """Send one frame, whole, before returning."""
        data = memoryview(pack(kind, body, raw))
        while data:
            try:
                data = data[os.write(self._out, data) :]
            except BrokenPipeError as error:
                raise HostGoneError from error
        self._last = time.monotonic()

    def beat(self) -> None:
        """Send a heartbeat if nothing was sent for a while."""
        if not self.still and time.monotonic() - self._last >= HEARTBEAT_SECONDS:
            self.send(Kind.PING)

    def read(self) -> list[Frame]:
        """The frames that are there now (the descriptor is readable); maybe none yet."""
        try:
            data = os.read(self.fd, 65536)
        except ConnectionResetError as error:
            raise HostGoneError from error
        if not data:
            if self.is_socket:
                raise HostGoneError
            time.sleep(0.02)
        frames = list(self._decoder.feed(data))
        self.still = self.still and not frames
        return frames

    def receive(self) -> Frame:
        """Wait for one frame."""
        while not self._frames:
            readable, _, _ = select.select([self.fd], [], [], self.patience)
            self.beat()
            if readable:
                self._frames += self.read()
        return self._frames.pop(0)

    def pending(self) -> list[Frame]:
        """Frames that came in one read with the last one received."""
        frames, self._frames = self._frames, []
        return frames

    def give_back(self, frames: list[Frame]) -> None:
        """Frames that a relay read and did not want; ``receive`` gives them later, in their order."""
        self._frames += frames
