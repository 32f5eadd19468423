"""Waiting for SIGTERM or Ctrl-C, as the commands that run until they are told to stop do."""

from __future__ import annotations

import select
import signal
import socket
from collections.abc import Callable

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def until_told() -> Callable[[float | None], bool]:
    """From now on the first of these signals is heard, and a second one does what it does to any process.

    The function returned waits for it, up to so many seconds (None: as long as it takes), and says whether it came.
    """
    ours, heard = socket.socketpair()

    def told(number: int, _: object) -> None:
        # It runs in the very middle of whatever the main thread does, the wait among it: no lock is to be had here.
        signal.signal(number, signal.SIG_DFL)
        heard.send(b"!")

    for number in SIGNALS:
        signal.signal(number, told)
    return lambda seconds: bool(select.select([ours], [], [], seconds)[0])
