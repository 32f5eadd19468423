"""Kprobe events of tracefs: probes with as many return instances as they need, and an exact count of what they missed.

libbpf's own way (the kprobe PMU) cannot say how many calls of a function a return probe may wait for the ends of: one
on kernels before 5.16 with one CPU, so that a single sleeping ``tcp_recvmsg`` hides all others. An event of tracefs
can, and ``kprobe_profile`` tells how often it fired and how often it could not.

Laws: an event is named after this process, and gone when ``remove`` returns; events of processes that died without are
removed by the next one that comes. One program listens to an event. Format: Documentation/trace/kprobetrace.rst.
"""

from __future__ import annotations

import ctypes as c
import itertools
import os
import platform
import re
import secrets
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.errors import BpfError, NotSupportedError

TRACING = Path("/sys/kernel/tracing")
_GROUP = "harness"
_PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
_PERF_TYPE_TRACEPOINT = 2
_PERF_FLAG_FD_CLOEXEC = 8
_NAME = re.compile(rf"(?:[pr]\d*:)?({_GROUP}_(\d+)\w*)/(\w+)")
_TOKEN = secrets.token_hex(4)
"""Two processes in different pid namespaces may have the same number, and share tracefs."""
_numbers = itertools.count()


class _PerfAttributes(c.Structure):
    """``struct perf_event_attr`` (linux/perf_event.h), as much as its first version had."""

    _fields_ = (
        ("type", c.c_uint32),
        ("size", c.c_uint32),
        ("config", c.c_uint64),
        ("sample_period", c.c_uint64),
        ("sample_type", c.c_uint64),
        ("read_format", c.c_uint64),
        ("flags", c.c_uint64),
        ("wakeup_events", c.c_uint32),
        ("bp_type", c.c_uint32),
        ("config1", c.c_uint64),
    )


@dataclass(frozen=True)
class KprobeEvent:
    """An event at the begin of a kernel function, or at its end (``max_active`` calls of it at once)."""

    tracing: Path
    group: str
    name: str

    @classmethod
    def make(cls, function: str, *, at_end: bool, max_active: int, tracing: Path = TRACING) -> KprobeEvent:
        """NotSupportedError without tracefs; BpfError where the kernel has no such function or may not probe it."""
        if not (tracing / "kprobe_events").exists():
            raise NotSupportedError(f"{tracing} has no kprobe_events", hint="mount tracefs there; it takes root")
        event = cls(
            tracing, f"{_GROUP}_{os.getpid()}_{_TOKEN}", f"{'r' if at_end else 'p'}_{function}_{next(_numbers)}"
        )
        kind = f"r{max_active}" if at_end else "p"
        event._write(f"{kind}:{event.group}/{event.name} {function}", f"probing {function}")
        return event

    def open(self) -> int:
        """A perf event's descriptor, to attach a program to; the caller closes it."""
        number = int(_read(self.tracing / "events" / self.group / self.name / "id"))
        attributes = _PerfAttributes(_PERF_TYPE_TRACEPOINT, c.sizeof(_PerfAttributes), number, 1)
        call = _PERF_EVENT_OPEN.get(platform.machine())
        if call is None:
            raise NotSupportedError(f"the number of perf_event_open is not known for {platform.machine()}")
        # A program on CPU 0's event hears of all CPUs: the event is looked at before its CPU is.
        libc = c.CDLL(None, use_errno=True)
        descriptor = int(libc.syscall(call, c.byref(attributes), -1, 0, -1, _PERF_FLAG_FD_CLOEXEC))
        if descriptor < 0:
            raise BpfError(f"perf_event_open of {self.group}/{self.name}", c.get_errno())
        return descriptor

    def missed(self) -> int:
        """How often it could not fire: no free return instance, or hit inside another probe."""
        return all_missed([self], self.tracing)

    def remove(self) -> None:
        """Take it away, after its descriptors are closed; a second time does nothing."""
        if (self.tracing / "events" / self.group / self.name).exists():
            self._write(f"-:{self.group}/{self.name}", f"removing the probe {self.name}")

    def _write(self, line: str, what: str) -> None:
        try:
            # Not open("a"): Python goes to the end of the file by itself, and this one has none (EINVAL).
            table = os.open(self.tracing / "kprobe_events", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                os.write(table, f"{line}\n".encode())
            finally:
                os.close(table)
        except OSError as error:
            raise BpfError(what, error.errno or 0) from None


def missed(profile: str, names: Collection[str]) -> int:
    """(pure) The sum of the third column of ``kprobe_profile`` for those events."""
    rows = (line.split() for line in profile.splitlines())
    return sum(int(row[2]) for row in rows if len(row) == 3 and row[0] in names and row[2].isdigit())


def all_missed(events: Collection[KprobeEvent], tracing: Path = TRACING) -> int:
    """How often events of that tracefs could not fire, in one reading of the table (which the kernel makes anew)."""
    return missed(_read(tracing / "kprobe_profile"), {event.name for event in events}) if events else 0


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise BpfError(f"reading {file}", error.errno or 0) from None


def sweep(tracing: Path = TRACING) -> None:
    """Remove the events of processes that are gone; one that is in use (EBUSY) has its process in another namespace."""
    try:
        lines = (tracing / "kprobe_events").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        found = _NAME.match(line)
        if found and not Path(f"/proc/{found[2]}").exists():
            with suppress(BpfError):
                KprobeEvent(tracing, found[1], found[3]).remove()
