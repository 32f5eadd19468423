"""(pure) What of a program the verifier gets to see on a given kernel: its instructions, followed with the constants
that relocations and read-only data put into them, so that code behind a question with the answer "no" is left out.

Laws: what is not known goes both ways, so all that can run is reached; of several ways to an instruction only what
they agree in is known; a pointer that was stored and loaded again is not known any more. Format:
Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kmt.simulator.objects import Code
from kmt.simulator.pointers import CONTEXT, MAP, STACK, VALUE, Pointer

_MASK = (1 << 64) - 1
_INSTRUCTION = struct.Struct("<BBhi")
_REGISTERS = 16
"""As many as an instruction can name; the verifier knows eleven."""


OUTSIDE = -1
"""Stands for the place of a function that is called and is not in ``.text``."""
_LOOKUP = 1
"""``bpf_map_lookup_elem``."""
_COMPARE_AND_EXCHANGE, _LOAD_ACQUIRE = 0xF1, 0x100
_SIZES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}

Value = int | Pointer | None
State = tuple[Value, ...]


@dataclass(frozen=True)
class Call:
    """A helper's number, where it is called, and what it gets in the five registers, as far as it is known."""

    at: int
    helper: int
    arguments: tuple[Value, ...]


@dataclass(frozen=True)
class Access:
    """``size`` bytes read or written at a pointer."""

    at: int
    pointer: Pointer
    size: int


@dataclass
class Seen:
    """What was reached: instructions, helpers by number, functions in ``.text`` by place, kernel functions called, and
    bytes of the context that were read, each where it begins."""

    instructions: set[int] = field(default_factory=set)
    helpers: set[int] = field(default_factory=set)
    functions: set[int] = field(default_factory=set)
    kfuncs: bool = False
    context: set[int] = field(default_factory=set)
    calls: set[Call] = field(default_factory=set)
    accesses: set[Access] = field(default_factory=set)
    data: Mapping[str, bytes] = field(default_factory=dict)


def walk(
    code: Code, constants: Mapping[int, int | None], stops: frozenset[int] = frozenset(),
    data: Mapping[str, bytes] | None = None,
) -> Seen:  # fmt: skip
    """Follow a function. ``constants``: the values that relocations give to instructions; at ``stops`` it ends;
    ``data``: sections that nobody can write any more."""
    seen = Seen(data=data or {})
    first: list[Value] = [None] * _REGISTERS
    first[1], first[10] = Pointer(CONTEXT), Pointer(STACK)
    states: dict[int, State] = {0: tuple(first)}
    todo = [0]
    count = len(code.data) // 8
    while todo:
        at = todo.pop()
        if not 0 <= at < count:
            continue
        seen.instructions.add(at)
        if at in stops:
            continue
        for following, state in _step(code, constants, at, states[at], seen):
            known = states.get(following)
            merged = state if known is None else tuple(a if a == b else None for a, b in zip(known, state, strict=True))
            if merged != known:
                states[following] = merged
                todo.append(following)
    return seen


def _step(code: Code, constants: Mapping[int, int | None], at: int, state: State, seen: Seen
          ) -> list[tuple[int, State]]:  # fmt: skip
    opcode, registers, offset, immediate = _INSTRUCTION.unpack_from(code.data, at * 8)
    target, source = registers & 15, registers >> 4
    family = opcode & 7
    if opcode == 0x18:
        return [(at + 2, _put(state, target, _wide(code, constants, at, source, immediate, seen)))]
    if family in (4, 7):
        value = _arithmetic(opcode, state[target], _operand(opcode, constants, at, state[source], immediate))
        return [(at + 1, _put(state, target, value))]
    if family in (1, 2, 3):
        return [(at + 1, _memory(opcode, state, registers, offset, immediate, at, seen))]
    if family in (5, 6):
        return _jump(code, constants, at, state, seen)
    return [(at + 1, (*(None,) * 6, *state[6:]))]  # packet data is loaded by what is a call


def _memory(opcode: int, state: State, registers: int, offset: int, immediate: int, at: int, seen: Seen) -> State:
    """A load from memory (class 1), or a store into it."""
    target, source = registers & 15, registers >> 4
    load = opcode & 7 == 1
    base = state[source if load else target]
    size = _SIZES[opcode & 0x18]
    if isinstance(base, Pointer):
        there = Pointer(base.region, base.offset + offset, base.map)
        # A relocated offset is one into a kernel's struct, never into what a tracing program is given.
        if load and base.region == CONTEXT:
            seen.context.add(there.offset)
        seen.accesses.add(Access(at, there, size))
        if load:
            plain = opcode & 0xE0 == 0x60  # others extend the sign
            return _put(state, target, _constant(there, size, seen.data) if plain else None)
    if load:
        return _put(state, target, None)
    overwritten = _overwritten(immediate, target, source) if opcode & 0xE7 == 0xC3 else None
    return state if overwritten is None else _put(state, overwritten, None)


def _overwritten(operation: int, target: int, source: int) -> int | None:
    """The register into which an atomic operation puts what was there."""
    if operation == _COMPARE_AND_EXCHANGE:
        return 0
    if operation == _LOAD_ACQUIRE:
        return target
    return source if operation & 1 else None  # BPF_FETCH


