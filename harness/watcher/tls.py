"""TLS libraries hooked: plaintext bytes of each process, counted by uprobes in OpenSSL and GnuTLS.

An example of what rules are for. ``rules()`` goes to the watcher; its callbacks attach to a library when its first
process comes and take off when its last one goes. Laws: a library is hooked at the very file that was registered,
whatever its path names by then; an activation that fails leaves nothing attached; what was counted stays until the
process is forgotten. What is seen and missed: the top of ``bpf/tls/tls.bpf.c``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from threading import Lock
from types import TracebackType
from typing import BinaryIO, NamedTuple

from harness.ebpf.core import CoreOptions, load_core_asset
from harness.ebpf.fallback import Outcome, Stage, climb
from harness.ebpf.prebuilt import read_prebuilt
from harness.ebpf.runtime import compile_asset
from harness.ebpf.settings import BpfSettings
from harness.errors import FormatError, HarnessError
from harness.kernel_api import KernelApi, LoadedObject, LoadOptions, MapEdit
from harness.watcher.identity import FilePath, PathIdentifier
from harness.watcher.rules import Rule
from harness.watcher.symbols import function_offsets

MODULE = "tls"

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

_TRAFFIC = struct.Struct("<2Q")
_COUNTERS = struct.Struct("<3Q")


class Traffic(NamedTuple):
    """Plaintext of a process, in bytes."""

    received: int
    sent: int


class TlsCounters(NamedTuple):
    """Calls that moved data, bytes of processes that found no room, calls whose number could not be read."""

    calls: int
    lost: int
    unread: int


class TlsProbes:
    """The programs in the kernel and the libraries they are attached to. A context manager, or ``close`` it.

    ``processes`` is how many can be counted at a time: bytes of others are only counted as lost.
    """

    def __init__(self, kernel: KernelApi, settings: BpfSettings, *, processes: int = 16384) -> None:
        outcome = _climb(kernel, settings, {"tls_traffic": MapEdit(max_entries=processes)})
        if outcome.error is not None:
            raise outcome.error
        assert outcome.value is not None
        assert outcome.winner is not None
        self._loaded, self.stage, self.attempts = outcome.value, outcome.winner, outcome.attempts
        self._lock = Lock()
        self._attached: dict[PathIdentifier, ExitStack] = {}

    def rules(self) -> tuple[Rule, ...]:
        """For the watcher: OpenSSL's and GnuTLS's libraries."""
        return tuple(Rule.of(pattern, self.activate, self.deactivate) for pattern in (r"libssl\.so", r"libgnutls\.so"))

    def activate(self, file: FilePath) -> None:
        """Attach to a library's functions. OSError as it comes; FormatError if there is none to attach to."""
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
        """Take the programs off and out; a second time does nothing."""
        with self._lock:
            self._attached.clear()
        self._loaded.close()

    def __enter__(self) -> TlsProbes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _climb(kernel: KernelApi, settings: BpfSettings, edits: Mapping[str, MapEdit]) -> Outcome[LoadedObject]:
    def core(asset: BinaryIO, options: CoreOptions) -> LoadedObject:
        return kernel.load(MODULE, asset.read(), LoadOptions(map_edits=edits, kernel_btf=options.kernel_btf))

    def runtime() -> LoadedObject:
        made = compile_asset(settings.bpf_dir, MODULE, release=kernel.release, output_dir=settings.runtime_output_dir)
        return kernel.load(MODULE, made.image, LoadOptions(map_edits=edits))

    def prebuilt() -> LoadedObject:
        return kernel.load(MODULE, read_prebuilt(settings.bpf_dir, MODULE), LoadOptions(map_edits=edits))

    ways = {
        Stage.CORE: lambda: load_core_asset(settings, kernel.release, f"{MODULE}.o", core),
        Stage.RUNTIME: runtime,
        Stage.PREBUILT: prebuilt,
    }
    return climb(settings.switches, ways)
