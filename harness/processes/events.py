"""(pure) Events of processes: the messages of the kernel's process connector, and the records of our own programs.

Laws: bytes that are no such message raise FormatError; messages of other kinds (forks, names, acknowledgements) give
None; an exit is told once for a process, by its main thread. Layouts: linux/netlink.h, linux/connector.h,
linux/cn_proc.h and ``bpf/processes/processes.h``, in the machine's byte order.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import NamedTuple

from harness.errors import FormatError


class Kind(Enum):
    """What a process did; the values are those of ``bpf/processes/processes.h``."""

    EXEC = 1
    EXIT = 2


class ProcessEvent(NamedTuple):
    """``pid`` is the process's number in the first pid namespace. At an EXIT, other threads may still run."""

    kind: Kind
    pid: int


_HEADERS = struct.Struct("=IHHII IIIIHH")
"""struct nlmsghdr and struct cn_msg: 36 bytes."""
_EVENT = struct.Struct("=IIQ II")
"""The head of struct proc_event, and pid and tgid that its exec and exit begin with."""
_ACKNOWLEDGED = struct.Struct("=IIQ I")
_RECORD = struct.Struct("=II")
_IDX_PROC, _VAL_PROC = 1, 1
_DONE = 3
"""NLMSG_DONE: the type of a connector's messages."""
_NONE, _EXEC, _EXIT = 0, 2, 0x80000000
LISTEN, IGNORE = 1, 2
"""PROC_CN_MCAST_LISTEN and PROC_CN_MCAST_IGNORE."""


def request(operation: int, pid: int, number: int) -> bytes:
    """A message to the connector; its answer carries ``number``."""
    size = _HEADERS.size + 4
    return _HEADERS.pack(size, _DONE, 0, 0, pid, _IDX_PROC, _VAL_PROC, 0, number, 4, 0) + struct.pack("=I", operation)


def acknowledged(message: bytes, number: int) -> int | None:
    """The errno (0: done) that answers request ``number``; None for any other message.

    The answer's ``ack`` is the request's and one; its ``seq`` is the kernel's own count (drivers/connector/cn_proc.c).
    """
    headers, what = _headers(message)
    if what != _NONE or headers[8] != number + 1 or len(message) < _HEADERS.size + _ACKNOWLEDGED.size:
        return None
    return int(_ACKNOWLEDGED.unpack_from(message, _HEADERS.size)[3])


def connector_event(message: bytes) -> ProcessEvent | None:
    """The exec or exit of a process in a connector's message; None for anything else that it may say."""
    _, what = _headers(message)
    if what not in (_EXEC, _EXIT):
        return None
    if len(message) < _HEADERS.size + _EVENT.size:
        raise FormatError(f"a process event of {len(message)} bytes is cut off")
    pid, tgid = _EVENT.unpack_from(message, _HEADERS.size)[3:]
    if what == _EXEC:
        return ProcessEvent(Kind.EXEC, tgid)
    return ProcessEvent(Kind.EXIT, tgid) if pid == tgid else None


def record(data: bytes) -> ProcessEvent:
    """A record of our own programs (8 bytes, and what perf pads them with)."""
    if len(data) not in (_RECORD.size, _RECORD.size + 4):
        raise FormatError(f"a process record has {_RECORD.size} bytes, not {len(data)}")
    pid, kind = _RECORD.unpack_from(data)
    try:
        return ProcessEvent(Kind(kind), pid)
    except ValueError:
        raise FormatError(f"a process record of kind {kind}") from None


def _headers(message: bytes) -> tuple[tuple[int, ...], int]:
    if len(message) < _HEADERS.size + 4:
        raise FormatError(f"a message of {len(message)} bytes is no process event")
    headers = _HEADERS.unpack_from(message)
    if (headers[1], headers[5], headers[6]) != (_DONE, _IDX_PROC, _VAL_PROC):
        raise FormatError(f"a message of type {headers[1]} for {headers[5]}.{headers[6]} is no process event")
    return headers, struct.unpack_from("=I", message, _HEADERS.size)[0]
