"""A pytest session that stands ready in a warm guest: a fork of the agent that waits for what it is to run.

A fork copies every page that it touches, which costs an emulated guest as much again as what it does there. So the
first session is forked before the memory is kept, and touches its pages by a throw-away session of its own. Laws: it
is used once, and those after it are forked when they are asked for, as in a guest that is not warm; it holds nothing
that the agent does not; it takes its seeds when it is told what to run (``runner.py``), for it slept through RESUME.
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable
from typing import Any

from .children import Child, start_function
from .runner import Channel, run_pytest, run_when_told
from .wire import Kind, pack

_waiting: list[Child] = []


def prepare(warm_up: Callable[[], None]) -> None:
    """Fork it; returns when it has warmed itself up and waits. ChildProcessError: it has ended instead."""

    def stand(stream: socket.socket) -> int:
        warm_up()
        channel = Channel(stream)

        def told() -> dict[str, Any]:
            gc.collect()
            gc.freeze()
            stream.sendall(b"\n")
            return channel.wait(Kind.PYTEST).body

        return run_when_told(told, channel)

    child = start_function(stand)
    assert child.frames is not None
    if not child.frames.recv(1):
        said = b"".join(os.read(fd, 65536) for fd in child.outputs)
        child.end()
        raise ChildProcessError(f"the session that was to stand ready ended: {said.decode(errors='replace')}")
    _waiting.append(child)


def start(request: dict[str, Any]) -> Child:
    """A session that does what ``request`` says: the one that stands ready, or a fork of this moment."""
    while _waiting:
        child = _waiting.pop()
        assert child.frames is not None
        try:
            child.frames.sendall(pack(Kind.PYTEST, request))
        except OSError:  # somebody has killed it
            child.end()
        else:
            return child
    return start_function(lambda stream: run_pytest(request, Channel(stream)))
