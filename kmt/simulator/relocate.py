"""(pure) CO-RE relocations of an object against a kernel's BTF, by libbpf's rules.

Laws: a relocation gives one value, or None (resolved, its value is of no matter here), or is missing: then the real
libbpf puts a call into the instruction's place that no verifier accepts; candidates that disagree are an
AmbiguousError; questions about whole types always have a value, and so has whether a member or enumerator exists.
Rules: tools/lib/bpf/relo_core.c of the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from harness.errors import FormatError
from kmt.simulator.objects import Relocation
from kmt.simulator.types import COMPOSITE, ENUMS, MODIFIERS, Kind, Types, essential

_DEEPEST = 32
_LONGEST = 11
"""More digits than any index has."""


class Ask(IntEnum):
    """``enum bpf_core_relo_kind``."""

    FIELD_OFFSET = 0
    FIELD_SIZE = 1
    FIELD_EXISTS = 2
    FIELD_SIGNED = 3
    FIELD_LSHIFT = 4
    FIELD_RSHIFT = 5
    TYPE_ID_LOCAL = 6
    TYPE_ID_TARGET = 7
    TYPE_EXISTS = 8
    TYPE_SIZE = 9
    ENUM_EXISTS = 10
    ENUM_VALUE = 11
    TYPE_MATCHES = 12


_EXISTS = frozenset({Ask.FIELD_EXISTS, Ask.TYPE_EXISTS, Ask.ENUM_EXISTS})
_OF_TYPES = frozenset({Ask.TYPE_ID_TARGET, Ask.TYPE_EXISTS, Ask.TYPE_SIZE, Ask.TYPE_MATCHES})
"""Without such a type they are 0, and nothing is missing."""


class AmbiguousError(Exception):
    """The kernel has several types of that name, and they give different values: libbpf refuses the object."""


@dataclass(frozen=True)
class Answer:
    """``found``: whether the kernel has it; ``value``: what the instruction gets, None where that is of no matter."""

    found: bool
    value: int | None


@dataclass(frozen=True)
class _Step:
    """One step of an access: by name through a composite, or by index into an array."""

    type: int
    index: int
    name: str


def wanted(local: Types, relocation: Relocation) -> str:
    """What a relocation is about, in words: ``struct sock.__sk_common.skc_family``."""
    base, kind = relocation.type, local.kind(relocation.type)
    head = f"{kind.name.lower()} " if kind in COMPOSITE | ENUMS else ""
    name = head + (essential(local.name(base)) or "(anonymous)")
    if relocation.kind <= Ask.FIELD_RSHIFT:
        return name + "".join(f".{step.name}" for step in _steps(local, relocation)[1:] if step.name)
    if relocation.kind in (Ask.ENUM_EXISTS, Ask.ENUM_VALUE):
        return f"{name} {_enumerator(local, relocation)}"
    return name


def resolve(local: Types, relocation: Relocation, kernel: Types) -> Answer:
    """What that kernel answers. Raises AmbiguousError, FormatError."""
    kind = Ask(relocation.kind)
    if kind is Ask.TYPE_ID_LOCAL:
        return Answer(True, relocation.type)
    answers = {
        answer for candidate in _candidates(local, relocation.type, kernel)
        if (answer := _match(local, relocation, kernel, candidate)) is not None
    }  # fmt: skip
    if not answers:
        return Answer(True, 0) if kind in _EXISTS | _OF_TYPES else Answer(False, None)
    if len(answers) > 1 and kind is not Ask.TYPE_ID_TARGET:
        raise AmbiguousError(f"{wanted(local, relocation)} is {' or '.join(map(str, sorted(answers)))}")
    (value, *_) = answers
    return Answer(True, 1 if kind in _EXISTS else None if value < 0 else value)


def _candidates(local: Types, type_id: int, kernel: Types) -> list[int]:
    name, kind = essential(local.name(type_id)), local.kind(type_id)
    found = kernel.essentially.get(name, ()) if name else ()
    return [i for i in found if kernel.kind(i) == kind or {kernel.kind(i), kind} <= ENUMS]


def _match(local: Types, relocation: Relocation, kernel: Types, candidate: int) -> int | None:
    """The value by that candidate (-1: none that matters); None where it does not have it."""
    kind = Ask(relocation.kind)
    if kind is Ask.TYPE_MATCHES:
        return -1  # more than compatible: member by member, which is not looked at here
    if kind in _OF_TYPES:
        if not _compatible(local, relocation.type, kernel, candidate):
            return None
        if kind is Ask.TYPE_SIZE:
            return kernel.size(candidate)
        return 1 if kind is Ask.TYPE_EXISTS else candidate
    if kind in (Ask.ENUM_EXISTS, Ask.ENUM_VALUE):
        name = essential(_enumerator(local, relocation))
        values = {essential(n): v for n, v in kernel.values(kernel.bare(candidate)).items()}
        return None if name not in values else 1 if kind is Ask.ENUM_EXISTS else values[name] & (1 << 64) - 1
    place = _place(local, _steps(local, relocation), kernel, candidate)
    if place is None:
        return None
    offset, type_id, width = place
    if kind is Ask.FIELD_EXISTS:
        return 1
    if kind is Ask.FIELD_OFFSET and not width:
        return offset // 8
    return kernel.size(type_id) if kind is Ask.FIELD_SIZE and not width else -1


def _enumerator(local: Types, relocation: Relocation) -> str:
    names = list(local.values(local.bare(relocation.type)))
    index = _indexes(relocation)[0]
    if index >= len(names):
        raise FormatError(f"an enumerator {index} of {len(names)}")
    return names[index]


def _indexes(relocation: Relocation) -> list[int]:
    words = relocation.access.split(":")
    if not all(word.isdecimal() and len(word) < _LONGEST for word in words):
        raise FormatError(f"an access {relocation.access[:80]!r}")
    return [int(word) for word in words]


def _steps(local: Types, relocation: Relocation) -> list[_Step]:
    """The access as steps; members without a name are left out, for the kernel's may lie elsewhere."""
    indexes = _indexes(relocation)
    type_id = local.bare(relocation.type)
    steps = [_Step(type_id, indexes[0], "")]
    for index in indexes[1:]:
        kind = local.kind(type_id)
        if kind in COMPOSITE:
            members = local.members(type_id)
            if index >= len(members):
                raise FormatError(f"a member {index} of {len(members)}")
            if members[index].name:
                steps.append(_Step(type_id, index, members[index].name))
            type_id = local.bare(members[index].type)
        elif kind == Kind.ARRAY:
            steps.append(_Step(type_id, index, ""))
            type_id = local.bare(local.array(type_id)[0])
        else:
            raise FormatError(f"an access into a type of kind {kind.name}")
    return steps


