"""What ``/proc`` says of a process: which there are, since when, and whether one is over.

Laws: a process is named by its number and the time it began, for numbers come again; it is over when its last thread
has let go of its root directory, and from then on no file can be seen through its entry; an entry that vanishes
between two reads is a process that is over, never an error.
"""

from __future__ import annotations

import os
from typing import NamedTuple

_GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)


class Status(NamedTuple):
    """A few fields of ``/proc/<pid>/stat``. ``born`` is in clock ticks since the machine started."""

    state: str
    threads: int
    born: int


def parse_status(stat: bytes) -> Status:
    """(pure) From the file's bytes; ValueError if they are none. The name in it may hold anything, brackets too."""
    fields = stat[stat.rindex(b")") + 1 :].split()
    if len(fields) < 20:
        raise ValueError(f"not the stat of a process: {stat[:80]!r}")
    return Status(fields[0].decode("ascii"), int(fields[17]), int(fields[19]))


def status(proc_root: str, pid: int) -> Status | None:
    """How process ``pid`` is; None if there is none. OSError if that cannot be told: no descriptor left."""
    try:
        return parse_status(_read(f"{proc_root}/{pid}/stat"))
    except (*_GONE, ValueError):
        return None


def is_over(proc_root: str, pid: int, born: int = 0) -> bool:
    """Has process ``pid`` (of that time, if given) come to its end? A zombie has."""
    try:
        now = parse_status(_read(f"{proc_root}/{pid}/stat"))
    except _GONE:
        return True
    except (OSError, ValueError):
        return False
    if born and now.born != born:
        return True
    if now.threads > 1:
        return False  # the main thread may be a zombie while others run
    if now.state in "ZX":
        return True
    try:
        os.readlink(f"{proc_root}/{pid}/root")  # noqa: PTH115 (this is a hot path)
    except _GONE:
        return True
    except OSError:
        pass
    return False


def pids(proc_root: str) -> list[int]:
    """The processes there are now. Raises the OSError of a proc root that cannot be listed."""
    return [int(name) for name in os.listdir(proc_root) if name.isdecimal()]  # noqa: PTH208


def own_pid(proc_root: str) -> int:
    """This process's number in that proc root (which may be of another pid namespace); 0 if it cannot be told."""
    try:
        return int(os.readlink(f"{proc_root}/self"))  # noqa: PTH115
    except (OSError, ValueError):
        return 0


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)
