"""A connection over ssh with an agent at its other end: what every machine that is reached over SSH runs on.

All that the other side needs is a Python; the agent travels there each time. Whose machine it is, and what becomes of
it, is the backend's to know (``ssh.py``, ``vagrant.py``). What is said to ssh and what it says back: ``ssh_words.py``;
what travels: ``ssh_load.py``; the other side: ``kmt/guest/far.py``.
"""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from kmt import proc
from kmt.backends.ssh_load import cargo, choose, program
from kmt.backends.ssh_words import ENVIRONMENT, MARK, Facts, Target, facts, trouble
from kmt.backends.stopping import stop
from kmt.boot.consolelog import Watch, free_path
from kmt.deadline import Deadline
from kmt.errors import VmError, VmNeverStartedError, VmTimedOutError
from kmt.guest import far

CONNECT_SECONDS = 30.0
"""From ssh's start to the line of facts."""
NOISE = 64 * 1024
"""Bytes that login scripts may print before it."""
LONGEST = 1 << 20
"""Bytes of the line of facts, which names all packages there."""
V = TypeVar("V", bound="SshVm")
_BEGIN = re.compile(rb"^" + MARK, re.MULTILINE)
_FACTS = re.compile(_BEGIN.pattern + rb"(.*)\n", re.MULTILINE)


class SshVm:
    """A connection with an agent at its end; see ``kmt.backends.base.Vm``. ``pid`` is ssh's."""

    accelerator = "none"
    restored = False

    def __init__(
        self, target: Target, process: subprocess.Popen[bytes], channel: socket.socket, watch: Watch, said: Path
    ) -> None:
        self.channel = channel
        self.console = watch.path
        self.pid = process.pid
        self._target, self._process, self._watch, self._said = target, process, watch, said

    def death(self) -> VmError | None:
        """None while ssh runs."""
        status = self._process.poll()
        if status is None:
            return None
        self._watch.join(2.0)
        said, console = (
            path.read_text(errors="replace") if path.is_file() else "" for path in (self._said, self.console)
        )
        return trouble(self._target, said, console, status, began=self._watch.console.ready)

    def remarks(self) -> list[str]:
        """Nothing: that machine's kernel speaks to its own log."""
        return []

    @property
    def phase(self) -> str:
        """``booting`` while the connection is made, then ``ready`` or ``ended``."""
        if self._process.poll() is not None:
            return "ended"
        return "ready" if self._watch.console.ready else "booting"

    def greet(self, deadline: Deadline) -> Facts:
        """Send the first program; what it says of its machine. Raises VmError."""
        self.send(program(), deadline)
        heard = bytearray()
        while (found := _FACTS.search(heard)) is None:
            begin = _BEGIN.search(heard)
            if (begin.start() if begin else len(heard)) > NOISE:
                raise VmNeverStartedError(
                    f"{self._target} prints {NOISE} bytes and more when somebody logs in, and no agent starts",
                    hint="its login scripts must be still when there is no terminal",
                )
            if len(heard) > NOISE + LONGEST:
                raise VmNeverStartedError(f"what {self._target} says of itself has no end")
            if deadline.passed():
                raise VmTimedOutError(f"{self._target} did not start an agent within {deadline.seconds:.0f} s")
            if select.select([self.channel], [], [], 0.1)[0]:
                heard += self._more()
        return facts(found[1], self._target)

    def _more(self) -> bytes:
        try:
            data = self.channel.recv(1 << 16)
        except ConnectionResetError:  # it ended without having read what we sent
            data = b""
        if not data:
            raise self.ended()
        return data

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Send all of it. Raises VmError where the other side is gone, or takes nothing until the deadline."""
        self.channel.settimeout(max(0.1, deadline.remaining()))
        try:
            self.channel.sendall(data)
        except TimeoutError:
            raise VmTimedOutError(f"{self._target} did not take the agent within {deadline.seconds:.0f} s") from None
        except OSError:
            raise self.ended() from None
        finally:
            self.channel.settimeout(None)

    def take(self, requirements: Sequence[str], found: Facts, deadline: Deadline, own: str = "") -> None:
        """Send the agent, and what that side needs and lacks; it speaks next. Raises VmError.

        ``own`` is the name of a machine that is ours alone, which is then made like any guest.
        """
        load = cargo(choose(requirements, found)[0])
        words = [str(len(load)), *([own, os.urandom(64).hex(), str(time.time())] if own else [])]
        self.send(" ".join(words).encode() + b"\n" + load, deadline)

    def leave(self) -> None:
        """Wait for the other side to have cleaned up and ended by itself, so that the next one there has it alone."""
        with suppress(OSError):  # it has ended already
            self.channel.shutdown(socket.SHUT_WR)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(far.GRACE + far.PATIENCE)

    def ended(self) -> VmError:
        """Why; it may need a moment to end."""
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            stop(self._process)
        return self.death() or VmNeverStartedError(f"{self._target} closed the connection")


@contextmanager
def connected(target: Target, watch: Watch, kind: type[V]) -> Iterator[V]:
    """The connection; it ends with the ``with``, and the agent at its other end with it.

    What the agent prints goes to ``watch``, which is the caller's to end.
    """
    if proc.which("ssh") is None:
        raise VmNeverStartedError("ssh is not installed", hint="apt-get install openssh-client")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        said = free_path(watch.path.parent, "ssh")
        command, end = target.command(str(said)), theirs.fileno()
        process = proc.spawn(command, stdin=end, stdout=end, stderr=watch.writing, env=ENVIRONMENT, own_session=True)
        theirs.close()
        try:
            yield kind(target, process, ours, watch, said)
        finally:
            stop(process)
