"""(pure) eBPF objects as ELF files: their sections, checked before libbpf sees them.

Law: any bytes either parse or raise FormatError, nothing else; every section that is given lies inside the file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import FormatError

EM_BPF = 247
_RELOCATABLE = 1
_NOBITS = 8
_SYMTAB, _RELA, _REL = 2, 4, 9
_IDENT = b"\x7fELF\x02\x01\x01"
"""64 bits, little-endian, version 1: what a little-endian machine's eBPF is."""
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL_SIZE = 24


@dataclass(frozen=True)
class Section:
    """A section: its name, its number in the file, type and contents (empty where it has no bytes)."""

    name: str
    type: int
    data: bytes


def sections(image: bytes, *, machine: int | None = EM_BPF) -> tuple[Section, ...]:
    """The sections of a relocatable 64-bit little-endian ELF file for ``machine`` (None: of any kind, any machine)."""
    try:
        ident, kind, target, *_, table, _, _, _, _, size, number, names = _HEADER.unpack_from(image)
    except struct.error:
        raise FormatError(f"no ELF file: {len(image)} bytes are too short for its header") from None
    if not ident.startswith(_IDENT):
        raise FormatError(f"no 64-bit little-endian ELF file: it begins with {ident[:7].hex()}")
    if machine is not None and target != machine:
        raise FormatError(f"an ELF file for machine {target}, not for eBPF ({machine})")
    if machine is not None and kind != _RELOCATABLE:
        raise FormatError(f"an ELF file of type {kind}, not a relocatable one ({_RELOCATABLE})")
    if size != _SECTION.size or table + number * size > len(image):
        raise FormatError("a truncated ELF file: its section table lies outside")
    if not number or names >= number:
        raise FormatError("an ELF file without names of sections")
    headers = [_SECTION.unpack_from(image, table + i * size) for i in range(number)]
    strings = _data(image, headers[names])
    return tuple(Section(_name(strings, header[0]), header[1], _data(image, header)) for header in headers)


def _data(image: bytes, header: tuple[int, ...]) -> bytes:
    kind, offset, size = header[1], header[4], header[5]
    if kind == _NOBITS or not size:
        return b""
    if offset + size > len(image):
        raise FormatError(f"a truncated ELF file: a section ends at {offset + size} of {len(image)} bytes")
    return image[offset : offset + size]


def _name(strings: bytes, offset: int) -> str:
    end = strings.find(b"\0", offset)
    if end < 0:
        raise FormatError("an ELF file with a section whose name lies outside")
    return strings[offset:end].decode(errors="replace")


def contents(image: bytes) -> Mapping[str, bytes]:
    """The sections of an eBPF object by name; of several of one name the first."""
    found: dict[str, bytes] = {}
    for section in sections(image):
        found.setdefault(section.name, section.data)
    return found


def relocations(image: bytes) -> int:
    """Bytes of CO-RE relocations: ``core_relo_len`` of the section ``.BTF.ext`` (linux/btf.h), 0 where it has none."""
    extension = contents(image).get(".BTF.ext", b"")
    return int(struct.unpack_from("<I", extension, 28)[0]) if len(extension) >= 32 else 0
