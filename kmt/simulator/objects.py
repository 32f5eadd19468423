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
from kmt.simulator.sections import Place, place
from kmt.simulator.types import Kind, Types

_RECORD = struct.Struct("<IIII")
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
    instruction (as places there), and the instructions that a symbol's address is written into."""

    data: bytes
    relocations: Mapping[int, Relocation] = field(default_factory=dict)
    references: Mapping[int, int] = field(default_factory=dict)
    addresses: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Program:
    """A program: its name, section, what that says, and its code."""

    name: str
    section: str
    place: Place
    code: Code


@dataclass(frozen=True)
class EbpfObject:
    """A whole object. ``maps``: the numbers of the maps' types by name; ``unsized``: those whose size its loader sets;
    ``functions``: those in ``.text`` by place.
    """

    programs: tuple[Program, ...]
    maps: Mapping[str, int]
    unsized: tuple[str, ...]
    functions: Mapping[int, Code]
    types: Types | None


def parse(image: bytes) -> EbpfObject:
    """Read an object. Raises CannotTellError."""
    try:
        elf.sections(image)
        return _parse(ELFFile(io.BytesIO(image)), elf.contents(image))
    except FormatError as error:
        raise CannotTellError(f"no eBPF object: {error.message}") from None
    except (ELFError, struct.error, UnicodeDecodeError, ValueError, KeyError, AttributeError, TypeError) as error:
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
        here = [s for s in symbols.iter_symbols() if s["st_shndx"] == number and s["st_info"]["type"] == "STT_FUNC"]
        for symbol in here:
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
    unsized = tuple(name for name, (_, entries) in maps.items() if not entries)
    return EbpfObject(tuple(programs), {n: kind for n, (kind, _) in maps.items()}, unsized, functions, types)


def _cut(data: bytes, begin: int, size: int, relocations: Mapping[int, Relocation], refers: Mapping[int, int],
         addresses: frozenset[int]) -> Code:  # fmt: skip
    first, last = begin // 8, (begin + size) // 8
    return Code(
        data[begin : begin + size],
        {at - first: relocation for at, relocation in relocations.items() if first <= at < last},
        {at - first: target for at, target in refers.items() if first <= at < last},
        frozenset(at - first for at in addresses if first <= at < last),
    )


def _refers(file: ELFFile, section: RelocationSection | None, symbols: SymbolTableSection, data: bytes
            ) -> tuple[dict[int, int], frozenset[int]]:  # fmt: skip
    """By instruction the places in ``.text`` that are referred to; and the instructions with other symbols."""
    refers: dict[int, int] = {}
    addresses = set()
    if section is None:
        return refers, frozenset()
    for entry in section.iter_relocations():
        at = entry["r_offset"] // 8
        symbol = symbols.get_symbol(entry["r_info_sym"])
        number = symbol["st_shndx"]
        if isinstance(number, int) and file.get_section(number).name == TEXT:
            (immediate,) = struct.unpack_from("<i", data, at * 8 + 4)
            call = data[at * 8] == 0x85
            refers[at] = symbol["st_value"] // 8 + (immediate + 1 if call else immediate // 8)
        else:
            addresses.add(at)
    return refers, frozenset(addresses)


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


def _maps(types: Types | None) -> dict[str, tuple[int, int]]:
    """Type and ``max_entries`` of the maps that ``.maps`` declares; such a number is written as an array's length."""
    found: dict[str, tuple[int, int]] = {}
    if types is None:
        return found
    for section in types.named(".maps"):
        for variable in types.variables(section) if types.kind(section) == Kind.DATASEC else ():
            members = {m.name: m for m in types.members(types.bare(types.target(variable)))}
            if "type" not in members:
                raise CannotTellError(f"map {types.name(variable)} has no type")
            numbers = [
                types.array(types.bare(types.target(types.bare(members[key].type))))[1] if key in members else 0
                for key in ("type", "max_entries")
            ]
            found[types.name(variable)] = (numbers[0], numbers[1])
    return found
