"""Children of the agent: started in a session of their own, relayed to the host until they end.

A child that runs pytest also gets a stream socket on which it speaks frames; the agent passes them on whole, so
that its own heartbeats can never fall into one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pty
import selectors
import shutil
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import fresh
from .port import Port
from .wire import Decoder, Frame, Kind, pack

_COMMAND_NOT_FOUND = 127
_PR_SET_PDEATHSIG = 1
_IGNORED = [signal.SIGPIPE]
"""By Python; and what is ignored stays so in what is started."""


@dataclass
class Child:
    """A running child: its pid, where its output comes from, where input goes, its frames if it speaks any."""

    pid: int
    outputs: dict[int, int]
    """Descriptor to stream number (1 standard output, 2 standard error)."""
    stdin: int | None = None
    pending: bytearray = field(default_factory=bytearray)
    """Input that the child has not taken yet: it may be busy writing, and waiting for it would be a deadlock."""
    input_ends: bool = False
    frames: socket.socket | None = None
    decoder: Decoder = field(default_factory=Decoder)

    def end(self) -> int:
        """Leave nothing of it behind; its wait status."""
        _kill_session(self.pid)
        _, status = os.waitpid(self.pid, 0)
        for fd in {*self.outputs, *([self.stdin] if self.stdin is not None else [])}:
            os.close(fd)
        if self.frames:
            self.frames.close()
        return status


def start_command(request: dict[str, Any], *, tied: bool) -> Child:
    """Start ``argv`` in ``cwd`` with ``env`` added; ``tty`` gives it a terminal of ``rows`` by ``columns``.

    ``tied``: it has to end with us by itself, for no machine ends when we do. Only a forked child can be made to; one
    that is spawned copies none of our memory, which costs an emulated guest more than most commands.
    """
    argv = [str(a) for a in request["argv"]]
    env = {**os.environ, **request.get("env", {})}

    def exec_it() -> None:
        for number in _IGNORED:
            signal.signal(number, signal.SIG_DFL)
        os.chdir(request.get("cwd") or "/")
        os.execvpe(argv[0], argv, env)

    if request.get("tty"):
        pid, fd = pty.fork()
        if pid == 0:
            _become(exec_it)
        _resize(fd, request.get("rows", 24), request.get("columns", 80))
        return Child(pid, {fd: 1}, stdin=fd)
    program = shutil.which(argv[0], path=env.get("PATH"))
    if program and not tied:
        with contextlib.suppress(OSError):  # exec_it fails alike, where it can say so
            return _spawn(program, argv, request.get("cwd") or "/", env)
    return _fork(exec_it, with_stdin=True)


def _spawn(program: str, argv: list[str], cwd: str, env: dict[str, str]) -> Child:
    (out_r, out_w), (err_r, err_w), (in_r, in_w) = [os.pipe() for _ in range(3)]
    streams = [(os.POSIX_SPAWN_DUP2, fd, number) for fd, number in ((in_r, 0), (out_w, 1), (err_w, 2))]
    ours, here = [out_r, err_r, in_w], Path.cwd()
    try:
        os.chdir(cwd)
        pid = os.posix_spawn(program, argv, env, file_actions=streams, setsid=True, setsigdef=_IGNORED)
        return Child(pid, {ours.pop(0): 1, ours.pop(0): 2}, stdin=ours.pop())
    finally:
        os.chdir(here)
        for fd in (in_r, out_w, err_w, *ours):
            os.close(fd)


def start_function(function: Callable[[socket.socket], int]) -> Child:
    """Run ``function`` in a forked child with a socket to speak frames on; its value is the exit status."""
    ours, theirs = socket.socketpair()

    def call_it() -> None:
        ours.close()
        os._exit(function(theirs))

    child = _fork(call_it, with_stdin=False)
    theirs.close()
    child.frames = ours
    return child


def _fork(body: Callable[[], None], *, with_stdin: bool) -> Child:
    pipes = [os.pipe() for _ in range(3 if with_stdin else 2)]
    (out_r, out_w), (err_r, err_w) = pipes[:2]
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        stdin = pipes[2][0] if with_stdin else os.open(os.devnull, os.O_RDONLY)
        for fd, number in ((stdin, 0), (out_w, 1), (err_w, 2)):
            os.dup2(fd, number)
        _become(body)
    os.close(out_w)
    os.close(err_w)
    if with_stdin:
        os.close(pipes[2][0])
    return Child(pid, {out_r: 1, err_r: 2}, stdin=pipes[2][1] if with_stdin else None)


def _become(body: Callable[[], None]) -> None:
    """In the child: run ``body``, which does not return; whatever it raises ends the child, never the agent's loop."""
    status = 1
    try:
        body()
    except FileNotFoundError as error:
        os.write(2, f"{error}\n".encode())
        status = _COMMAND_NOT_FOUND
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _resize(fd: int, rows: int, columns: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def relay(port: Port, child: Child) -> None:
    """Pass frames and output both ways until the child has ended, then send EXIT and leave nothing of it behind."""
    pidfd = os.pidfd_open(child.pid)
    with selectors.DefaultSelector() as selector:
        selector.register(port.fd, selectors.EVENT_READ, "host")
        selector.register(pidfd, selectors.EVENT_READ, "end")
        for fd in child.outputs:
            selector.register(fd, selectors.EVENT_READ, "output")
        if child.frames is not None:
            selector.register(child.frames, selectors.EVENT_READ, "frames")
        ended = False
        if child.stdin is not None:
            os.set_blocking(child.stdin, False)
        _from_host(port, child, port.pending())
        while not ended:
            _watch_input(selector, child)
            events = selector.select(port.patience)
            port.beat()
            for key, mask in events:
                if mask & selectors.EVENT_WRITE:
                    _feed(child)
                if not mask & selectors.EVENT_READ:
                    continue
                if key.data == "end":
                    ended = True
                elif key.data == "host":
                    _from_host(port, child, port.read())
                else:
                    with contextlib.suppress(BlockingIOError):
                        if not _from_child(port, child, key.fd):
                            selector.unregister(key.fileobj)
    _reap(port, child, pidfd)


def _from_host(port: Port, child: Child, frames: list[Frame]) -> None:
    for number, frame in enumerate(frames):
        if frame.kind is Kind.CANCEL:
            _kill_session(child.pid)
        elif frame.kind is Kind.INPUT and child.stdin is not None:
            child.pending += frame.raw
            child.input_ends = child.input_ends or not frame.raw
            _feed(child)
        elif frame.kind is Kind.RESUME:
            fresh.resume(frame.body)
            port.send(Kind.HELLO, fresh.hello())
        elif frame.kind is Kind.CLOCK:
            fresh.set_clock(frame.body["now"])
        elif frame.kind in (Kind.EXAMPLES, Kind.RUN) and child.frames is not None:
            with contextlib.suppress(OSError):  # it may have just ended
                child.frames.sendall(pack(frame.kind, frame.body))
        elif frame.kind is not Kind.INPUT:
            port.give_back(frames[number:])
            return


def _watch_input(selector: selectors.BaseSelector, child: Child) -> None:
    """Wait for the child to take input only while there is some. A terminal is watched for output as well."""
    if child.stdin is None:
        return
    reads = selectors.EVENT_READ if child.stdin in child.outputs else 0
    wanted = reads | (selectors.EVENT_WRITE if child.pending else 0)
    known = selector.get_map().get(child.stdin)
    if known is None:
        if wanted & selectors.EVENT_WRITE:
            selector.register(child.stdin, selectors.EVENT_WRITE, "input")
    elif wanted:
        selector.modify(child.stdin, wanted, known.data)
    else:
        selector.unregister(child.stdin)


def _feed(child: Child) -> None:
    """Give the child what it takes now; close its input when that was all and the host said so."""
    assert child.stdin is not None
    try:
        while child.pending:
            del child.pending[: os.write(child.stdin, child.pending)]
    except BlockingIOError:
        return
    except OSError:  # the child has closed its end
        child.pending.clear()
    if child.input_ends and child.stdin not in child.outputs:
        os.close(child.stdin)
        child.stdin = None


def _from_child(port: Port, child: Child, fd: int) -> bool:
    """Pass on what is there; False when this stream has ended. BlockingIOError: nothing is there."""
    try:
        data = os.read(fd, 65536)
    except BlockingIOError:
        raise
    except OSError:  # EIO: the terminal's other side is closed
        return False
    if fd in child.outputs:
        if data:
            port.send(Kind.OUTPUT, raw=bytes([child.outputs[fd]]) + data)
        return bool(data)
    for frame in child.decoder.feed(data):
        if frame.body.get("paused"):
            _drain(port, child, list(child.outputs))
            port.still = True
        port.send(frame.kind, frame.body)
        if frame.kind is Kind.STARTED and child.frames is not None:
            with contextlib.suppress(OSError):  # it may have just ended
                child.frames.sendall(pack(Kind.HEARD))
    return bool(data)


def _drain(port: Port, child: Child, streams: list[int]) -> None:
    """Pass on what lies in the child's pipes now."""
    for fd in streams:
        os.set_blocking(fd, False)
        with contextlib.suppress(BlockingIOError):
            while _from_child(port, child, fd):
                pass


def _reap(port: Port, child: Child, pidfd: int) -> None:
    # What it wrote just before its end still lies in the pipes; a daemon it left may hold them open for ever.
    _drain(port, child, [*child.outputs, *([child.frames.fileno()] if child.frames else [])])
    os.close(pidfd)
    port.send(Kind.EXIT, {"status": os.waitstatus_to_exitcode(child.end())})


def _kill_session(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
