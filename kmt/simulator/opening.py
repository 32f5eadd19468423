"""(pure) An object before it is loaded into a simulated kernel: programs chosen, constants set, maps edited.

Laws: those of ``harness.ebpf.opening``, in its words: a name that the object does not have, and a value that does not
fit, are a SettingsError, before the kernel is asked anything.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from harness.errors import BpfError, SettingsError
from harness.kernel_api import LoadOptions, MapEdit
from kmt.errors import CannotTellError
from kmt.simulator.objects import EbpfObject, Program
from kmt.simulator.stores import PAGE, Definition
from kmt.simulator.uapi import map_name
from kmt.simulator.words import unknown

_U32 = (1 << 32) - 1
_NAME = 15
"""What the kernel keeps of a map's name (BPF_OBJ_NAME_LEN, with its end)."""
_SECTION = 7
"""What libbpf keeps of that for a section's name, at the least (``.rodata``)."""
_READ_ONLY_IN_PROGRAMS = 0x80
"""``BPF_F_RDONLY_PROG``."""


@dataclass(frozen=True)
class Opened:
    """What goes into the kernel. ``data``: by section; ``sections``: which map is made of which."""

    whole: EbpfObject
    programs: tuple[Program, ...]
    maps: Mapping[str, Definition]
    data: Mapping[str, bytes]
    sections: Mapping[str, str]


def prepare(name: str, whole: EbpfObject, options: LoadOptions, cpus: int) -> Opened:
    """As the options say. Raises SettingsError, BpfError or CannotTellError."""
    if whole.types is not None and whole.types.named(".kconfig"):
        raise CannotTellError(f"object {name} asks for the kernel's configuration (.kconfig), which is not simulated")
    programs = choose(name, whole, options)
    data = dict(whole.data)
    if options.constants:
        data[".rodata"] = _constants(name, whole, options.constants)
    sections = {_data_map(name, section): section for section in data}
    maps = _declared(whole)
    for data_map, section in sections.items():
        flags = _READ_ONLY_IN_PROGRAMS if section.startswith(".rodata") else 0
        maps[data_map] = Definition("array", 4, len(data[section]), 1, flags)
    for edited, edit in options.map_edits.items():
        if edited not in maps:
            raise unknown(name, "map", edited, maps)
        if edited in sections:
            raise CannotTellError(f"map {edited} is a section of data; its edits are not simulated")
        maps[edited] = _edited(edited, maps[edited], edit)
    made = {n: replace(d, max_entries=cpus) if _for_each_cpu(d) else d for n, d in maps.items()}
    return Opened(whole, programs, made, data, sections)


def _for_each_cpu(definition: Definition) -> bool:
    """libbpf makes one of no size as large as there are processors."""
    return definition.type == "perf_event_array" and not definition.max_entries


def choose(name: str, whole: EbpfObject, options: LoadOptions) -> tuple[Program, ...]:
    """The wanted programs in the object's order. Raises SettingsError."""
    known = [program.name for program in whole.programs]
    wanted = known if options.programs is None else list(options.programs)
    for program in wanted:
        if program not in known:
            raise unknown(name, "program", program, known)
    return tuple(program for program in whole.programs if program.name in wanted)


def _constants(name: str, whole: EbpfObject, constants: Mapping[str, int]) -> bytes:
    content = bytearray(whole.data.get(".rodata", b""))
    for constant, value in constants.items():
        if constant not in whole.constants:
            raise unknown(name, "constant", constant, whole.constants)
        offset, size = whole.constants[constant]
        if not 0 <= value < 1 << 8 * size:
            raise SettingsError(f"object {name}: constant {constant} has {size} bytes, {value} does not fit")
        content[offset : offset + size] = value.to_bytes(size, "little")
    return bytes(content)


def _declared(whole: EbpfObject) -> dict[str, Definition]:
    found = {}
    for name, declared in whole.declared.items():
        kind = map_name(declared.type)
        if not kind:
            raise CannotTellError(f"map {name} is of type {declared.type}, which is not known")
        if declared.flags & _READ_ONLY_IN_PROGRAMS:
            raise CannotTellError(f"map {name} is read only for programs, which is not simulated")
        entries = _ring_size(declared.max_entries) if kind == "ringbuf" else declared.max_entries
        found[name] = Definition(kind, declared.key_size, declared.value_size, entries, declared.flags)
    return found


def _data_map(name: str, section: str) -> str:
    """libbpf's name for the map of a section: the beginning of the object's, and the section's."""
    if section.count(".") > 1:
        return section
    beginning = name.encode()[: _NAME - max(_SECTION, len(section))]
    return re.sub(rb"[^A-Za-z0-9_.]", b"_", beginning).decode() + section


def _edited(name: str, definition: Definition, edit: MapEdit) -> Definition:
    if edit.type is not None:
        definition = replace(definition, type=str(edit.type))
    for what in ("key_size", "value_size", "max_entries"):
        value = getattr(edit, what)
        if value is None:
            continue
        if not 0 <= value <= _U32:
            raise SettingsError(f"map {name}: {what} cannot be {value}")
        definition = replace(definition, **{what: value})
    if definition.type == "ringbuf" and edit.max_entries is not None:
        definition = replace(definition, max_entries=_ring_size(definition.max_entries))
    return definition


def _ring_size(size: int) -> int:
    """libbpf makes it a power of two pages, where there is such a one in 32 bits."""
    if not size or (size % PAGE == 0 and not size & (size - 1)):
        return size
    wanted = max(PAGE, 1 << (size - 1).bit_length())
    return wanted if wanted <= _U32 else size


def refused_buffer(name: str, definition: Definition) -> BpfError | None:
    """Why no buffer can be opened on that map: None for perf event arrays and ring buffers."""
    if definition.type in ("perf_event_array", "ringbuf"):
        return None
    return BpfError(f"buffer of map {name}", errno.EINVAL)
