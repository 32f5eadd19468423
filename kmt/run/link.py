"""The host's side of the channel to a guest's agent: one request at a time, under the kernel's deadline.

Laws: whatever goes wrong is a ``VmError`` with the reason that the console gives (panic before lost); silence of
the agent for longer than ``HEARTBEAT_LIMIT`` (scaled) is a hang; a guest's frames are hostile until checked.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from kmt.backends.base import Vm
from kmt.deadline import Deadline
from kmt.errors import AgentError, KmtError, VmLostError, VmTimedOutError
from kmt.guest.wire import VERSION, Decoder, Frame, Kind, WireError, pack
from kmt.run import bytecode, incoming
from kmt.run.outgoing import Outgoing

HEARTBEAT_LIMIT = 10.0
"""Seconds of silence with hardware virtualisation after which a guest counts as hung; the agent beats every 2."""
CLOCK_SLACK = 0.5
"""Seconds by which this machine's wall clock may leap (it was suspended, say) before the guest is told."""
_TICK = 0.1


class CancelledError(KmtError):
    """The run was stopped, by a person or by ``-x``: no misfortune of the guest's."""

    outcome = "stopped"


class Link:
    """Talks with one guest. ``cancel`` is set by whoever wants the run to stop."""

    def __init__(self, vm: Vm, deadline: Deadline, *, factor: float, cancel: threading.Event) -> None:
        self._vm = vm
        self._deadline = deadline
        self._silence = HEARTBEAT_LIMIT * factor
        self._cancel = cancel
        self._decoder = Decoder()
        self._frames: list[Frame] = []
        self._last = time.monotonic()
        self._offset = time.time() - self._last
        self._sending = threading.Lock()
        self.said: dict[str, Any] = {}
        """The guest's HELLO."""
        self.stays = bool(getattr(vm, "stays", False))
        """The guest is one that was there before, and will be after."""
        self._reading = threading.Lock()
        vm.channel.setblocking(False)

    def hello(self) -> dict[str, Any]:
        """Wait for the agent's first words and check that it speaks our version."""
        frame = self.receive(Kind.HELLO)
        if frame.body.get("version") != VERSION:
            raise AgentError(f"the guest's agent speaks version {frame.body.get('version')!r}, not {VERSION}")
        room = frame.body.get("room", "")
        if not isinstance(room, str) or (room and not room.startswith("/")):
            raise AgentError(f"the guest says that its room is {room!r}")
        self.said = frame.body
        return frame.body

    def inside(self, path: Path | str) -> str:
        """Where a path of ours is for the guest: a machine that is not ours alone has a room for all of them."""
        return f"{self.said.get('room', '')}{path}"

    def send(self, kind: Kind, body: dict[str, Any] | None = None, raw: bytes = b"") -> None:
        """Send one frame, whole."""
        data = memoryview(pack(kind, body, raw))
        with self._sending:
            while data:
                try:
                    data = data[self._vm.channel.send(data) :]
                except BlockingIOError:
                    self._wait(write=True)
                except OSError as error:
                    raise self._lost(str(error)) from None

    def receive(self, *wanted: Kind) -> Frame:
        """The next frame that is no heartbeat; AgentError when it is none of ``wanted`` (or its FAILED)."""
        while True:
            while self._frames:
                frame = self._frames.pop(0)
                if frame.kind is Kind.PING:
                    continue
                if frame.kind is Kind.FAILED and Kind.FAILED not in wanted:
                    raise AgentError(f"the guest could not do it: {frame.body.get('error', 'no reason given')}")
                if wanted and frame.kind not in wanted:
                    raise AgentError(f"the guest sent {frame.kind.name} where {wanted[0].name} was due")
                return frame
            self._wait(write=False)
            self._read()

    def _read(self) -> None:
        # Whoever sends input does so from a thread of its own, and may have to make room.
        with self._reading:
            self._take()

    def _take(self) -> None:
        try:
            data = self._vm.channel.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(str(error)) from None
        if not data:
            raise self._lost("the channel was closed")
        self._last = time.monotonic()
        try:
            self._frames += self._decoder.feed(data)
        except WireError as error:
            raise AgentError(f"the guest's agent broke the protocol: {error}") from None

    def _wait(self, *, write: bool) -> None:
        """Until the channel is ready; raises when it never will be."""
        while True:
            if self._cancel.is_set():
                raise CancelledError("stopped")
            channel: list[socket.socket] = [self._vm.channel]
            readable, writable, _ = select.select(channel, channel if write else [], [], _TICK)
            if readable or writable:
                if readable and write and not writable:
                    self._read()  # both sides full: make room
                    continue
                return
            death = self._vm.death()
            if death is not None:
                raise death
            if not write:
                self._mind_the_clock()
            if self._deadline.passed():
                raise self._hang(
                    f"not done within {self._deadline.seconds:.0f} s", "more time: --kernel-timeout SECONDS"
                )
            if time.monotonic() - self._last > self._silence:
                raise self._hang(f"the guest has been silent for {self._silence:.0f} s")

    def _mind_the_clock(self) -> None:
        """A guest's clocks stand still while this machine is suspended: tell it the time when it is over."""
        offset = time.time() - time.monotonic()
        if abs(offset - self._offset) > CLOCK_SLACK and self._vm.accelerator in ("kvm", "tcg"):
            self._offset = offset
            self.send(Kind.CLOCK, {"now": time.time()})

    def _hang(self, why: str, hint: str = "") -> VmTimedOutError:
        said = "; ".join([self._vm.phase, *self._vm.remarks()])
        return VmTimedOutError(f"{why} ({said})", hint=hint)

    def _lost(self, why: str) -> KmtError:
        # The process or its console may need a moment to say why the channel ended.
        grace = Deadline(2.0)
        while not grace.passed():
            if self._cancel.is_set():  # whoever stops the run may have ended the guest as well
                return CancelledError("stopped")
            death = self._vm.death()
            if death is not None:
                return death
            time.sleep(0.05)
        return VmLostError(f"the guest is gone: {why}")

    def send_tar(self, dest: str, write: Callable[[IO[bytes]], None]) -> int:
        """Have the guest unpack, at ``dest``, the tar that ``write`` writes; returns its number of members."""
        self.send(Kind.TREE, {"dest": dest})
        stream = Outgoing(partial(self.send, Kind.DATA, None))
        write(stream)  # type: ignore[arg-type]
        stream.flush()
        self.send(Kind.DATA)
        return int(self.receive(Kind.DONE).body.get("files", 0))

    def start(
        self, argv: Sequence[str], *, cwd: str = "/", env: Mapping[str, str] | None = None, tty: bool = False,
        size: tuple[int, int] = (24, 80),
    ) -> Iterator[Frame]:  # fmt: skip
        """Start a command; gives its OUTPUT frames and last its EXIT. ``size`` is the terminal's rows and columns."""
        rows, columns = size
        request = {"argv": list(argv), "cwd": cwd, "env": dict(env or {}), "tty": tty, "rows": rows}
        self.send(Kind.EXEC, {**request, "columns": columns})
        return self._until_exit()

    def _until_exit(self) -> Iterator[Frame]:
        while True:
            frame = self.receive(Kind.OUTPUT, Kind.EXIT)
            yield frame
            if frame.kind is Kind.EXIT:
                return

    def artifacts(self, dest: Path) -> tuple[list[Path], list[str]]:
        """Fetch the guest's artefact directory into ``dest``, out of which no name can lead.

        Returns its files, and what was not taken, in words.
        """
        self.send(Kind.ARTIFACTS)
        return incoming.unpack(partial(self.receive, Kind.DATA), dest)

    def compiled(self, root: str, files: Sequence[tuple[str, bool]]) -> list[tuple[str, bytes]]:
        """Have the guest compile these sources of the project (and whether pytest rewrites them).

        Returns names and contents of what came of it. Only for guests in which nothing of the project has run.
        """
        self.send(Kind.COMPILE, {"root": root, "files": list(files)})
        return incoming.contents(partial(self.receive, Kind.DATA), limit=bytecode.LIMIT)

    def goodbye(self) -> None:
        """End the guest kindly, unless it is one that stays."""
        if not self.stays:
            self.send(Kind.BYE)
