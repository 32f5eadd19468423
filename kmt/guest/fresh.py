"""What a guest says of itself, and how one that came out of a snapshot becomes one of its own.

Laws: two guests of one snapshot share no clock reading, no name, no id and no random bytes after ``resume``: the
kernel's generator is fed and reseeded first, then everything in this process that was seeded from it before.
Nobody can reseed what a project keeps for itself (a ``random.Random()`` made on import, OpenSSL inside an
extension); Python's hash seed is the snapshot's.
"""

from __future__ import annotations

import base64
import fcntl
import os
import platform
import random
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from . import bytecode
from .wire import VERSION

_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
MACHINE_ID = "/etc/machine-id"
"""Which of the machine's files holds its id."""


def hello() -> dict[str, Any]:
    """What a guest says when it is up. ``room``: the directory that stands for the root of all of the host's paths."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "version": VERSION,
        "release": os.uname().release,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "memory_mib": memory >> 20,
        "bytecode": bytecode.tails(),
        "room": os.environ.get("KMT_ROOM", ""),
    }


def resume(said: dict[str, Any]) -> None:
    """Take clock, entropy and names from the host's RESUME: ``now, entropy, hostname, machine_id``."""
    set_clock(said["now"])
    add_entropy(base64.b64decode(said["entropy"]))
    socket.sethostname(said["hostname"])
    set_machine_id(said["machine_id"])
    reseed()


def set_machine_id(digits: str) -> None:
    """Set it to these 32 hexadecimal digits, in place: they are as many as those before."""
    fd = os.open(MACHINE_ID, os.O_WRONLY | os.O_CREAT, 0o444)
    try:
        os.write(fd, f"{digits}\n".encode())
    finally:
        os.close(fd)


def set_clock(now: float) -> None:
    """Set the wall clock to ``now``, seconds since the epoch. The monotonic clock goes on as it was."""
    time.clock_settime(time.CLOCK_REALTIME, now)


def add_entropy(data: bytes) -> None:
    """Feed the kernel's generator, credit all of it, and make every CPU draw a new key (random(4))."""
    fd = os.open("/dev/urandom", os.O_WRONLY)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", len(data) * 8, len(data)) + data)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


def reseed() -> None:
    """Give this process's generators new seeds from the kernel and drop names that it remembers.

    Only what is loaded; no module is imported.
    """
    platform._uname_cache = None  # type: ignore[attr-defined]
    random.seed()
    loaded: Callable[[str], Any] = sys.modules.get
    if module := loaded("uuid"):
        module._node = module._last_timestamp = None
    if module := loaded("tempfile"):
        module._name_sequence = None
    if module := loaded("hypothesis.core"):
        module.threadlocal._hypothesis_global_random = None
    if module := loaded("ssl"):
        module.RAND_add(os.urandom(48), 48.0)
    if module := loaded("numpy.random"):
        module.seed()
