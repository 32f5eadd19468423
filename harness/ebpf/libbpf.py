"""An eBPF object in the kernel: open, choose programs, set constants, edit maps, load, attach, take off again.

Laws: whatever is not done is refused with a typed error before the kernel is asked; a load that fails leaves
nothing behind; ``close`` may come at any time, in any order with the parts' own, and twice.
C functions are declared in ``abi.py``; maps and buffers are in ``maps.py`` and ``buffers.py``; whether a program
fits the kernel's functions is asked by ``live.py`` before it comes here.
"""

from __future__ import annotations

import ctypes as c
import difflib
import os
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType

from harness.ebpf import abi, verifier
from harness.ebpf.btf_parser import Btf
from harness.ebpf.buffers import PerfBuffer, RingBuffer
from harness.ebpf.maps import PERF_EVENT_ARRAY, RINGBUF, BpfMap
from harness.errors import BpfError, ClosedError, FormatError, SettingsError, VerifierError
from harness.kernel_api import LoadOptions, MapEdit, MapType

_LOG_SIZE = 1 << 20
"""Of the verifier's log, for each program; a smaller one turns a rejection into ENOSPC before 6.4."""
_TYPES = {MapType.PERF_EVENT_ARRAY: PERF_EVENT_ARRAY, MapType.RINGBUF: RINGBUF}
_U32 = (1 << 32) - 1


class BpfObject:
    """A loaded object. Use it as a context manager, or ``close`` it."""

    def __init__(self, name: str, image: bytes, options: LoadOptions) -> None:
        self.name = name
        self._links: dict[str, int] = {}
        self._uprobes: set[Uprobe] = set()
        self._buffers: list[PerfBuffer | RingBuffer] = []
        self._logs: dict[str, c.Array[c.c_char]] = {}
        self._lock = threading.RLock()
        self._handle: int | None = _open(name, image, options)
        try:
            self._programs = _named(self._handle, "program")
            self.maps: Mapping[str, BpfMap] = {
                n: BpfMap(h, lambda: self._handle is not None) for n, h in _named(self._handle, "map").items()
            }
            self._chosen = _choose(name, self._programs, options.programs)
            for program in self._chosen:
                _check_typed(program, self._section(program), options)
            _set_constants(name, self._handle, self.maps, options.constants)
            for map_name, edit in options.map_edits.items():
                _edit(self._map(map_name), edit)
            self._load()
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
                raise BpfError(f"attaching {program} to {section}", code, detail=_words(heard), hint=hint)
            self._links[program] = link

    def detach(self, program: str) -> None:
        """Take it off again; does nothing where it is not attached."""
        with self._lock:
            link = self._links.pop(program, None)
            if link is not None:
                abi.library().bpf_link__destroy(link)

    def attach_uprobe(self, program: str, file: str, offset: int) -> Uprobe:
        """Attach a program of section ``uprobe`` or ``uretprobe`` to a function of all who map ``file``.

        ``offset`` is the function's place in the file, in bytes. As many places as one likes.
        """
        with self._lock:
            handle, section = self._program(program), self._section(program)
            if section not in ("uprobe", "uretprobe"):
                raise SettingsError(f"program {program} is for {section}, not for a function of a file")
            options = abi.UprobeOptions(sz=c.sizeof(abi.UprobeOptions), retprobe=section == "uretprobe")
            with abi.hearing() as heard:
                link = abi.library().bpf_program__attach_uprobe_opts(
                    handle, -1, os.fsencode(file), offset, c.byref(options)
                )
                code = c.get_errno()
            if not link:
                raise BpfError(f"attaching {program} to {file} at {offset:#x}", code, detail=_words(heard))
            uprobe = Uprobe(self, link)
            self._uprobes.add(uprobe)
            return uprobe

    def _take_off(self, uprobe: Uprobe) -> None:
        with self._lock:
            if uprobe in self._uprobes:
                self._uprobes.remove(uprobe)
                abi.library().bpf_link__destroy(uprobe.link)

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
            for program in list(self._links):
                self.detach(program)
            for uprobe in list(self._uprobes):
                uprobe.close()
            # A buffer's end deletes from its map by descriptor, which must still be that map's.
            for buffer in self._buffers:
                buffer.close()
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
            raise _unknown(self.name, "loaded program", name, self._chosen)
        return self._programs[name]

    def _section(self, program: str) -> str:
        return str(abi.library().bpf_program__section_name(self._programs[program]).decode())

    def _map(self, name: str) -> BpfMap:
        if self._handle is None:
            raise ClosedError(f"object {self.name} is closed")
        if name not in self.maps:
            raise _unknown(self.name, "map", name, self.maps)
        return self.maps[name]

    def _load(self) -> None:
        lib = abi.library()
        # Kept until the object is closed: a loaded one keeps their addresses, and says EBUSY to others.
        logs = self._logs = {name: c.create_string_buffer(_LOG_SIZE) for name in self._chosen}
        for name, handle in self._programs.items():
            lib.bpf_program__set_autoload(handle, name in logs)
            if name in logs:
                lib.bpf_program__set_log_buf(handle, logs[name], _LOG_SIZE)
        with abi.hearing() as heard:
            status = lib.bpf_object__load(self._handle)
        if not status:
            return
        for name, log in logs.items():
            if text := log.value.decode(errors="replace"):
                raise VerifierError(name, -status, verifier.reason(text), text)
        raise BpfError(f"loading object {self.name}", -status, detail=_words(heard))


