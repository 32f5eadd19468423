"""An eBPF object in the kernel: open, choose programs, set constants, edit maps, load, attach, take off again.

Laws: whatever is not done is refused with a typed error before the kernel is asked; a load that fails leaves
nothing behind; ``close`` may come at any time, in any order with the parts' own, and twice.
C functions are declared in ``abi.py``; what comes before the load is in ``opening.py``, maps and buffers in
``maps.py`` and ``buffers.py``; whether a program fits the kernel's functions is asked by ``live.py``.
"""

from __future__ import annotations

import contextlib
import ctypes as c
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType

from harness.ebpf import abi, opening, release, verifier
from harness.ebpf.buffers import PerfBuffer, RingBuffer
from harness.ebpf.maps import RINGBUF, BpfMap
from harness.errors import BpfError, ClosedError, SettingsError, VerifierError
from harness.kernel_api import LoadOptions

_LOG_SIZE = 1 << 20
"""Of the verifier's log, for each program; a smaller one turns a rejection into ENOSPC before 6.4."""


class BpfObject:
    """A loaded object. Use it as a context manager, or ``close`` it."""

    def __init__(self, name: str, image: bytes, options: LoadOptions) -> None:
        self.name = name
        self._links: dict[str, int] = {}
        self.maps: Mapping[str, BpfMap] = {}
        self._attached: set[Attached] = set()
        self._buffers: list[PerfBuffer | RingBuffer] = []
        self._logs: dict[str, c.Array[c.c_char]] = {}
        self._lock = threading.RLock()
        self._handle: int | None = opening.open_object(name, image, options)
        try:
            self._programs = opening.named(self._handle, "program")
            self.maps = {n: BpfMap(h) for n, h in opening.named(self._handle, "map").items()}
            self._chosen = opening.choose(name, self._programs, options.programs)
            for program in self._chosen:
                opening.check_typed(program, self._section(program), options)
            opening.set_constants(name, self._handle, self.maps, options.constants)
            for map_name, edit in options.map_edits.items():
                opening.edit_map(self._map(map_name), edit)
            self._load()
            for made in self.maps.values():
                made.made()
        except BaseException:
            self.close()
            raise

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of those loaded."""
        return self._chosen

    def attach(self, program: str) -> None:
        """Attach where its section says. Attached twice it still runs once."""
        with self._lock:
            handle = self._program(program)
            if program in self._links:
                return
            with abi.hearing() as heard:
                link = abi.library().bpf_program__attach(handle)
                code = c.get_errno()
            if not link:
                section = self._section(program)
                hint = (
                    "is tracefs mounted at /sys/kernel/tracing?" if section.startswith(("tp/", "tracepoint/")) else ""
                )
                raise BpfError(f"attaching {program} to {section}", code, detail=opening.words(heard), hint=hint)
            self._links[program] = link

    def attach_event(self, program: str, descriptor: int) -> None:
        """Attach to a perf event, whose descriptor is the program's from now on. Attached twice it still runs once."""
        with self._lock:
            handle = self._program(program)
            if program in self._links:
                os.close(descriptor)
                return
            with abi.hearing() as heard:
                link = abi.library().bpf_program__attach_perf_event(handle, descriptor)
                code = c.get_errno()
            if not link:
                os.close(descriptor)
                raise BpfError(f"attaching {program} to a perf event", code, detail=opening.words(heard))
            self._links[program] = link

    def detach(self, program: str) -> None:
        """Take it off again; does nothing where it is not attached."""
        with self._lock:
            link = self._links.pop(program, None)
            if link is not None:
                abi.library().bpf_link__destroy(link)

    def detach_all(self, *, wait: bool = True) -> None:
        """Take off again all that is attached where its section says, or to an event; what ran has run to its end.

        Without ``wait`` the kernel takes the programs off by itself later, where it can: see ``release.py``, also for
        what may keep this process from waiting for programs that run.
        """
        with self._lock, ExitStack() as stack:
            if not wait and self._links:
                links = [abi.library().bpf_link__fd(link) for link in self._links.values()]
                stack.enter_context(release.by_the_kernel(links))
            attached = list(self._links)
            for program in attached:
                self.detach(program)
            if wait and attached:
                with contextlib.suppress(BpfError):
                    release.wait_for_programs()

    def attach_uprobe(self, program: str, file: str, offset: int) -> Attached:
        """Attach a program of section ``uprobe`` or ``uretprobe`` to a function of all who map ``file``.

        ``offset`` is the function's place in the file, in bytes. As many places as one likes.
        """
        options = abi.UprobeOptions(sz=c.sizeof(abi.UprobeOptions))
        return self._attach_at(
            program,
            ("uprobe", "uretprobe"),
            f"{file} at {offset:#x}",
            options,
            lambda handle: abi.library().bpf_program__attach_uprobe_opts(
                handle, -1, os.fsencode(file), offset, c.byref(options)
            ),
        )

    def attach_kprobes(self, program: str, functions: Sequence[str]) -> Attached:
        """Attach a program of section ``kprobe.multi`` or ``kretprobe.multi`` to all these kernel functions at once."""
        names = (c.c_char_p * len(functions))(*(name.encode() for name in functions))
        options = abi.KprobeMultiOptions(sz=c.sizeof(abi.KprobeMultiOptions), cnt=len(functions))
        options.syms = c.cast(names, c.c_void_p)
        return self._attach_at(
            program,
            ("kprobe.multi", "kretprobe.multi"),
            ", ".join(functions) or "no function",
            options,
            lambda handle: abi.optional("bpf_program__attach_kprobe_multi_opts")(handle, None, c.byref(options)),
        )

    def attach_uprobes(self, program: str, file: str, offsets: Sequence[int]) -> Attached:
        """Attach a program of section ``uprobe.multi`` or ``uretprobe.multi`` to all these functions of ``file``."""
        places = (c.c_ulong * len(offsets))(*offsets)
        options = abi.UprobeMultiOptions(sz=c.sizeof(abi.UprobeMultiOptions), cnt=len(offsets))
        options.offsets = c.cast(places, c.c_void_p)
        return self._attach_at(
            program,
            ("uprobe.multi", "uretprobe.multi"),
            f"{file} at {len(offsets)} places",
            options,
            lambda handle: abi.optional("bpf_program__attach_uprobe_multi")(
                handle, -1, os.fsencode(file), None, c.byref(options)
            ),
        )

    def _attach_at(
        self,
        program: str,
        sections: tuple[str, str],
        where: str,
        options: abi.UprobeOptions | abi.KprobeMultiOptions | abi.UprobeMultiOptions,
        attach: Callable[[int], int | None],
    ) -> Attached:
        """Attach at a place that the caller names; the second of the two sections is for returns."""
        with self._lock:
            handle, section = self._program(program), self._section(program)
            if section not in sections:
                raise SettingsError(f"program {program} is for {section}, not for {' or '.join(sections)}")
            options.retprobe = section == sections[1]
            with abi.hearing() as heard:
                link = attach(handle)
                code = c.get_errno()
            if not link:
                raise BpfError(f"attaching {program} to {where}", code, detail=opening.words(heard))
            attached = Attached(self, link)
            self._attached.add(attached)
            return attached

    def _take_off(self, attached: Attached) -> None:
        with self._lock:
            if attached in self._attached:
                self._attached.remove(attached)
                abi.library().bpf_link__destroy(attached.link)

    def missed(self) -> int:
        """How often a program was to run and could not, because it ran on that CPU already (counted from 5.12 on)."""
        with self._lock:
            return sum(_misses(self._program(program)) for program in self._chosen)

    def buffer(self, name: str, pages: int = 64) -> PerfBuffer | RingBuffer:
        """Read the events of that map; ``pages`` (a power of two) a CPU for a perf event array."""
        with self._lock:
            made = self._map(name)
            buffer = RingBuffer(name, made.fd) if made.type == RINGBUF else PerfBuffer(name, made.fd, pages)
            self._buffers.append(buffer)
            return buffer

    def close(self) -> None:
        """Detach all, free buffers, maps and programs; a second time does nothing."""
        with self._lock:
            self.detach_all()
            for attached in list(self._attached):
                attached.close()
            # A buffer's end deletes from its map by descriptor, which must still be that map's.
            for buffer in self._buffers:
                buffer.close()
            for made in self.maps.values():
                made.close()
            if self._handle is not None:
                abi.library().bpf_object__close(self._handle)
                self._handle = None
            self._logs.clear()

    def __enter__(self) -> BpfObject:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _program(self, name: str) -> int:
        if self._handle is None:
            raise ClosedError(f"object {self.name} is closed")
        if name not in self._chosen:
            raise opening.unknown(self.name, "loaded program", name, self._chosen)
        return self._programs[name]

    def _section(self, program: str) -> str:
        return str(abi.library().bpf_program__section_name(self._programs[program]).decode(errors="replace"))

    def _map(self, name: str) -> BpfMap:
        if self._handle is None:
            raise ClosedError(f"object {self.name} is closed")
        if name not in self.maps:
            raise opening.unknown(self.name, "map", name, self.maps)
        return self.maps[name]

    def _load(self) -> None:
        lib = abi.library()
        # Kept until the object is closed: a loaded one keeps their addresses, and says EBUSY to others.
        logs = self._logs = {name: c.create_string_buffer(_LOG_SIZE) for name in self._chosen}
        for name, handle in self._programs.items():
            lib.bpf_program__set_autoload(handle, name in logs)
            if name in logs:
                lib.bpf_program__set_log_buf(handle, logs[name], _LOG_SIZE)
        with abi.hearing() as heard, _undisturbed():
            status = lib.bpf_object__load(self._handle)
        if not status:
            return
        for name, log in logs.items():
            if text := log.value.decode(errors="replace"):
                raise VerifierError(name, -status, verifier.reason(text), text)
        raise BpfError(f"loading object {self.name}", -status, detail=opening.words(heard))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No signal reaches this thread: the verifier gives up (EAGAIN) when one is pending, and libbpf tries five times.

    One that is ignored is pending all the same where another thread has it blocked, as at every start of a process.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Attached:
    """A program at a place of its caller's choice, until ``close`` or the end of its object."""

    def __init__(self, owner: BpfObject, link: int) -> None:
        self.link = link
        self._owner = owner

    def close(self) -> None:
        """Take it off; a second time does nothing."""
        self._owner._take_off(self)


def _misses(program: int) -> int:
    lib, info = abi.library(), abi.ProgramInfo()
    size = c.c_uint32(c.sizeof(info))
    if status := lib.bpf_obj_get_info_by_fd(lib.bpf_program__fd(program), c.byref(info), c.byref(size)):
        raise BpfError("asking how often a program ran", -status)
    return int(info.recursion_misses)
