"""What keeper and lessee say: one JSON object a line, at most one descriptor with it.

Laws: a message over ``LIMIT`` or one that is no object is a ``KeeperError``; the end of the connection is the end of
the lease. The lessee says which guest it wants and by which settings (``Wanted``), the keeper answers
``{"guest": ...}`` with the guest's channel, or ``{"error": ...}``; it says ``{"death": ...}`` when the guest dies. A
lessee that is done says ``{"release": true}`` and hears ``{"released": true}``; one that just goes has its guest
thrown away, for nobody knows what it left half done.
"""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kmt.backends.base import Machine
from kmt.config import Config
from kmt.errors import KmtError
from kmt.kernel import Kernel

LIMIT = 1 << 16
SOCKET = "keeper.sock"
"""The socket's name in the keeper's room."""


class KeeperError(KmtError):
    """The keeper could not be started, or said what is no message."""


@contextmanager
def address(room: Path) -> Iterator[str]:
    """The socket's address by way of an open directory: a path of its own may be over 107 bytes (unix(7))."""
    directory = os.open(room, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{SOCKET}"
    finally:
        os.close(directory)


@dataclass(frozen=True)
class Wanted:
    """A guest as a lessee wants it. Two are alike when all but ``settings`` are equal: ``identity`` stands for those.

    ``settings`` are the lessee's, for the project's may have changed since the keeper read them.
    """

    kernel: Kernel
    machine: Machine
    accelerator: str
    backend: str
    identity: str
    """A digest of what the guest boots from, as its backend sees it."""
    settings: Config

    @property
    def kind(self) -> tuple[Any, ...]:
        """What a guest must have in common with this to be lent."""
        return self.kernel, self.machine, self.accelerator, self.backend, self.identity


def request(wanted: Wanted) -> dict[str, Any]:
    """What a lessee asks for."""
    return {
        "kernel": {key: _plain(value) for key, value in asdict(wanted.kernel).items()},
        "machine": asdict(wanted.machine),
        "accelerator": wanted.accelerator,
        "backend": wanted.backend,
        "identity": wanted.identity,
        "settings": {key: _plain(value) for key, value in asdict(wanted.settings).items()},
    }


def requested(message: dict[str, Any]) -> Wanted:
    """The other end of ``request``. Raises KeeperError."""
    try:
        said = dict(message["kernel"])
        for key in ("vmlinuz", "modules", "config", "btf"):
            said[key] = Path(said[key]) if said[key] is not None else None
        said["headers"] = tuple(Path(path) for path in said["headers"])
        accelerator, backend, identity = (str(message[key]) for key in ("accelerator", "backend", "identity"))
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in message["settings"].items()}
        settings["root"] = Path(settings["root"])
        machine = Machine(**message["machine"])
        return Wanted(Kernel(**said), machine, accelerator, backend, identity, Config(**settings))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KeeperError(f"a request without sense: {type(error).__name__}: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class Connection:
    """One side of a conversation; ``receive`` blocks, ``poll`` does not."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self._buffer = b""
        self._descriptors: list[int] = []

    def send(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        """Send one message. OSError when the other side has gone."""
        data = json.dumps(message).encode() + b"\n"
        sent = socket.send_fds(self.stream, [data], [] if descriptor is None else [descriptor])
        self.stream.sendall(data[sent:])

    def receive(self) -> tuple[dict[str, Any], int | None] | None:
        """The next message and its descriptor; None when the other side has gone."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > LIMIT:
                raise KeeperError(f"a message over {LIMIT} bytes")
            try:
                data, descriptors, _, _ = socket.recv_fds(self.stream, 4096, 1)
            except ConnectionResetError:
                return None
            self._descriptors += descriptors
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise KeeperError("what came is no message")
        return message, self._descriptors.pop(0) if self._descriptors else None

    def poll(self) -> tuple[dict[str, Any], int | None] | None:
        """Like ``receive``, but None as well when nothing has come. EOFError when the other side has gone."""
        if b"\n" not in self._buffer and not select.select([self.stream], [], [], 0)[0]:
            return None
        found = self.receive()
        if found is None:
            raise EOFError
        return found

    def close(self) -> None:
        """End the conversation; descriptors that nobody took are closed."""
        self.stream.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
