"""The guest's agent: unpacks the project, runs commands and pytest in children, streams what happens.

Laws: one request at a time, each ends in exactly one of DONE, FAILED or EXIT; a child runs in a session of its own
and all of that session is killed when it ends; the verdict (frames) and the chatter (OUTPUT) are different frames;
the agent itself runs nothing of the project; what it warms up with (WARM) is gone before it answers.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import bytecode, fresh
from .children import relay, start_command
from .port import HostGoneError, Port
from .wire import CHUNK, Frame, Kind, WireError

# The filters came with Python 3.11.4. The host may do here what it likes; looking at each path again would take a
# third of the time.
_FILTER: dict[str, Any] = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
_UNPACKED: set[str] = set()
ARTIFACTS = os.environ.get("KMT_ARTIFACTS", "/run/kmt/artifacts")


def main() -> int:
    """Serve until BYE. 0; 1 when the host is gone, 2 when it spoke what is no frame of this version."""
    Path(ARTIFACTS).mkdir(parents=True, exist_ok=True)
    port = Port()
    try:
        port.send(Kind.HELLO, fresh.hello())
        serve(port)
    except HostGoneError:
        return 1
    except WireError as error:
        print(f"kmt: {error}", file=sys.stderr)
        return 2
    return 0


def serve(port: Port) -> None:
    """Do what each frame asks until BYE; a request that cannot be done is answered, not fatal."""
    while True:
        frame = port.receive()
        if frame.kind is Kind.BYE:
            return
        try:
            _handle(port, frame)
        except (OSError, KeyError, TypeError, ValueError, tarfile.TarError, RuntimeError, ImportError) as error:
            port.send(Kind.FAILED, {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()})


def _handle(port: Port, frame: Frame) -> None:
    if frame.kind is Kind.HELLO:
        for left in Path(ARTIFACTS).iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        port.send(Kind.HELLO, fresh.hello())
    elif frame.kind is Kind.TREE:
        port.send(Kind.DONE, {"files": unpack(port, frame.body["dest"])})
    elif frame.kind is Kind.ARTIFACTS:
        send_artifacts(port)
    elif frame.kind is Kind.COMPILE:
        send_compiled(port, frame.body["root"], frame.body["files"])
    elif frame.kind is Kind.WARM:
        from .warm import warm

        done = warm(frame.body.get("modules", ()))
        port.still = True
        port.send(Kind.DONE, done)
    elif frame.kind is Kind.RESUME:
        fresh.resume(frame.body)
        port.send(Kind.HELLO, fresh.hello())
    elif frame.kind is Kind.CLOCK:
        fresh.set_clock(frame.body["now"])
    elif frame.kind is Kind.EXEC:
        relay(port, start_command(frame.body, tied=port.is_socket))
    elif frame.kind is Kind.PYTEST:
        from . import ready

        relay(port, ready.start(frame.body))
    # These are late, not wrong, for a child that has just ended.
    elif frame.kind not in (Kind.CANCEL, Kind.INPUT, Kind.EXAMPLES, Kind.RUN):
        raise TypeError(f"a guest does not take {frame.kind.name}")


class _Incoming:
    """DATA frames as a file to read from, until an empty one."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._left = b""
        self.ended = False

    def read(self, size: int = -1) -> bytes:
        while not self.ended and (size < 0 or len(self._left) < size):
            frame = self._port.receive()
            if frame.kind is not Kind.DATA:
                raise WireError(f"{frame.kind.name} in the middle of a tar")
            self.ended = not frame.raw
            self._left += frame.raw
        size = len(self._left) if size < 0 else size
        given, self._left = self._left[:size], self._left[size:]
        return given


def unpack(port: Port, dest: str) -> int:
    """Unpack the tar that follows into ``dest``; returns how many members it had. Owner: root, modes as sent."""
    incoming = _Incoming(port)
    count = 0
    if dest in _UNPACKED:  # by an earlier run in this guest: a file that is gone there must be gone here
        shutil.rmtree(dest, ignore_errors=True)
    _UNPACKED.add(dest)
    try:
        Path(dest).mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=incoming, mode="r|") as tar:  # type: ignore[call-overload]
            for member in tar:
                member.uid = member.gid = 0  # by number: names of the host may be other people here, and take long
                tar.extract(member, dest, numeric_owner=True, **_FILTER)
                count += 1
    finally:
        while not incoming.ended:
            incoming.read(CHUNK)
    return count


class _Outgoing:
    """A file to write to that sends DATA frames."""

    def __init__(self, port: Port) -> None:
        self._port = port

    def write(self, data: bytes) -> int:
        for start in range(0, len(data), CHUNK):
            self._port.send(Kind.DATA, raw=data[start : start + CHUNK])
        return len(data)


@contextmanager
def _sending(port: Port) -> Iterator[tarfile.TarFile]:
    """A tar that travels while it is written; an empty DATA ends it."""
    try:
        with tarfile.open(fileobj=_Outgoing(port), mode="w|") as tar:  # type: ignore[call-overload]
            yield tar
    finally:
        port.send(Kind.DATA, raw=b"")


def send_artifacts(port: Port) -> None:
    """Send the artefact directory."""
    with _sending(port) as tar:
        tar.add(ARTIFACTS, arcname=".")


def send_compiled(port: Port, root: str, files: list[tuple[str, bool]]) -> None:
    """Send what ``bytecode.compiled`` makes of them."""
    with _sending(port) as tar:
        for name, content in bytecode.compiled(root, files, port.beat):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
