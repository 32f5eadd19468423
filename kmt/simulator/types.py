"""(pure) What else is asked of BTF than the harness asks: enumerations, members, types by name.

Laws: those of ``harness.ebpf.btf_parser``: bytes that are no BTF, and references that lead nowhere or in circles, are
a FormatError; a type that is not there is None or empty. Format: Documentation/bpf/btf.rst of the kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from harness.ebpf.btf_parser import Btf
from harness.errors import FormatError


class Kind(IntEnum):
    """``BTF_KIND_*``."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


TRANSPARENT = frozenset({Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})
MODIFIERS = TRANSPARENT | {Kind.TYPEDEF}
COMPOSITE = frozenset({Kind.STRUCT, Kind.UNION})
ENUMS = frozenset({Kind.ENUM, Kind.ENUM64})
_POINTER = 8
_DEEPEST = 32
_FLAVOUR = "___"


@dataclass(frozen=True)
class Member:
    """A member of a struct or union: its place in bits, and the width of a bit field (0: it is none)."""

    name: str
    type: int
    offset: int
    width: int


def essential(name: str) -> str:
    """A type's name without its flavour: ``sock`` of ``sock___old``."""
    at = name.find(_FLAVOUR)
    return name[:at] if at > 0 and len(name) > at + len(_FLAVOUR) else name


class Types(Btf):
    """BTF as types with members. Ids count from 1; 0 is void."""

    def kind(self, type_id: int) -> Kind:
        """What sort of type it is."""
        return Kind.VOID if type_id == 0 else Kind(self._type(type_id)[0])

    def name(self, type_id: int) -> str:
        """Its name; empty for void and where it has none."""
        return "" if type_id == 0 else self._name(self._type(type_id)[2])

    def size(self, type_id: int) -> int:
        """Bytes of a value of it."""
        bare, times = self.bare(type_id), 1
        for _ in range(_DEEPEST):
            kind, _, at = self._type(bare)
            if kind == Kind.PTR:
                return _POINTER * times
            if kind in COMPOSITE | ENUMS | {Kind.INT, Kind.FLOAT}:
                return self._words[at + 2] * times
            if kind != Kind.ARRAY:
                break
            element, length = self.array(bare)
            bare, times = self.bare(element), times * length
        raise FormatError(f"BTF type {type_id} has no size")

    def target(self, type_id: int) -> int:
        """What a pointer, typedef, qualifier, function or variable refers to."""
        return self._words[self._type(type_id)[2] + 2]

    def bare(self, type_id: int, through: frozenset[Kind] = MODIFIERS) -> int:
        """The type without typedefs and qualifiers in front."""
        for _ in range(_DEEPEST):
            if self.kind(type_id) not in through:
                return type_id
            type_id = self.target(type_id)
        raise FormatError(f"BTF type {type_id} refers to itself")

    def array(self, type_id: int) -> tuple[int, int]:
        """Type and number of an array's elements."""
        _, at = self._of(type_id, Kind.ARRAY)
        return self._words[at + 3], self._words[at + 5]

    def integer(self, type_id: int) -> int:
        """An integer's encoding, offset and bits, as one word (``BTF_INT_*``)."""
        return self._words[self._of(type_id, Kind.INT)[1] + 3]

    def members(self, type_id: int) -> tuple[Member, ...]:
        """Those of a struct or union, in order."""
        count, at = self._of(type_id, *COMPOSITE)
        fields = bool(self._words[at + 1] >> 31)
        found = []
        for place in range(at + 3, at + 3 + 3 * count, 3):
            offset = self._words[place + 2]
            width = offset >> 24 if fields else 0
            found.append(
                Member(self._name(place), self._words[place + 1], offset & 0xFFFFFF if fields else offset, width)
            )
        return tuple(found)

    def variables(self, type_id: int) -> tuple[int, ...]:
        """The types of a data section's variables."""
        count, at = self._of(type_id, Kind.DATASEC)
        return tuple(self._words[at + 3 + 3 * i] for i in range(count))

    def _of(self, type_id: int, *kinds: Kind) -> tuple[int, int]:
        """Number of members and place of a type of one of these kinds: others have other words there, or none."""
        kind, count, at = (0, 0, 0) if type_id == 0 else self._type(type_id)
        if kind not in kinds:
            raise FormatError(f"BTF type {type_id} is {Kind(kind).name}, not {' or '.join(k.name for k in kinds)}")
        return count, at

    def string(self, offset: int) -> str:
        """What stands at that place of the string table."""
        end = self._strings.find(b"\0", offset)
        if end < 0:
            raise FormatError(f"BTF refers to string {offset} of {len(self._strings)}")
        return self._strings[offset:end].decode(errors="replace")

    def parameters(self, type_id: int) -> tuple[int, ...]:
        """The types of a prototype's parameters."""
        count, at = self._of(type_id, Kind.FUNC_PROTO)
        return tuple(self._words[at + 4 + 2 * i] for i in range(count))

    def values(self, type_id: int) -> Mapping[str, int]:
        """The enumerators of an enumeration."""
        count, at = self._of(type_id, *ENUMS)
        kind = self.kind(type_id)
        signed = bool(self._words[at + 1] >> 31)
        found = {}
        for i in range(count):
            place = at + 3 + i * (2 if kind == Kind.ENUM else 3)
            value = self._words[place + 1]
            if kind == Kind.ENUM64:
                value |= self._words[place + 2] << 32
            bits = 32 if kind == Kind.ENUM else 64
            found[self._name(place)] = value - (1 << bits) if signed and value >> (bits - 1) else value
        return found

    def enumeration(self, name: str) -> Mapping[str, int]:
        """The enumerators of the enumeration of that name; empty where there is none."""
        for type_id in self.named(name):
            if self.kind(type_id) in ENUMS:
                return self.values(type_id)
        return {}

    def named(self, name: str) -> tuple[int, ...]:
        """The types of just that name, of all kinds."""
        return self._by_name.get(name, ())

    @functools.cached_property
    def essentially(self) -> Mapping[str, tuple[int, ...]]:
        """Types by their names without flavours (``sock`` for ``sock___old`` too)."""
        found: dict[str, tuple[int, ...]] = {}
        for name, ids in self._by_name.items():
            short = essential(name)
            found[short] = (*found.get(short, ()), *ids)
        return found

    @functools.cached_property
    def _by_name(self) -> Mapping[str, tuple[int, ...]]:
        found: dict[int, list[int]] = {}
        words = self._words
        for type_id, at in enumerate(self._at):
            if type_id and words[at]:
                found.setdefault(words[at], []).append(type_id)
        names: dict[str, tuple[int, ...]] = {}
        for offset, ids in found.items():
            end = self._strings.find(b"\0", offset)
            name = self._strings[offset:end].decode(errors="replace")
            names[name] = (*names.get(name, ()), *ids)
        return names