def _constant(there: Pointer, size: int, data: Mapping[str, bytes]) -> int | None:
    content = data.get(there.map, b"") if there.region == VALUE else b""
    within = there.offset >= 0 and there.offset + size <= len(content)
    return int.from_bytes(content[there.offset : there.offset + size], "little") if within else None


def _wide(code: Code, constants: Mapping[int, int | None], at: int, source: int, low: int, seen: Seen) -> Value:
    if at in code.references:
        seen.functions.add(code.references[at])
        return None
    if at in constants:
        return constants[at]
    if at in code.addresses:
        return code.addresses[at]
    if source:
        return None
    high = int.from_bytes(code.data[at * 8 + 12 :][:4], "little")
    return (low & 0xFFFFFFFF | high << 32) & _MASK


def _operand(opcode: int, constants: Mapping[int, int | None], at: int, register: Value, immediate: int) -> Value:
    if opcode & 8:
        return register
    value = constants.get(at, immediate)
    return None if value is None else value & _MASK


_ARITHMETIC: dict[int, Callable[[int, int], int]] = {
    0x00: operator.add, 0x10: operator.sub, 0x20: operator.mul, 0x40: operator.or_, 0x50: operator.and_,
    0x60: lambda a, b: a << (b & 63), 0x70: lambda a, b: a >> (b & 63), 0xA0: operator.xor,
}  # fmt: skip


def _arithmetic(opcode: int, old: Value, operand: Value) -> Value:
    wide, kind = opcode & 7 == 7, opcode & 0xF0
    if kind == 0xB0:
        return operand if wide or not isinstance(operand, int) else operand & 0xFFFFFFFF
    if isinstance(old, Pointer):
        signed = operand - (1 << 64) if isinstance(operand, int) and operand >> 63 else operand
        known = wide and kind == 0 and isinstance(signed, int)
        return Pointer(old.region, old.offset + signed, old.map) if known and isinstance(signed, int) else None
    if not isinstance(old, int) or not isinstance(operand, int) or kind not in _ARITHMETIC:
        return None
    mask = _MASK if wide else 0xFFFFFFFF
    return _ARITHMETIC[kind](old & mask, operand & mask) & mask


_CONDITIONS: dict[int, Callable[[int, int], bool]] = {
    0x10: operator.eq, 0x20: operator.gt, 0x30: operator.ge, 0x40: lambda a, b: bool(a & b), 0x50: operator.ne,
    0xA0: operator.lt, 0xB0: operator.le,
}  # fmt: skip
_SIGNED: dict[int, Callable[[int, int], bool]] = {
    0x60: operator.gt, 0x70: operator.ge, 0xC0: operator.lt, 0xD0: operator.le,
}  # fmt: skip


def _jump(code: Code, constants: Mapping[int, int | None], at: int, state: State, seen: Seen
          ) -> list[tuple[int, State]]:  # fmt: skip
    opcode, registers, offset, immediate = _INSTRUCTION.unpack_from(code.data, at * 8)
    if opcode == 0x95:
        return []
    if opcode == 0x85:
        _call(code, at, registers >> 4, immediate, seen)
        helper = registers >> 4 == 0 and at not in code.references
        if helper:
            seen.calls.add(Call(at, immediate, state[1:6]))
        return [(at + 1, (_result(immediate, state[1]) if helper else None, *(None,) * 5, *state[6:]))]
    if opcode & 0xF0 == 0:
        return [(at + 1 + (immediate if opcode == 0x06 else offset), state)]
    operand = _operand(opcode, constants, at, state[registers >> 4], immediate)
    taken = _decided(opcode, state[registers & 15], operand)
    ways = [(at + 1, state)] if taken is not True else []
    return ways + ([(at + 1 + offset, state)] if taken is not False else [])


def _decided(opcode: int, left: Value, right: Value) -> bool | None:
    if not isinstance(left, int) or not isinstance(right, int):
        return None
    bits = 64 if opcode & 7 == 5 else 32
    mask, kind = (1 << bits) - 1, opcode & 0xF0
    left, right = left & mask, right & mask
    if kind in _CONDITIONS:
        return _CONDITIONS[kind](left, right)
    if kind in _SIGNED:
        return _SIGNED[kind](*(v - (1 << bits) if v >> (bits - 1) else v for v in (left, right)))
    return None


def _result(helper: int, first: Value) -> Value:
    """Of a helper: the value that a map was asked for (what is not there ends the program's way, or is told apart)."""
    looked_up = helper == _LOOKUP and isinstance(first, Pointer) and first.region == MAP
    return Pointer(VALUE, 0, first.map) if looked_up and isinstance(first, Pointer) else None


def _call(code: Code, at: int, source: int, immediate: int, seen: Seen) -> None:
    if at in code.references:
        seen.functions.add(code.references[at])
    elif source == 1:
        seen.functions.add(OUTSIDE)
    elif source == 2:
        seen.kfuncs = True
    else:
        seen.helpers.add(immediate)


def _put(state: State, register: int, value: Value) -> State:
    return (*state[:register], value, *state[register + 1 :])