def _place(local: Types, steps: list[_Step], kernel: Types, candidate: int) -> tuple[int, int, int] | None:
    """Offset in bits, type and bit field's width of what the steps lead to; None where the kernel has no such thing."""
    type_id = kernel.bare(candidate)
    offset = steps[0].index * kernel.size(type_id) * 8 if steps[0].index else 0
    width = 0
    for step in steps[1:]:
        type_id = kernel.bare(type_id)
        if step.name:
            found = _member(local, step, kernel, type_id, 0)
            if found is None:
                return None
            inner, type_id, width = found
            offset += inner
        else:
            if kernel.kind(type_id) != Kind.ARRAY:
                return None
            element, length = kernel.array(type_id)
            if step.index >= length and length:  # an array without a length is a flexible one
                return None
            offset, type_id = offset + step.index * kernel.size(element) * 8, element
    return offset, type_id, width


def _member(local: Types, step: _Step, kernel: Types, type_id: int, depth: int) -> tuple[int, int, int] | None:
    if kernel.kind(type_id) not in COMPOSITE or depth > _DEEPEST:
        return None
    mine = local.members(step.type)[step.index]
    for member in kernel.members(type_id):
        if not member.name:
            found = _member(local, step, kernel, kernel.bare(member.type), depth + 1)
            if found is not None:
                return member.offset + found[0], found[1], found[2]
        elif member.name == step.name:
            fits = _fields_compatible(local, mine.type, kernel, member.type)
            return (member.offset, member.type, member.width) if fits else None
    return None


def _fields_compatible(local: Types, mine: int, kernel: Types, theirs: int) -> bool:
    for _ in range(_DEEPEST):
        mine, theirs = local.bare(mine), kernel.bare(theirs)
        kinds = (local.kind(mine), kernel.kind(theirs))
        if set(kinds) <= COMPOSITE:
            return True
        if kinds[0] != kinds[1] and not set(kinds) <= ENUMS:
            return False
        if kinds[0] in ENUMS | {Kind.FWD}:
            names = (essential(local.name(mine)), essential(kernel.name(theirs)))
            return not all(names) or names[0] == names[1]
        if kinds[0] == Kind.INT:
            return not (local.integer(mine) >> 16 & 0xFF or kernel.integer(theirs) >> 16 & 0xFF)
        if kinds[0] != Kind.ARRAY:
            return kinds[0] in (Kind.PTR, Kind.FLOAT)
        mine, theirs = local.array(mine)[0], kernel.array(theirs)[0]
    return False


def _compatible(local: Types, mine: int, kernel: Types, theirs: int) -> bool:
    """Of types of one name: whether they are of the same build, names of composites not looked at."""
    for _ in range(_DEEPEST):
        mine, theirs = local.bare(mine, MODIFIERS), kernel.bare(theirs, MODIFIERS)
        kinds = (local.kind(mine), kernel.kind(theirs))
        if kinds[0] != kinds[1]:
            return set(kinds) <= ENUMS
        if kinds[0] == Kind.PTR:
            mine, theirs = local.target(mine), kernel.target(theirs)
        elif kinds[0] == Kind.ARRAY:
            mine, theirs = local.array(mine)[0], kernel.array(theirs)[0]
        elif kinds[0] == Kind.FUNC_PROTO:
            pairs = (local.parameters(mine), kernel.parameters(theirs))
            return len(pairs[0]) == len(pairs[1]) and all(
                _compatible(local, a, kernel, b)
                for a, b in zip((local.target(mine), *pairs[0]), (kernel.target(theirs), *pairs[1]), strict=True)
            )
        else:
            return True
    return False
