"""Finding a project's keeper, starting it, leasing guests from it."""

from __future__ import annotations

import hashlib
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kmt import proc, runs
from kmt.keeper.messages import SOCKET, Connection, KeeperError, Wanted, address, request
from kmt.paths import cache, locked

START_SECONDS = 20.0


def find(root: Path) -> runs.Seen | None:
    """The project's keeper, where one lives; ``root`` by whatever path."""
    here = str(root.resolve())
    for run in reversed(runs.seen()):
        if run.alive and run.record.cwd == here and (run.dir / SOCKET).exists():
            return run
    return None


def ensure(root: Path, idle_seconds: float) -> runs.Seen:
    """The project's keeper, started when there is none. Raises KeeperError with its last words."""
    root = root.resolve()  # as the keeper's own directory will be
    name = hashlib.sha256(str(root).encode()).hexdigest()[:16]
    with locked(f"keeper-{name}"):
        found = find(root)
        if found is not None:
            return found
        log = cache("keepers") / f"{name}.log"
        process = proc.detached([sys.executable, "-m", "kmt.keeper", str(root), str(idle_seconds)], cwd=root, log=log)
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and process.poll() is None:
            found = find(root)
            if found is not None:
                return found
            time.sleep(0.02)
        said = log.read_text(errors="replace").strip().splitlines()
        raise KeeperError(f"the keeper did not start: {said[-1] if said else 'no word'}", hint=f"its log: {log}")


class Lease:
    """A guest that is ours for now: what is known of it, and the channel to its agent."""

    def __init__(self, connection: Connection, about: dict[str, Any], channel: socket.socket) -> None:
        self.about, self.channel = about, channel
        self._connection = connection
        self._death: dict[str, Any] | None = None

    def death(self) -> dict[str, Any] | None:
        """What the keeper said of its end (``kind, message, hint``); None while it lives."""
        if self._death is None:
            try:
                said = self._connection.poll()
            except (EOFError, OSError, KeeperError):
                self._death = {"kind": "VmLostError", "message": "the keeper has ended", "hint": ""}
            else:
                self._death = said[0].get("death") if said else None
        return self._death

    def release(self) -> None:
        """Give it back whole; once it is back, the next one that asks gets this one."""
        with suppress(OSError, KeeperError):
            self._connection.send({"release": True})
            while (said := self._connection.receive()) is not None and "released" not in said[0]:
                pass


@contextmanager
def lease(keeper: runs.Seen, wanted: Wanted) -> Iterator[Lease]:
    """A guest of that kind. Given back when the ``with`` ends well; after an exception it is thrown away."""
    stream = socket.socket(socket.AF_UNIX)
    connection = Connection(stream)
    try:
        try:
            with address(keeper.dir) as path:
                stream.connect(path)
            connection.send(request(wanted))
            answer = connection.receive()
        except OSError as error:
            raise KeeperError(f"the keeper does not answer: {error.strerror}") from None
        if answer is None:
            raise KeeperError("the keeper ended before it answered")
        said, descriptor = answer
        if "error" in said or descriptor is None:
            told = said.get("error") or {}
            raise KeeperError(f"the keeper has no guest: {told.get('message')}", hint=str(told.get("hint", "")))
        with socket.socket(fileno=descriptor) as channel:
            taken = Lease(connection, said["guest"], channel)
            yield taken
            taken.release()
    finally:
        connection.close()
