"""QEMU's monitor (QMP): commands and events as JSON lines over a socket that QEMU inherits.

Laws: a command that QEMU refuses, a monitor that closes and an answer that does not come in time are each a
``MonitorError``; events that come between answers are kept until they are asked for, ``KEPT`` at most.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from typing import Any

from kmt.deadline import Deadline
from kmt.errors import VmError

KEPT = 100


class MonitorError(VmError):
    """QEMU's monitor refused a command, did not answer, or is gone."""


class Monitor:
    """One machine's monitor. Nothing is read before the first command.

    ``deadline`` is until when an answer may take; whoever begins something sets it.
    """

    def __init__(self, channel: socket.socket, deadline: Deadline) -> None:
        self.deadline = deadline
        self._socket = channel
        self._left = b""
        self._events: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._greeted = False

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Run one command and return what it gives."""
        if not self._greeted:
            self._greeted = True
            self._send("qmp_capabilities", {})
            self._answer("qmp_capabilities")
        self._send(command, arguments)
        return self._answer(command)

    def pass_fd(self, name: str, fd: int) -> None:
        """Give QEMU a copy of an open descriptor, under a name that later commands use."""
        words = {"execute": "getfd", "arguments": {"fdname": name}}
        try:
            socket.send_fds(self._socket, [json.dumps(words).encode() + b"\n"], [fd])
        except OSError as error:
            raise MonitorError(f"QEMU's monitor is gone: {error.strerror}") from None
        self._answer("getfd")

    def wait_for(self, *events: str) -> dict[str, Any]:
        """The next event with one of these names, in QEMU's own words."""
        while True:
            while self._events:
                event = self._events.popleft()
                if event.get("event") in events:
                    return event
            self._take()

    def _send(self, command: str, arguments: dict[str, Any]) -> None:
        words = {"execute": command, **({"arguments": arguments} if arguments else {})}
        try:
            self._socket.sendall(json.dumps(words).encode() + b"\n")
        except OSError as error:
            raise MonitorError(f"QEMU's monitor is gone: {error.strerror}") from None

    def _answer(self, command: str) -> Any:
        while True:
            said = self._take()
            if "return" in said:
                return said["return"]
            if "error" in said:
                raise MonitorError(f"QEMU refused {command}: {said['error'].get('desc', said['error'])}")

    def _take(self) -> dict[str, Any]:
        line = self._line()
        try:
            said = json.loads(line)
        except ValueError:
            raise MonitorError(f"QEMU's monitor does not speak JSON: {line[:100]!r}") from None
        if not isinstance(said, dict):
            raise MonitorError(f"QEMU's monitor sent no object: {line[:100]!r}")
        if "event" in said:
            self._events.append(said)
        return said

    def _line(self) -> bytes:
        while b"\n" not in self._left:
            self._socket.settimeout(max(0.001, self.deadline.remaining()))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise MonitorError("QEMU's monitor did not answer in time") from None
            except OSError as error:
                raise MonitorError(f"QEMU's monitor is gone: {error.strerror}") from None
            if not data:
                raise MonitorError("QEMU's monitor is gone")
            self._left += data
        line, _, self._left = self._left.partition(b"\n")
        return line
