"""A tracer that runs, whichever kind of programs it has: what they found, what they lost, what they listen to.

Laws: what ``closed`` returned plus ``counters().events_lost`` is every connection whose end the programs saw, each
once; bytes of live and of closed connections plus those that ``counters`` calls lost are all that went through while
the programs were in, of TCP those too that no program saw (at its end); what is switched off is forgotten, and what is
switched on again begins anew. What the programs see and miss: the top of ``bpf/tracer/tracer-fentry.bpf.c``.
"""

from __future__ import annotations

import math
import os
import resource
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType

from harness.ebpf import error_telemetry, events
from harness.ebpf.error_telemetry import ErrorTelemetry
from harness.ebpf.events import Batch, Conn
from harness.errors import HarnessError
from harness.kernel_api import EventBuffer, KernelApi, LoadedObject, MapEdit, MapType
from harness.tracer.batches import Batches
from harness.tracer.bindings import bound_ports
from harness.tracer.settings import TracerSettings

CLOSE_EVENTS = "conn_close_event"
_ZERO = bytes(4)
_ONE = struct.pack("<I", 1)
_METADATA = struct.Struct("<44xI")
_EMPTY_BATCH = bytes(events.BATCH_SIZE)
_TRIES = 16
Flow = tuple[int, int, int]
"""pid, netns and port of a datagram socket that was closed."""


@dataclass(frozen=True)
class Way:
    """How a kind of tracer listens: ``programs`` says which are to be attached for which settings, ``missed`` how often
    one of them could not run, ``close`` takes all off (given False: they do nothing any more, and the kernel takes them
    off later), and away what is in the kernel besides the object."""

    kind: str
    programs: Callable[[TracerSettings], tuple[str, ...]]
    attach: Callable[[str], None]
    detach: Callable[[str], None]
    missed: Callable[[], int]
    close: Callable[[bool], None]


