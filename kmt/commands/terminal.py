"""Our terminal on a command in a guest, by way of its agent."""

from __future__ import annotations

import os
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from kmt.errors import KmtError
from kmt.guest.wire import Kind
from kmt.run.link import Link

LEAVES = b"\x1d"
"""Ctrl-], as in telnet."""


def attach(link: Link, argv: Sequence[str], *, cwd: str, env: Mapping[str, str]) -> int:
    """Run it on a terminal in the guest that is ours until it ends; its exit status as a shell has it.

    Ctrl-] leaves it, which is no failure of anything: 0.
    """
    columns, rows = os.get_terminal_size(sys.stdout.fileno())
    term = {"TERM": os.environ.get("TERM", "xterm")}
    frames = link.start(argv, cwd=cwd, env={**env, **term}, tty=True, size=(rows, columns))
    left = threading.Event()
    with _raw():
        threading.Thread(target=_type, args=(link, left), daemon=True).start()
        for frame in frames:
            if frame.kind is Kind.EXIT:
                status = int(frame.body["status"])
                return 0 if left.is_set() else status if status >= 0 else 128 - status
            sys.stdout.buffer.write(frame.raw[1:])
            sys.stdout.flush()
    return 1


def _type(link: Link, left: threading.Event) -> None:
    with suppress(OSError, KmtError):  # the command may end first
        while data := os.read(0, 4096):
            before, leaves, _ = data.partition(LEAVES)
            if before:
                link.send(Kind.INPUT, raw=before)
            if leaves:
                left.set()
                link.send(Kind.CANCEL)
                return


@contextmanager
def _raw() -> Iterator[None]:
    """Every key goes to the guest, Ctrl-C too."""
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
