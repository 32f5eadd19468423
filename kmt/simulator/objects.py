"""(pure) An eBPF object as a file: its programs and their instructions, its maps, what is to be relocated.

Laws: bytes that are no eBPF object, and anything in one that is not known (a section, a kind of relocation, maps
without BTF), are a CannotTellError that names it.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from harness.ebpf import elf
from harness.errors import FormatError
from kmt.errors import CannotTellError
from kmt.simulator.pointers import MAP, VALUE, Pointer
from kmt.simulator.sections import Place, place
from kmt.simulator.types import Kind, Types

_RECORD = struct.Struct("<IIII")
_INSTRUCTION = struct.Struct("<BBhi")
_CALL, _OF_THE_OBJECT = 0x85, 1
"""A call, and of what: BPF_PSEUDO_CALL."""
_SIZED = frozenset({4, 19, 21, 24, 28, 29, 32})
"""Map types that need no number of entries: libbpf counts the CPUs for a perf event array, and the kernel refuses any
number for the storages of control groups, sockets, inodes and tasks (``enum bpf_map_type``)."""
_MOST_DATA = 1 << 28
"""Bytes of global variables in a section: more than any kernel would hold in a map of one entry."""
LAST_KIND = 12
"""The highest kind of CO-RE relocation that is known (``enum bpf_core_relo_kind``)."""
TEXT = ".text"
"""The section of functions that programs call."""


@dataclass(frozen=True)
class Relocation:
    """What an instruction wants to know of the kernel's types: of the local type ``type``, by ``access`` (0:1:2)."""

    type: int
    access: str
    kind: int


