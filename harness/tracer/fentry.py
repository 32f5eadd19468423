"""The fentry tracer: loads its programs into a kernel and reads what they found.

Laws: outside Fargate nothing is touched at all (no file, no BTF, no kernel), the answer is NotSupportedError; a load
that fails leaves nothing behind; what ``closed`` returned plus ``counters().events_lost`` is every close that the
programs saw, once the buffer is empty. Which programs: ``probes.py``. What they see and miss: the top of
``bpf/tracer/tracer-fentry.bpf.c``.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO

from harness.ebpf import events
from harness.ebpf.core import CoreOptions, load_core_asset
from harness.ebpf.settings import BpfSettings
from harness.errors import HarnessError, NotSupportedError, SettingsError
from harness.kernel_api import EventBuffer, Feature, KernelApi, LoadedObject, LoadOptions, MapEdit, MapType
from harness.tracer import probes
from harness.tracer.fargate import on_fargate

ASSET = "tracer-fentry.o"
_CLOSE_EVENTS = "conn_close_event"
_COUNTERS_KEY = bytes(4)
_MOST_CONNECTIONS = 1 << 24


@dataclass(frozen=True)
class TracerSettings:
    """What to trace. ``close_event_pages`` (a power of two) is the room for close events, for each CPU."""

    collect_tcp_v4: bool = True
    max_tracked_connections: int = 65536
    close_event_pages: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.collect_tcp_v4, bool):
            raise SettingsError(f"collect_tcp_v4 must be True or False, not {self.collect_tcp_v4!r}")
        for name, most in (("max_tracked_connections", _MOST_CONNECTIONS), ("close_event_pages", 1 << 16)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise SettingsError(f"{name} must be a whole number from 1 to {most}, not {value!r}")
        if self.close_event_pages & (self.close_event_pages - 1):
            raise SettingsError(f"close_event_pages must be a power of two, not {self.close_event_pages}")


class Tracer:
    """A tracer that runs. Use it as a context manager, or ``close`` it."""

    kind = "fentry"

    def __init__(
        self, loaded: LoadedObject, buffer: EventBuffer, chosen: tuple[probes.Probe, ...], ringbuf: bool
    ) -> None:
        self._loaded = loaded
        self._buffer = buffer
        self.probes = chosen
        self.ringbuf = ringbuf

    def connections(self) -> dict[events.ConnTuple, events.ConnStats]:
        """The connections that are open now, as each process sees its end."""
        live = self._loaded.maps["conn_stats"].items()
        return {events.conn_tuple(key): events.conn_stats(value) for key, value in live}

    def closed(self, seconds: float = 0.1) -> list[events.Conn]:
        """Connections closed since the last call; waits up to ``seconds`` for the first."""
        return [conn for record in self._buffer.read(seconds) for conn in events.closed(record)]

    def counters(self) -> events.TracerCounters:
        """What the programs counted, losses among it."""
        value = self._loaded.maps["telemetry"].get(_COUNTERS_KEY)
        if value is None:
            raise HarnessError("the tracer's map telemetry has no entry 0")
        return events.tracer_counters(value)

    def close(self) -> None:
        """Take the programs out of the kernel; a second time does nothing."""
        self._loaded.close()

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __str__(self) -> str:
        return f"{self.kind} {len(self.probes)} probes, {'ring' if self.ringbuf else 'perf'} buffer"


def load_tracer(
    kernel: KernelApi,
    settings: BpfSettings,
    tracer: TracerSettings | None = None,
    *,
    fargate: Callable[[], bool] = lambda: on_fargate(os.environ),
) -> Tracer:
    """Load and attach the tracer.

    Raises NotSupportedError outside Fargate (then the kprobe tracer may be tried; after no other error may it), and
    BtfError, AssetError, SignatureError, VerifierError or BpfError as they come.
    """
    if not fargate():
        raise NotSupportedError("the fentry tracer is for ECS and EKS Fargate only")
    wanted = tracer or TracerSettings()

    def start(asset: BinaryIO, core: CoreOptions) -> Tracer:
        return _start(kernel, settings, wanted, asset.read(), core)

    return load_core_asset(settings, kernel.release, ASSET, start)


def _start(kernel: KernelApi, settings: BpfSettings, tracer: TracerSettings, image: bytes, core: CoreOptions) -> Tracer:
    chosen = probes.choose(kernel.signatures(probes.functions()), tcp_v4=tracer.collect_tcp_v4)
    ringbuf = settings.enable_ringbuffers and kernel.probe(Feature.RINGBUF) is True
    device, inode = _pid_namespace(kernel)
    edits = {"conn_stats": MapEdit(max_entries=tracer.max_tracked_connections)}
    if ringbuf:
        room = ring_size(kernel.cpus, tracer.close_event_pages, resource.getpagesize())
        edits[_CLOSE_EVENTS] = MapEdit(MapType.RINGBUF, key_size=0, value_size=0, max_entries=room)
    options = LoadOptions(
        programs=[probe.program for probe in chosen],
        constants={"systemprobe_device": device, "systemprobe_ino": inode, "ringbuffers_enabled": int(ringbuf)},
        map_edits=edits,
        kernel_btf=core.kernel_btf,
        signatures={probe.program: (probe.function, probe.signature) for probe in chosen},
    )
    loaded = kernel.load(ASSET.removesuffix(".o"), image, options)
    try:
        buffer = loaded.buffer(_CLOSE_EVENTS, tracer.close_event_pages)
        for probe in chosen:
            loaded.attach(probe.program)
    except BaseException:
        loaded.close()
        raise
    return Tracer(loaded, buffer, chosen, ringbuf)


def ring_size(cpus: int, pages: int, page_size: int) -> int:
    """(pure) Bytes of the ring buffer that all CPUs share: so many pages for each, CPUs rounded to a power of two."""
    return int(pages * 2 ** round(math.log2(max(1, cpus))) * page_size)


def _pid_namespace(kernel: KernelApi) -> tuple[int, int]:
    """Device, in the kernel's own encoding (linux/kdev_t.h), and inode of this process's pid namespace."""
    try:
        status = (kernel.proc_root / "self/ns/pid").stat()
    except OSError as error:
        raise HarnessError(f"could not load sysprobe pid: {error}") from None
    return os.major(status.st_dev) << 20 | os.minor(status.st_dev), status.st_ino