class Uprobe:
    """A program at a function of a file, until ``close`` or the end of its object."""

    def __init__(self, owner: BpfObject, link: int) -> None:
        self.link = link
        self._owner = owner

    def close(self) -> None:
        """Take it off; a second time does nothing."""
        self._owner._take_off(self)


def _open(name: str, image: bytes, options: LoadOptions) -> int:
    # libbpf takes the object's name for those of its data maps; it must live as long as this call only.
    custom = str(options.kernel_btf).encode() if options.kernel_btf else None
    opts = abi.OpenOptions(sz=c.sizeof(abi.OpenOptions), object_name=name.encode(), btf_custom_path=custom)
    if not image:
        raise FormatError(f"object {name} is empty")
    with abi.hearing() as heard:
        handle = abi.library().bpf_object__open_mem(image, len(image), c.byref(opts))
    if not handle:
        raise FormatError(f"object {name} is no eBPF object: {_words(heard) or 'libbpf cannot open it'}")
    return int(handle)


def _named(handle: int, kind: str) -> dict[str, int]:
    """The object's programs or maps by name."""
    lib = abi.library()
    step, name = getattr(lib, f"bpf_object__next_{kind}"), getattr(lib, f"bpf_{kind}__name")
    found, item = {}, None
    while item := step(handle, item):
        found[name(item).decode()] = int(item)
    return found


def _choose(name: str, programs: Mapping[str, int], wanted: Iterable[str] | None) -> tuple[str, ...]:
    names = list(programs) if wanted is None else list(wanted)
    for program in names:
        if program not in programs:
            raise _unknown(name, "program", program, programs)
    return tuple(p for p in programs if p in names)


def _check_typed(program: str, section: str, options: LoadOptions) -> None:
    """A program on a kernel function is loaded only if its caller has said, and so had compared, what it expects."""
    kind, _, function = section.partition("/")
    if kind in ("fentry", "fexit") and options.signatures.get(program, ("",))[0] != function:
        raise SettingsError(
            f"program {program} is attached to {function}, and no signature of {function} was given for it",
            hint="the kernel loads a program that expects too few arguments, and it reads garbage",
        )


def _set_constants(name: str, handle: int, maps: Mapping[str, BpfMap], constants: Mapping[str, int]) -> None:
    if not constants:
        return
    lib, size = abi.library(), c.c_size_t()
    known = _object_btf(name, handle).section(".rodata")
    section = next((m for n, m in maps.items() if n.endswith(".rodata")), None)
    base = lib.bpf_map__initial_value(section.handle, c.byref(size)) if section else None
    for constant, value in constants.items():
        if constant not in known or not base:
            raise _unknown(name, "constant", constant, known)
        place = known[constant]
        if place.offset + place.size > size.value:
            raise FormatError(f"object {name}: constant {constant} lies outside its section")
        if not 0 <= value < 1 << 8 * place.size:
            raise SettingsError(f"object {name}: constant {constant} has {place.size} bytes, {value} does not fit")
        c.memmove(base + place.offset, value.to_bytes(place.size, "little"), place.size)


def _object_btf(name: str, handle: int) -> Btf:
    lib, size = abi.library(), c.c_uint32()
    btf = lib.bpf_object__btf(handle)
    data = lib.btf__raw_data(btf, c.byref(size)) if btf else None
    if not data:
        raise FormatError(f"object {name} has no BTF, so its constants cannot be found", hint="compile it with -g")
    return Btf.parse(c.string_at(data, size.value))


def _edit(edited: BpfMap, edit: MapEdit) -> None:
    lib, handle = abi.library(), edited.handle
    steps = {
        "type": (lib.bpf_map__set_type, None if edit.type is None else _TYPES[edit.type]),
        "key_size": (lib.bpf_map__set_key_size, edit.key_size),
        "value_size": (lib.bpf_map__set_value_size, edit.value_size),
        "max_entries": (lib.bpf_map__set_max_entries, edit.max_entries),
    }
    for what, (function, value) in steps.items():
        if value is None:
            continue
        if not 0 <= value <= _U32:
            raise SettingsError(f"map {edited.name}: {what} cannot be {value}")
        if status := function(handle, value):
            raise BpfError(f"setting {what} of map {edited.name} to {value}", -status)


def _unknown(where: str, kind: str, name: str, known: Iterable[str]) -> SettingsError:
    near = difflib.get_close_matches(name, known, 1)
    return SettingsError(f"object {where} has no {kind} {name!r}", hint=f"did you mean {near[0]!r}?" if near else "")


def _words(heard: list[str]) -> str:
    """What libbpf said, without its own name in front."""
    lines = [line.removeprefix("libbpf: ").strip() for line in heard]
    return "; ".join(line for line in lines if line)[:400]
