"""A running machine to its device state, and device state to a running machine, by QEMU's migration.

Memory stays where it is: in a file that the machine has mapped shared. A machine that starts from the state maps
that file copy-on-write, so nothing is copied at either end. (Capability ``x-ignore-shared``; tried with QEMU 7.2.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from kmt.backends.qmp import Monitor, MonitorError
from kmt.deadline import Deadline

_IGNORE_SHARED = [{"capability": "x-ignore-shared", "state": True}]
_POLL = 0.005


def freeze(monitor: Monitor, deadline: Deadline) -> bytes:
    """Stop the machine for good; returns its device state. Its memory file is complete when its process has ended."""
    monitor.deadline = deadline
    with _unnamed() as file:
        monitor("migrate-set-capabilities", capabilities=_IGNORE_SHARED)
        monitor.pass_fd("kmt-state", file.fileno())
        monitor("migrate", uri="fd:kmt-state")
        while True:
            said = monitor("query-migrate")
            if said.get("status") == "completed":
                break
            if said.get("status") in ("failed", "cancelled") or deadline.passed():
                raise MonitorError(f"the machine's state could not be saved: {said.get('error-desc', said)}")
            time.sleep(_POLL)
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)


def thaw(monitor: Monitor, state: bytes, deadline: Deadline) -> None:
    """Have a machine that waits for it (``-incoming defer``) take that state; returns when its processors run."""
    with _unnamed() as file, _until(monitor, deadline):
        file.write(state)
        file.seek(0)
        monitor("migrate-set-capabilities", capabilities=_IGNORE_SHARED)
        monitor.pass_fd("kmt-state", file.fileno())
        monitor("migrate-incoming", uri="fd:kmt-state")
        monitor.wait_for("RESUME")


@contextmanager
def _until(monitor: Monitor, deadline: Deadline) -> Iterator[None]:
    """Answers may take until then; afterwards as long as before."""
    before, monitor.deadline = monitor.deadline, deadline
    try:
        yield
    finally:
        monitor.deadline = before


@contextmanager
def _unnamed() -> Iterator[IO[bytes]]:
    with os.fdopen(os.memfd_create("kmt-state"), "w+b", buffering=0) as file:
        yield file
