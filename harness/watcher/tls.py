"""TLS libraries hooked: plaintext bytes of each process, counted by uprobes in OpenSSL and GnuTLS.

An example of what rules are for. ``rules()`` goes to the watcher; its callbacks attach to a library when its first
process comes and take off when its last one goes. The metrics ``usm.tls.*`` are the totals of all processes, those of
ended ones too, read from the kernel whenever metrics are. Laws: a library is hooked at the very file that was
registered, whatever its path names by then; an activation that fails leaves nothing attached; what was counted stays
until the process is forgotten; files that are only handled in passing, while an image is built or unpacked, are not
hooked, and not blocked either. What is seen and missed: the top of ``bpf/tls/tls.bpf.c``.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import NamedTuple

from harness.ebpf import error_telemetry
from harness.ebpf.error_telemetry import ErrorTelemetry
from harness.ebpf.loading import load_module
from harness.ebpf.settings import BpfSettings
from harness.errors import FormatError, HarnessError
from harness.kernel_api import KernelApi, LoadedObject, LoadOptions, MapEdit
from harness.telemetry import DEFAULT, Registry
from harness.telemetry.metrics import PROMETHEUS, MetricGroup
from harness.watcher.identity import FilePath, PathIdentifier
from harness.watcher.rules import Rule
from harness.watcher.symbols import function_offsets

MODULE = "tls"
CALLS = 8192
"""Calls that may be under way at once, at least."""

FUNCTIONS = {
    "SSL_read": ("received_int",),
    "SSL_write": ("sent_int",),
    "SSL_read_ex": ("enter_pointer_4", "received_pointer"),
    "SSL_write_ex": ("enter_pointer_4", "sent_pointer"),
    "SSL_write_ex2": ("enter_pointer_5", "sent_pointer"),
    "gnutls_record_recv": ("received_long",),
    "gnutls_record_send": ("sent_long",),
}
"""What is hooked, where a library exports it, with which programs."""

_UNPACKED = re.compile(r"/tmpmounts/containerd-mount\d+/")
"""Where containerd mounts an image for a moment."""
_BUILDER = b"buildkitd\n"

_TRAFFIC = struct.Struct("<2Q")
_COUNTERS = struct.Struct("<5Q")
_log = logging.getLogger(__name__)


class Traffic(NamedTuple):
    """Plaintext of a process, in bytes."""

    received: int
    sent: int


class TlsCounters(NamedTuple):
    """Calls that moved data and their bytes, bytes of processes that found no room, calls whose number is unknown."""

    calls: int
    received: int
    sent: int
    lost: int
    unread: int


class TlsProbes:
    """The programs in the kernel and the libraries they are attached to. A context manager, or ``close`` it.

    ``processes`` is how many can be counted at a time: bytes of others are only counted as lost.
    """

    def __init__(
        self, kernel: KernelApi, settings: BpfSettings, *, processes: int = 16384, metrics: Registry = DEFAULT
    ) -> None:
        edits = {"tls_traffic": MapEdit(max_entries=processes), "tls_calls": MapEdit.lru(kernel.cpus, CALLS)}

        def start(image: bytes, options: LoadOptions) -> tuple[LoadedObject, ErrorTelemetry]:
            counted = error_telemetry.counted(image)
            wanted = replace(options, map_edits=edits, constants=error_telemetry.constants(counted))
            loaded = kernel.load(MODULE, image, wanted)
            try:
                return loaded, ErrorTelemetry(MODULE, loaded.maps, counted)
            except BaseException:
                loaded.close()
                raise

        won = load_module(kernel, settings, MODULE, start)
        (self._loaded, self.errors), self.stage, self.attempts = won.value, won.stage, won.attempts
        self._proc_root = kernel.proc_root
        self._lock = Lock()
        self._attached: dict[PathIdentifier, ExitStack] = {}
        self._closed = False
        self._totals = _Totals(metrics)
        self._read_no_more = metrics.before_reading(lambda: self._totals.be(self.counters()))

    def rules(self) -> tuple[Rule, ...]:
        """For the watcher: OpenSSL's and GnuTLS's libraries."""
        return tuple(Rule.of(pattern, self.activate, self.deactivate) for pattern in (r"libssl\.so", r"libgnutls\.so"))

    def activate(self, file: FilePath) -> None:
        """Attach to a library's functions. OSError as it comes; FormatError if there is none to attach to."""
        if in_passing(file, self._proc_root):
            raise FileNotFoundError(f"{file.host_path} is only there while an image is built or unpacked")
        with ExitStack() as stack:
            with open(file.host_path, "rb") as opened:  # noqa: PTH123 (a path of another process is text, no more)
                if PathIdentifier.of(os.fstat(opened.fileno())) != file.id:
                    raise FileNotFoundError(f"{file.host_path} is another file by now")
                try:
                    found = function_offsets(opened, FUNCTIONS)
                except FormatError as error:
                    raise FormatError(f"{file.host_path}: {error.message}") from None
                if not found:
                    raise FormatError(f"{file.host_path} exports none of {', '.join(FUNCTIONS)}")
                itself = f"/proc/self/fd/{opened.fileno()}"
                for name, offset in found.items():
                    for program in FUNCTIONS[name]:
                        stack.callback(self._loaded.attach_uprobe(program, itself, offset).close)
            with self._lock:
                self._attached.setdefault(file.id, ExitStack()).push(stack.pop_all())

    def deactivate(self, file: FilePath) -> None:
        """Take off what is attached to that file; does nothing where nothing is."""
        with self._lock:
            stack = self._attached.pop(file.id, None)
        if stack is not None:
            stack.close()

    def hooked(self) -> set[PathIdentifier]:
        """The files that are attached to now."""
        with self._lock:
            return set(self._attached)

    def traffic(self) -> dict[int, Traffic]:
        """What each process has moved so far, through all of its libraries."""
        items = self._loaded.maps["tls_traffic"].items()
        return {int.from_bytes(key, "little"): Traffic._make(_TRAFFIC.unpack(value)) for key, value in items}

    def forget(self, pid: int) -> Traffic | None:
        """Give what a process that has ended moved, and make room; None if it moved nothing."""
        traffic, key = self._loaded.maps["tls_traffic"], pid.to_bytes(4, "little")
        value = traffic.get(key)
        traffic.delete(key)
        return None if value is None else Traffic._make(_TRAFFIC.unpack(value))

    def counters(self) -> TlsCounters:
        """What the programs counted, losses among it."""
        value = self._loaded.maps["counters"].get(bytes(4))
        if value is None:
            raise HarnessError("the map counters of the TLS programs has no entry 0")
        return TlsCounters._make(_COUNTERS.unpack(value))

    def close(self) -> None:
        """Take the programs off, read what they counted a last time, take them out; a second time does nothing."""
        self._read_no_more()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            stacks = list(self._attached.values())
            self._attached.clear()
        try:
            for stack in stacks:
                stack.close()
            self._totals.be(self.counters())
            self.errors.finish()
        except HarnessError as error:
            _log.warning("%s: what was counted last cannot be read: %s", MODULE, error)
        finally:
            self._loaded.close()

    def __enter__(self) -> TlsProbes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def in_passing(file: FilePath, proc_root: Path) -> bool:
    """Is it seen only because an image is built (by buildkitd) or unpacked (by containerd)?"""
    if _UNPACKED.search(file.host_path):
        return True
    try:
        return (proc_root / str(file.pid) / "comm").read_bytes() == _BUILDER
    except OSError:
        return False


class _Totals:
    """The metrics: they grow by what the kernel's counters have grown by."""

    def __init__(self, metrics: Registry) -> None:
        group = MetricGroup("usm.tls", PROMETHEUS, registry=metrics)
        self._lock = Lock()
        self._seen = TlsCounters(0, 0, 0, 0, 0)
        self._metrics = (
            group.counter("calls", help="Calls of TLS libraries that moved plaintext."),
            group.counter("received_bytes", help="Plaintext that processes received through hooked TLS libraries."),
            group.counter("sent_bytes", help="Plaintext that processes sent through hooked TLS libraries."),
            group.counter("lost_bytes", help="Plaintext of processes for which there was no room in the kernel."),
            group.counter("unread_calls", help="Calls whose number of bytes could not be read."),
        )

    def be(self, now: TlsCounters) -> None:
        """A reading that another thread's has overtaken changes nothing."""
        with self._lock:
            for metric, value, seen in zip(self._metrics, now, self._seen, strict=True):
                metric.add(value - seen)
            self._seen = TlsCounters._make(map(max, now, self._seen))
