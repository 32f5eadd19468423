"""An ELF object opened and not yet loaded: checked, its programs chosen, its constants and maps edited.

Laws: bytes that are no eBPF object are a FormatError, whatever they are; a name that the object does not have, and a
value that does not fit, are a SettingsError with the nearest name; nothing here asks the kernel.
"""

from __future__ import annotations

import ctypes as c
import difflib
import subprocess
import sys
from collections.abc import Iterable, Mapping

from harness.ebpf import abi, elf
from harness.ebpf.btf_parser import Btf
from harness.ebpf.maps import PERF_EVENT_ARRAY, RINGBUF, BpfMap
from harness.errors import BpfError, FormatError, SettingsError
from harness.kernel_api import LoadOptions, MapEdit, MapType

_TYPES = {MapType.PERF_EVENT_ARRAY: PERF_EVENT_ARRAY, MapType.RINGBUF: RINGBUF}
_U32 = (1 << 32) - 1
_TYPED = frozenset({"fentry", "fexit", "fmod_ret"})
"""Sections of programs that get a kernel function's own arguments; with ``.s`` they may sleep."""
_STEADY = (1, 5)
"""A libbpf before this one dies of some corrupt objects (3 in 1000 with a few bytes changed; of 1.5 none in 6,000)."""
_TRIAL = "import sys; from harness.ebpf import opening; opening.trial(sys.stdin.buffer.read())"


def open_object(name: str, image: bytes, options: LoadOptions) -> int:
    """libbpf's handle of the object. FormatError for what is none."""
    # libbpf takes the object's name for those of its data maps; it must live as long as this call only.
    custom = str(options.kernel_btf).encode() if options.kernel_btf else None
    opts = abi.OpenOptions(sz=c.sizeof(abi.OpenOptions), object_name=name.encode(), btf_custom_path=custom)
    try:
        elf.contents(image)
    except FormatError as error:
        raise FormatError(f"object {name} is no eBPF object: {error.message}") from None
    _survives(name, image)
    with abi.hearing() as heard:
        handle = abi.library().bpf_object__open_mem(image, len(image), c.byref(opts))
    if not handle:
        raise FormatError(f"object {name} is no eBPF object: {words(heard) or 'libbpf cannot open it'}")
    return int(handle)


def _survives(name: str, image: bytes) -> None:
    """Let a process of its own open the object first, where libbpf may die of it."""
    lib = abi.library()
    if (lib.libbpf_major_version(), lib.libbpf_minor_version()) >= _STEADY:
        return
    done = subprocess.run([sys.executable, "-c", _TRIAL], input=image, stderr=subprocess.DEVNULL, check=False)
    if done.returncode < 0:
        raise FormatError(f"object {name} is no eBPF object: libbpf died of it (signal {-done.returncode})")


def trial(image: bytes) -> None:
    """Open and close an object, for the sake of surviving it."""
    handle = abi.library().bpf_object__open_mem(image, len(image), None)
    if handle:
        abi.library().bpf_object__close(handle)


def named(handle: int, kind: str) -> dict[str, int]:
    """The object's programs or maps by name."""
    lib = abi.library()
    step, name = getattr(lib, f"bpf_object__next_{kind}"), getattr(lib, f"bpf_{kind}__name")
    found, item = {}, None
    while item := step(handle, item):
        found[name(item).decode(errors="replace")] = int(item)
    return found


def choose(name: str, programs: Mapping[str, int], wanted: Iterable[str] | None) -> tuple[str, ...]:
    """The wanted programs (None: all) in the object's order."""
    names = list(programs) if wanted is None else list(wanted)
    for program in names:
        if program not in programs:
            raise unknown(name, "program", program, programs)
    return tuple(p for p in programs if p in names)


def check_typed(program: str, section: str, options: LoadOptions) -> None:
    """A program on a kernel function is loaded only if its caller has said, and so had compared, what it expects."""
    kind, _, function = section.removeprefix("?").partition("/")
    # A module's function is "module:function" there, and may be so in the section.
    given = options.signatures.get(program, ("",))[0]
    if kind.removesuffix(".s") in _TYPED and function not in (given, given.rpartition(":")[2]):
        raise SettingsError(
            f"program {program} is attached to {function}, and no signature of {function} was given for it",
            hint="the kernel loads a program that expects too few arguments, and it reads garbage",
        )


def set_constants(name: str, handle: int, maps: Mapping[str, BpfMap], constants: Mapping[str, int]) -> None:
    """Write read-only globals, found by name in the object's BTF."""
    if not constants:
        return
    lib, size = abi.library(), c.c_size_t()
    known = _object_btf(name, handle).section(".rodata")
    section = next((m for n, m in maps.items() if n.endswith(".rodata")), None)
    base = lib.bpf_map__initial_value(section.handle, c.byref(size)) if section else None
    for constant, value in constants.items():
        if constant not in known or not base:
            raise unknown(name, "constant", constant, known)
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


def edit_map(edited: BpfMap, edit: MapEdit) -> None:
    """Change a map before it is made."""
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


def unknown(where: str, kind: str, name: str, known: Iterable[str]) -> SettingsError:
    """The error for a name that is not there, with the nearest one that is."""
    near = difflib.get_close_matches(name, known, 1)
    return SettingsError(f"object {where} has no {kind} {name!r}", hint=f"did you mean {near[0]!r}?" if near else "")


def words(heard: list[str]) -> str:
    """What libbpf said, without its own name in front."""
    lines = [line.removeprefix("libbpf: ").strip() for line in heard]
    return "; ".join(line for line in lines if line)[:400]
