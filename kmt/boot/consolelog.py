"""A console as it happens: into a log file that cannot fill the disk, and into ``kmt.boot.console.Console``.

Laws: the log keeps the first and the last part of a flood and says how much is missing between them; reading never
stops while the machine runs (a full pipe would stall the guest) and wakes at most a hundred times a second (the
emulated port gives single bytes).
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import pexpect
from pexpect import fdpexpect

from kmt.boot.console import Console

HEAD = 12 * 1024 * 1024
TAIL = 4 * 1024 * 1024
_PIPE = 1024 * 1024
# Anchored, so that a search that fails ends after one pass over the buffer.
_LINES = rb"(?s)\A.*\n"
_FULL = rb"(?s)\A.{65536,}"


def free_path(directory: Path, stem: str) -> Path:
    """``stem.log``, or ``stem-2.log`` and so on: a kernel may have several guests in one run, and all logs stay."""
    number = 1
    while (path := directory / (f"{stem}-{number}.log" if number > 1 else f"{stem}.log")).exists():
        number += 1
    return path


class CappedLog:
    """A file to write to that keeps at most ``head + tail`` bytes; the tail is written by ``close``."""

    def __init__(self, path: Path, *, head: int, tail: int) -> None:
        self.path = path
        self._file = path.open("wb")
        self._head = head
        self._limit = tail
        self._tail: deque[bytes] = deque()
        self._held = 0
        self._left_out = 0

    def write(self, data: bytes) -> None:
        """Take bytes. A full disk costs the log, not the run."""
        now, later = data[: self._head], data[self._head :]
        self._head -= len(now)
        with suppress(OSError):
            self._file.write(now)
        if later:
            self._tail.append(later)
            self._held += len(later)
        while self._held > self._limit:
            gone = self._tail.popleft()
            keep = gone[len(gone) - max(0, len(gone) - (self._held - self._limit)) :]
            if keep:
                self._tail.appendleft(keep)
            self._left_out += len(gone) - len(keep)
            self._held -= len(gone) - len(keep)

    def flush(self) -> None:
        """What has come so far can be read from the file."""
        with suppress(OSError):
            self._file.flush()

    def close(self) -> None:
        """Write the tail and close."""
        with suppress(OSError):
            if self._left_out:
                self._file.write(b"\n[kmt: %d bytes of console left out here]\n" % self._left_out)
            self._file.writelines(self._tail)
        self._tail.clear()
        with suppress(OSError):
            self._file.close()


class Watch:
    """A thread that reads a console until its other end is closed."""

    def __init__(self, log: Path) -> None:
        self.console = Console()
        self.path = log
        self.panicked_at: float | None = None
        """Monotonic time when a panic was seen."""
        reading, self.writing = os.pipe()
        """``writing`` goes to the machine's process; ``started`` closes our copy."""
        with suppress(OSError):  # EPERM: over the user's limit for pipes; the default size does
            fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, _PIPE)
        self._log = CappedLog(log, head=HEAD, tail=TAIL)
        self._reading = reading
        self._thread = threading.Thread(target=self._read, name=f"console {log}", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Words of the machine that come another way; not after ``started``."""
        while data:
            data = data[os.write(self.writing, data) :]

    def started(self) -> None:
        """The process has its copy of ``writing``: from now on its end is the console's end."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def join(self, seconds: float) -> None:
        """Wait for the last words of a machine that has ended."""
        self._thread.join(seconds)

    def _read(self) -> None:
        child = fdpexpect.fdspawn(self._reading, maxread=_PIPE, use_poll=True)
        child.logfile_read = self._log
        try:
            while True:
                # Everything up to the last line break at once; a flood without one in pieces. Both patterns leave
                # little in pexpect's buffer, which would grow and be searched again and again otherwise.
                which = child.expect([_LINES, _FULL, pexpect.EOF, pexpect.TIMEOUT], timeout=60)
                if which == 3:
                    continue
                parts: tuple[Any, ...] = (child.before, child.after)
                for part in parts:  # at the end of the file ``after`` is the class EOF
                    if isinstance(part, bytes):
                        self.console.feed(part)
                if self.console.panicked and self.panicked_at is None:
                    self.panicked_at = time.monotonic()
                if which == 2:
                    break
                time.sleep(0.01)
        finally:
            self.console.end()
            self._log.close()
            child.close()