class Tracer:
    """Use it as a context manager, or ``close`` it. Its methods may be called from several threads."""

    def __init__(
        self,
        kernel: KernelApi,
        loaded: LoadedObject,
        buffer: EventBuffer,
        way: Way,
        settings: TracerSettings,
        *,
        ringbuf: bool,
        errors: ErrorTelemetry,
    ) -> None:
        self.kind = way.kind
        self.errors = errors
        """What its maps and helpers refused."""
        self.ringbuf = ringbuf
        self.settings = settings
        self.programs: tuple[str, ...] = ()
        self._kernel, self._loaded, self._buffer, self._way = kernel, loaded, buffer, way
        self._maps = loaded.maps
        self._batches = Batches()
        self._lock = threading.RLock()
        self._prepare()
        self._switch(settings)

    def connections(self) -> dict[events.ConnTuple, events.ConnStats]:
        """The connections and flows that are open now, with the process that each belongs to."""
        return {events.conn_tuple(key): events.conn_stats(value) for key, value in self._maps["conn_stats"].items()}

    def tcp_stats(self) -> dict[events.ConnTuple, events.TcpStats]:
        """What TCP has measured on the open connections."""
        return {events.conn_tuple(key): events.tcp_stats(value) for key, value in self._maps["tcp_stats"].items()}

    def retransmits(self) -> dict[events.ConnTuple, int]:
        """Segments sent again by the open connections that did; in the keys ``pid`` is 0."""
        live = self._maps["tcp_retransmits"].items()
        return {events.conn_tuple(key): int.from_bytes(value, "little") for key, value in live}

    def closed(self, seconds: float = 0.1) -> list[Conn]:
        """Connections closed since the last call; waits up to ``seconds`` if there are none."""
        with self._lock:
            conns = self._batches.merge(self._standing(), self._buffer.read(0))
            if not conns and seconds > 0:
                before = self._standing()
                conns = self._batches.merge(before, self._buffer.read(seconds))
                conns += self._batches.merge(self._standing(), self._buffer.read(0))
            return self._with_flows(conns)

    def counters(self) -> events.TracerCounters:
        """What the programs counted, losses among it."""
        with self._lock:
            value = self._maps["telemetry"].get(_ZERO)
            if value is None:
                raise HarnessError("the tracer's map telemetry has no entry 0")
            counted = events.tracer_counters(value)
            return counted._replace(events_lost=counted.events_lost - self._batches.recovered)

    def collect(
        self,
        *,
        tcp_v4: bool | None = None,
        tcp_v6: bool | None = None,
        udp_v4: bool | None = None,
        udp_v6: bool | None = None,
    ) -> None:
        """Switch families on or off while the tracer runs; None leaves one as it is."""
        asked = {"tcp_v4": tcp_v4, "tcp_v6": tcp_v6, "udp_v4": udp_v4, "udp_v6": udp_v6}
        with self._lock:
            wanted = replace(self.settings, **{f"collect_{k}": v for k, v in asked.items() if v is not None})
            self._switch(wanted)
            self._forget(~wanted.families)

    def missed(self) -> int:
        """How often a program should have run and the kernel could not run it. Of UDP these are events that nobody saw;
        bytes of TCP are made up for at the connection's end."""
        with self._lock:
            return self._way.missed()

    def stop(self, *, wait: bool = True) -> None:
        """Take the programs off. What they have seen and counted can be read until the close; nothing is added.

        Some kernels take seconds for it. Without ``wait`` they do it when this has returned, be this process there or
        not, and until it is done they call programs that do nothing any more.
        """
        with self._lock:
            self.programs = ()
            self._way.close(wait)

    def close(self) -> None:
        """Take the programs out of the kernel; a second time does nothing."""
        with self._lock, ExitStack() as stack:
            stack.callback(self._loaded.close)
            stack.callback(self.errors.finish)
            self.stop()

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __str__(self) -> str:
        return f"{self.kind} {len(self.programs)} probes, {'ring' if self.ringbuf else 'perf'} buffer"

    def _prepare(self) -> None:
        """Entries that programs look for and cannot make."""
        for cpu in range(self._kernel.cpus):
            key = struct.pack("<I", cpu)
            self._maps["conn_close_batch"].put(key, _EMPTY_BATCH[:-8] + key + _ZERO)

    def _switch(self, wanted: TracerSettings) -> None:
        """Attach and detach until the programs are those of ``wanted``: new families are begun when all are in."""
        had = self.settings if self.programs else replace(wanted, **dict.fromkeys(_COLLECT, False))
        now = self._way.programs(wanted)
        for program in set(self.programs) - set(now):
            self._way.detach(program)
        for program in now:
            self._way.attach(program)
        self._seed("tcp", "port_bindings", begins=wanted.tcp and not had.tcp)
        self._seed("udp", "udp_port_bindings", begins=wanted.udp and not had.udp)
        self._maps["collected"].put(_ZERO, struct.pack("<I", wanted.families))
        self.programs, self.settings = now, wanted

    def _seed(self, protocol: str, bindings: str, *, begins: bool) -> None:
        """Ports that are waited at already; a binding that a program has counted meanwhile stays as it is."""
        if not begins:
            return
        netns = (self._kernel.proc_root / "self/ns/net").stat().st_ino
        known = self._maps[bindings]
        for port in sorted(bound_ports(self._kernel.proc_root, protocol)):
            key = events.port_binding(netns, port)
            if known.get(key) is None:
                known.put(key, _ONE)

    def _forget(self, families: int) -> None:
        """Take out what is known of these families (bits as in ``TracerSettings.families``)."""
        for name in ("tracked_sockets", "conn_stats", "tcp_stats", "tcp_retransmits"):
            for key, value in list(self._maps[name].items()):
                (metadata,) = _METADATA.unpack_from(value if name == "tracked_sockets" else key)
                if families >> _family(metadata) & 1:
                    self._maps[name].delete(key)
        if families & 0b0011 == 0b0011:
            self._empty(("port_bindings", "tcp_listeners", "tcp_ongoing_connect_pid"))
        if families & 0b1100 == 0b1100:
            self._empty(("udp_port_bindings", "udp_send_skb_args"))

    def _empty(self, names: Iterable[str]) -> None:
        for name in names:
            for key, _ in list(self._maps[name].items()):
                self._maps[name].delete(key)

    def _standing(self) -> list[Batch]:
        return [self._batch(struct.pack("<I", cpu)) for cpu in range(self._kernel.cpus)]

    def _batch(self, cpu: bytes) -> Batch:
        """A CPU's batch as far as it is whole.

        The kernel copies it while programs write. What the length counted before the copy began is whole in it, if
        the batch was not sent in between; its number, read after the copy, says so.
        """
        for _ in range(_TRIES):
            first, copy, last = (events.batch(self._maps["conn_close_batch"].get(cpu) or _EMPTY_BATCH) for _ in "123")
            if first.id == last.id and len(last.conns) >= len(first.conns):
                return Batch(copy.conns[: len(first.conns)], first.id, first.cpu)
        return Batch([], first.id, first.cpu)  # it goes so fast that events bring it

    def _with_flows(self, conns: list[Conn]) -> list[Conn]:
        """For a datagram socket that was closed with several flows: these, out of ``conn_stats``."""
        ended = {_flow(conn) for conn in conns if _is_socket(conn)}
        if not ended:
            return conns
        found = [conn for conn in conns if not _is_socket(conn)]
        for key, value in list(self._maps["conn_stats"].items()):
            flow = events.conn_tuple(key)
            if not flow.metadata & events.TCP and _flow(flow) in ended and self._maps["conn_stats"].delete(key):
                stats = events.conn_stats(value)
                stats = stats._replace(duration=stats.timestamp - stats.duration)
                found.append(Conn(*flow, *stats, 0, 0, 0, 0))
        return found


