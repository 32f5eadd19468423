"""An object in a simulated kernel: its maps and buffers, what is attached, events that are put in.

Laws: those of ``harness.kernel_api.LoadedObject``, with the errors of the real one (``harness.ebpf.libbpf``): after
``close`` every use is a ClosedError; attached twice a program is attached once. Programs do not run here: ``inject``
does what one would do. Safe for use by several threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from harness.errors import BpfError, ClosedError, SettingsError
from harness.kernel_api import Attachment, EventBuffer, Map
from kmt.simulator.handles import SimulatedBuffer, SimulatedMap
from kmt.simulator.objects import Program
from kmt.simulator.opening import Opened, refused_buffer
from kmt.simulator.rings import PerfRings, Ring
from kmt.simulator.stores import Store
from kmt.simulator.words import unknown

_ENOENT = 2


class _Place:
    """A program at one place of many."""

    def __init__(self, owner: SimulatedObject, program: str) -> None:
        self.program, self._owner = program, owner

    def close(self) -> None:
        """Take it off; a second time does nothing."""
        self._owner.take_off(self)


class Attacher:
    """What a kernel says to attaching: each method gives 0 or an error number."""

    def by_section(self, program: Program, *, again: bool) -> int:
        """Where its section says; ``again``: it was taken off before."""
        raise NotImplementedError

    def uprobe(self, file: str, offset: int) -> int:
        """To a place of a file."""
        raise NotImplementedError

    def kprobes(self, functions: Sequence[str]) -> int:
        """To many functions of the kernel."""
        raise NotImplementedError

    def uprobes(self, file: str, offsets: Sequence[int]) -> int:
        """To many places of a file."""
        raise NotImplementedError


class SimulatedObject:
    """A loaded object, until ``close``."""

    def __init__(
        self, name: str, opened: Opened, stores: Mapping[str, Store], attacher: Attacher, cpus: int,
        closed: Callable[[SimulatedObject], None],
    ) -> None:  # fmt: skip
        self.name = name
        self._opened, self._attacher, self._cpus, self._when_closed = opened, attacher, cpus, closed
        self._programs = {program.name: program for program in opened.programs}
        self._maps = {n: SimulatedMap(n, store) for n, store in stores.items()}
        self.maps: Mapping[str, Map] = self._maps
        self._rings = {n: Ring(d.max_entries) for n, d in opened.maps.items() if d.type == "ringbuf"}
        self._buffers: dict[str, SimulatedBuffer] = {}
        self._attached: dict[str, int | None] = {}
        """The programs that are attached where their section says, or to a perf event: its descriptor."""
        self._once: set[str] = set()
        self._places: set[_Place] = set()
        self._lock = threading.RLock()
        self._open = True

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of those loaded."""
        return tuple(self._programs)

    @property
    def attached(self) -> frozenset[str]:
        """The programs that are attached anywhere."""
        with self._lock:
            return frozenset(self._attached) | {place.program for place in self._places}

    def attach(self, program: str) -> None:
        """Attach where its section says. Attached twice it still runs once."""
        with self._lock:
            found = self._program(program)
            if program in self._attached:
                return
            code = self._attacher.by_section(found, again=program in self._once)
            if code:
                tracepoint = found.section.startswith(("tp/", "tracepoint/"))
                hint = "is tracefs mounted at /sys/kernel/tracing?" if tracepoint else ""
                raise BpfError(f"attaching {program} to {found.section}", code, hint=hint)
            self._attached[program] = None
            self._once.add(program)

    def attach_event(self, program: str, descriptor: int) -> None:
        """Attach to a perf event, whose descriptor is the program's from now on. Attached twice it still runs once."""
        with self._lock:
            self._program(program)
            if program in self._attached:
                os.close(descriptor)
                return
            self._attached[program] = descriptor

    def detach(self, program: str) -> None:
        """Take it off again; does nothing where it is not attached."""
        with self._lock:
            descriptor = self._attached.pop(program, None)
            if descriptor is not None:
                with suppress(OSError):
                    os.close(descriptor)

    def detach_all(self, *, wait: bool = True) -> None:
        """Take off again all that is attached where its section says, or to an event; here at once in any case."""
        with self._lock:
            for program in list(self._attached):
                self.detach(program)

    def attach_uprobe(self, program: str, file: str, offset: int) -> Attachment:
        """Attach a program of section ``uprobe`` or ``uretprobe`` to a function of all who map ``file``."""
        where = f"{file} at {offset:#x}"
        return self._at(program, ("uprobe", "uretprobe"), where, lambda: self._attacher.uprobe(file, offset))

    def attach_kprobes(self, program: str, functions: Sequence[str]) -> Attachment:
        """Attach a program of section ``kprobe.multi`` or ``kretprobe.multi`` to all these kernel functions at once."""
        where = ", ".join(functions) or "no function"
        sections = ("kprobe.multi", "kretprobe.multi")
        return self._at(program, sections, where, lambda: self._attacher.kprobes(functions))

    def attach_uprobes(self, program: str, file: str, offsets: Sequence[int]) -> Attachment:
        """Attach a program of section ``uprobe.multi`` or ``uretprobe.multi`` to all these functions of ``file``."""
        where = f"{file} at {len(offsets)} places"
        sections = ("uprobe.multi", "uretprobe.multi")
        return self._at(program, sections, where, lambda: self._attacher.uprobes(file, offsets))

    def _at(self, program: str, sections: tuple[str, str], where: str, refusal: Callable[[], int]) -> Attachment:
        with self._lock:
            section = self._program(program).section
            if section not in sections:
                raise SettingsError(f"program {program} is for {section}, not for {' or '.join(sections)}")
            if code := refusal():
                raise BpfError(f"attaching {program} to {where}", code)
            place = _Place(self, program)
            self._places.add(place)
            return place

    def take_off(self, place: _Place) -> None:
        """End one of many attachments; a second time does nothing."""
        with self._lock:
            self._places.discard(place)

    def missed(self) -> int:
        """Programs do not run here, and so miss nothing."""
        with self._lock:
            if not self._open:
                raise ClosedError(f"object {self.name} is closed")
            return 0

    def buffer(self, name: str, pages: int = 64) -> EventBuffer:
        """Read the events of that map; ``pages`` (a power of two) a CPU for a perf event array."""
        with self._lock:
            definition = self._map(name).store.definition
            if definition.type == "ringbuf":
                buffer = SimulatedBuffer(name, self._rings[name])
            else:
                if pages < 1 or pages & (pages - 1):
                    raise SettingsError(f"buffer of map {name}: {pages} pages is no power of two")
                if (error := refused_buffer(name, definition)) is not None:
                    raise error
                buffer = SimulatedBuffer(name, PerfRings(pages, self._cpus))
            self._buffers[name] = buffer
            return buffer

    def inject(self, name: str, data: bytes, cpu: int = 0) -> int:
        """What a program on that processor would report through that map: 0, or the negative error number that its
        helper returns."""
        with self._lock:
            definition = self._map(name).store.definition
            if definition.type not in ("perf_event_array", "ringbuf"):
                raise SettingsError(f"map {name} of {self.name} takes no events: it is of type {definition.type}")
            if not 0 <= cpu < self._cpus:
                raise SettingsError(f"this kernel has processors 0 to {self._cpus - 1}, not {cpu}")
            buffer = self._buffers.get(name)
            if definition.type == "ringbuf" and buffer is None:
                return self._rings[name].output(data)
            return -_ENOENT if buffer is None else buffer.output(data, cpu)

    def store(self, name: str) -> Store:
        """A map as programs see it (``lookup``, ``update``)."""
        with self._lock:
            return self._map(name).store

    def close(self) -> None:
        """Detach all, free buffers, maps and programs; a second time does nothing."""
        with self._lock:
            self.detach_all()
            self._places.clear()
            for buffer in self._buffers.values():
                buffer.close()
            for made in self._maps.values():
                made.close()
            if self._open:
                self._open = False
                self._when_closed(self)

    def __enter__(self) -> SimulatedObject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _program(self, name: str) -> Program:
        if not self._open:
            raise ClosedError(f"object {self.name} is closed")
        if name not in self._programs:
            raise unknown(self.name, "loaded program", name, self._programs)
        return self._programs[name]

    def _map(self, name: str) -> SimulatedMap:
        if not self._open:
            raise ClosedError(f"object {self.name} is closed")
        if name not in self._maps:
            raise unknown(self.name, "map", name, self._maps)
        return self._maps[name]