@dataclass(frozen=True)
class Code:
    """A function: its bytes, by instruction what is relocated, the functions in ``.text`` that it refers to by
    instruction (as places there), and the instructions that the address of a map or of data is written into (None: of
    something else)."""

    data: bytes
    relocations: Mapping[int, Relocation] = field(default_factory=dict)
    references: Mapping[int, int] = field(default_factory=dict)
    addresses: Mapping[int, Pointer | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A program: its name, section, what that says, and its code."""

    name: str
    section: str
    place: Place
    code: Code


@dataclass(frozen=True)
class Declared:
    """A map as its source declares it: the number of its type, sizes in bytes, entries, flags."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True)
class EbpfObject:
    """A whole object. ``maps``: the numbers of the maps' types by name; ``unsized``: those whose size its loader sets;
    ``functions``: those in ``.text`` by place; ``declared``: the maps as ``.maps`` has them; ``data``: the sections of
    global variables with what is in them; ``constants``: offset and size of the read-only ones; ``license``: empty
    where it says none.
    """

    programs: tuple[Program, ...]
    maps: Mapping[str, int]
    unsized: tuple[str, ...]
    functions: Mapping[int, Code]
    types: Types | None
    declared: Mapping[str, Declared] = field(default_factory=dict)
    data: Mapping[str, bytes] = field(default_factory=dict)
    constants: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    license: str = ""


def parse(image: bytes) -> EbpfObject:
    """Read an object. Raises CannotTellError."""
    try:
        elf.sections(image)
        return _parse(ELFFile(io.BytesIO(image)), elf.contents(image))
    except FormatError as error:
        raise CannotTellError(f"no eBPF object: {error.message}") from None
    except (
        ELFError,
        struct.error,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
        TypeError,
        AssertionError,
    ) as error:
        raise CannotTellError(f"no eBPF object: {error}") from None


def _parse(file: ELFFile, contents: Mapping[str, bytes]) -> EbpfObject:
    types = Types.parse(contents[".BTF"]) if contents.get(".BTF") else None
    if contents.get("maps"):
        raise CannotTellError("its maps are in a section 'maps', of before BTF", hint="libbpf 1.0 refuses it too")
    relocations = _relocations(contents.get(".BTF.ext", b""), types)
    symbols = file.get_section_by_name(".symtab")
    if not isinstance(symbols, SymbolTableSection):
        raise CannotTellError("no eBPF object: it has no symbols")
    linked = {s["sh_info"]: s for s in file.iter_sections() if isinstance(s, RelocationSection)}
    programs, functions = [], {}
    for number, section in enumerate(file.iter_sections()):
        if not section["sh_flags"] & 4 or section["sh_type"] != "SHT_PROGBITS":  # SHF_EXECINSTR
            continue
        refers, addresses = _refers(file, linked.get(number), symbols, section.data())
        if section.name == TEXT:
            refers = _within(section.data()) | refers
        here = [s for s in symbols.iter_symbols() if s["st_shndx"] == number and s["st_info"]["type"] == "STT_FUNC"]
        for symbol in sorted(here, key=lambda s: int(s["st_value"])):
            begin, size = symbol["st_value"], symbol["st_size"]
            code = _cut(section.data(), begin, size, relocations.get(section.name, {}), refers, addresses)
            if section.name == TEXT:
                functions[begin // 8] = code
            else:
                said = place(section.name)
                if said is None:
                    raise CannotTellError(f"program {symbol.name}: section {section.name!r} is of no known type")
                programs.append(Program(symbol.name, section.name, said, code))
    if not programs:
        raise CannotTellError("no eBPF object: it has no programs")
    maps = _maps(types)
    return EbpfObject(
        tuple(programs),
        {name: declared.type for name, declared in maps.items()},
        tuple(name for name, declared in maps.items() if not declared.max_entries and declared.type not in _SIZED),
        functions,
        types,
        maps,
        _data(file),
        _constants(file, symbols),
        contents.get("license", b"").partition(b"\0")[0].decode(errors="replace"),
    )


def _constants(file: ELFFile, symbols: SymbolTableSection) -> dict[str, tuple[int, int]]:
    """The variables of ``.rodata``."""
    numbers = [n for n, section in enumerate(file.iter_sections()) if section.name == ".rodata"]
    return {
        s.name: (s["st_value"], s["st_size"])
        for s in symbols.iter_symbols()
        if s["st_shndx"] in numbers and s["st_info"]["type"] == "STT_OBJECT"
    }


def _data(file: ELFFile) -> dict[str, bytes]:
    """The sections that libbpf makes maps of, in the file's order; zeros for those without bytes in it."""
    found: dict[str, bytes] = {}
    for section in file.iter_sections():
        head = section.name[1:].partition(".")[0]
        if section.name.startswith(".") and head in ("data", "rodata", "bss") and section["sh_size"]:
            if section["sh_size"] > _MOST_DATA:
                raise CannotTellError(f"section {section.name} has {section['sh_size']} bytes")
            empty = section["sh_type"] == "SHT_NOBITS"
            found[section.name] = bytes(section["sh_size"]) if empty else bytes(section.data())
    return found


def _cut(data: bytes, begin: int, size: int, relocations: Mapping[int, Relocation], refers: Mapping[int, int],
         addresses: Mapping[int, Pointer | None]) -> Code:  # fmt: skip
    first, last = begin // 8, (begin + size) // 8
    return Code(
        data[begin : begin + size],
        {at - first: relocation for at, relocation in relocations.items() if first <= at < last},
        {at - first: target for at, target in refers.items() if first <= at < last},
        {at - first: pointer for at, pointer in addresses.items() if first <= at < last},
    )


def _refers(file: ELFFile, section: RelocationSection | None, symbols: SymbolTableSection, data: bytes
            ) -> tuple[dict[int, int], dict[int, Pointer | None]]:  # fmt: skip
    """By instruction the places in ``.text`` that are referred to; and what other symbols are of."""
    refers: dict[int, int] = {}
    addresses: dict[int, Pointer | None] = {}
    if section is None:
        return refers, addresses
    for entry in section.iter_relocations():
        at = entry["r_offset"] // 8
        symbol = symbols.get_symbol(entry["r_info_sym"])
        number = symbol["st_shndx"]
        home = file.get_section(number).name if isinstance(number, int) else ""
        (immediate,) = struct.unpack_from("<i", data, at * 8 + 4)
        if home == TEXT:
            call = data[at * 8] == _CALL
            refers[at] = symbol["st_value"] // 8 + (immediate + 1 if call else immediate // 8)
        elif home == ".maps":
            addresses[at] = Pointer(MAP, 0, symbol.name)
        elif home.startswith((".rodata", ".data", ".bss")):
            addresses[at] = Pointer(VALUE, symbol["st_value"] + immediate, home)
        else:
            addresses[at] = None
    return refers, addresses


def _within(data: bytes) -> dict[int, int]:
    """Calls of functions in the same section: without a relocation, the place is counted from the next instruction."""
    instructions = enumerate(_INSTRUCTION.iter_unpack(data[: len(data) // 8 * 8]))
    return {
        at: at + 1 + immediate
        for at, (opcode, registers, _, immediate) in instructions
        if opcode == _CALL and registers >> 4 == _OF_THE_OBJECT
    }


def _relocations(extension: bytes, types: Types | None) -> dict[str, dict[int, Relocation]]:
    """By section and instruction, out of ``.BTF.ext``."""
    found: dict[str, dict[int, Relocation]] = {}
    if len(extension) < 32 or types is None:
        return found
    header, offset, length = struct.unpack_from("<I", extension, 4)[0], *struct.unpack_from("<II", extension, 24)
    if not length:
        return found
    at = header + offset
    (size,) = struct.unpack_from("<I", extension, at)
    if size < _RECORD.size:
        raise CannotTellError(f"no eBPF object: CO-RE relocations of {size} bytes each")
    end, at = at + length, at + 4
    while at < end:
        name, count = struct.unpack_from("<II", extension, at)
        at += 8
        rows = found.setdefault(types.string(name), {})
        for _ in range(count):
            instruction, type_id, access, kind = _RECORD.unpack_from(extension, at)
            if kind > LAST_KIND:
                raise CannotTellError(f"a CO-RE relocation of the unknown kind {kind}")
            rows[instruction // 8] = Relocation(type_id, types.string(access), kind)
            at += size
    return found


def _maps(types: Types | None) -> dict[str, Declared]:
    """The maps that ``.maps`` declares."""
    found: dict[str, Declared] = {}
    if types is None:
        return found
    for section in types.named(".maps"):
        for variable in types.variables(section) if types.kind(section) == Kind.DATASEC else ():
            members = {m.name: m.type for m in types.members(types.bare(types.target(variable)))}
            if "type" not in members:
                raise CannotTellError(f"map {types.name(variable)} has no type")
            number = {key: _number(types, members[key]) for key in _NUMBERS if key in members}
            size = {
                key: types.size(types.target(types.bare(members[key]))) for key in ("key", "value") if key in members
            }
            found[types.name(variable)] = Declared(
                number["type"],
                size.get("key", number.get("key_size", 0)),
                size.get("value", number.get("value_size", 0)),
                number.get("max_entries", 0),
                number.get("map_flags", 0),
            )
    return found


_NUMBERS = ("type", "key_size", "value_size", "max_entries", "map_flags")


def _number(types: Types, member: int) -> int:
    """One that is written as the length of an array that is pointed to."""
    return types.array(types.bare(types.target(types.bare(member))))[1]