_COLLECT = ("collect_tcp_v4", "collect_tcp_v6", "collect_udp_v4", "collect_udp_v6")


def _flow(conn: Conn | events.ConnTuple) -> Flow:
    return conn.pid, conn.netns, conn.sport


def _is_socket(conn: Conn) -> bool:
    """Whether it stands for a datagram socket with several flows: nobody is at its other end."""
    return not (conn.metadata & events.TCP or conn.dport or conn.daddr_h or conn.daddr_l)


def _family(metadata: int) -> int:
    """The place of its bit in ``TracerSettings.families``."""
    return 2 * (not metadata & events.TCP) + bool(metadata & events.V6)


def ring_size(cpus: int, pages: int, page_size: int) -> int:
    """(pure) Bytes of the ring buffer that all CPUs share: so many pages for each, CPUs rounded to a power of two."""
    return int(pages * 2 ** round(math.log2(max(1, cpus))) * page_size)


def map_edits(kernel: KernelApi, settings: TracerSettings, *, ringbuf: bool) -> dict[str, MapEdit]:
    """The sizes of all maps, and the ring buffer in the place of the perf buffer."""
    edits = settings.map_edits()
    if ringbuf:
        room = ring_size(kernel.cpus, settings.close_event_pages, resource.getpagesize())
        edits[CLOSE_EVENTS] = MapEdit(MapType.RINGBUF, key_size=0, value_size=0, max_entries=room)
    return edits


def constants(kernel: KernelApi, counted: Sequence[str], *, ringbuf: bool) -> dict[str, int]:
    """What the programs are told before they are loaded; ``counted``: the maps whose errors they count."""
    device, inode = pid_namespace(kernel)
    return {
        "systemprobe_device": device,
        "systemprobe_ino": inode,
        "ringbuffers_enabled": int(ringbuf),
        **error_telemetry.constants(counted),
    }


def pid_namespace(kernel: KernelApi) -> tuple[int, int]:
    """Device, in the kernel's own encoding (linux/kdev_t.h), and inode of this process's pid namespace."""
    try:
        status = (kernel.proc_root / "self/ns/pid").stat()
    except OSError as error:
        raise HarnessError(f"could not load sysprobe pid: {error}") from None
    return os.major(status.st_dev) << 20 | os.minor(status.st_dev), status.st_ino
