"""(pure) Would a simulated kernel load this object? What libbpf and the verifier object to, in their order and words.

Asked are rights, BTF, each map that is to be made, then each program: its type and place, what its relocations find,
its helpers, how they and its own instructions use maps. Laws: a refusal is one that the kernel's facts, its types or
the object's own code give; what they do not answer is a CannotTellError, never a guess; no refusal says that nothing
speaks against the program, for the verifier's whole analysis is not done again here.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kmt.errors import CannotTellError
from kmt.simulator import facts, reach, stores, walk
from kmt.simulator.derive import KernelFacts
from kmt.simulator.facts import Fact
from kmt.simulator.faults import Faults
from kmt.simulator.objects import EbpfObject, Program
from kmt.simulator.pointers import MAP, STACK, VALUE, Pointer
from kmt.simulator.sections import Target
from kmt.simulator.stores import Definition, Refused
from kmt.simulator.types import COMPOSITE, Kind, Types
from kmt.simulator.uapi import HELPERS, gpl, gpl_only, helper_name, map_number

_STRUCTS_ONLY, _INTEGERS_TOO = (5, 10), (6, 1)
"""As these were seen to do."""
_LONG_KEYS = (5, 11)
"""From then on a hash's key may be larger than a program's stack."""
_NEEDS_BTF = frozenset({"tracing", "lsm", "struct_ops"})
_WANT_GPL = {"lsm": "LSM", "struct_ops": "struct ops"}
"""Types of programs that must be under the GPL, in the kernel's words."""
_ATTEMPTS = 5
"""How often libbpf asks again after EAGAIN (PROG_LOAD_ATTEMPTS)."""
_KEY_AND_VALUE = {"bpf_map_lookup_elem": 1, "bpf_map_update_elem": 2, "bpf_map_delete_elem": 1}
"""Helpers that read a key, or a key and a value, where their second and third argument point to."""
_OUTPUT = {"bpf_perf_event_output": (1, "perf_event_array"), "bpf_ringbuf_output": (0, "ringbuf")}
"""Helpers for one type of maps, and which argument the map is."""


@dataclass(frozen=True)
class Refusal:
    """``program`` is empty where the object as a whole is refused; ``words``: the first line of what is said."""

    code: int
    words: str
    program: str = ""


@dataclass(frozen=True)
class Situation:
    """An object on its way into a kernel: the programs chosen, in the object's order, maps and data as they are to be;
    ``target``: the types that its relocations are resolved against, where they are at hand (``custom_btf``: they are
    not the kernel's own); ``memory``: bytes that maps may take."""

    whole: EbpfObject
    programs: Sequence[Program]
    maps: Mapping[str, Definition]
    data: Mapping[str, bytes]
    target: Types | None
    custom_btf: bool
    memory: int
    cpus: int = 1


def refusal(at: Situation, told: KernelFacts, types: Types | None, btf: bool, faults: Faults) -> Refusal | None:
    """The first objection, or None. ``btf``: the kernel has its own types (``types``, where they are at hand)."""
    if faults.denied:
        return Refusal(errno.EPERM, "Couldn't load trivial BPF program")
    no_types = _without_types(at, btf and not faults.no_btf)
    if no_types is not None:
        return no_types
    reached = {p.name: reach.follow(p.code, at.whole, at.target, _frozen(at.data)) for p in at.programs}
    for seen in reached.values():
        if any(unmet.ambiguous for unmet in seen[1]):
            return Refusal(errno.EINVAL, "relocation decision ambiguity")
    for name, definition in at.maps.items():
        try:
            _makeable(name, definition, told, at.memory if not faults.no_memory else 0, at.cpus)
        except Refused as refused:
            return Refusal(refused.code, f"map '{name}': failed to create")
    if faults.interrupted >= _ATTEMPTS and at.programs:
        return Refusal(errno.EAGAIN, f"prog '{at.programs[0].name}': BPF program load failed")
    for program in at.programs:
        objection = _program(program, at, *reached[program.name], told, types)
        if objection is not None:
            return objection
    return None


def _frozen(data: Mapping[str, bytes]) -> dict[str, bytes]:
    return {section: content for section, content in data.items() if section.startswith(".rodata")}


def _without_types(at: Situation, btf: bool) -> Refusal | None:
    """Any relocation of the object, of a program that is not chosen too, makes libbpf ask for BTF."""
    relocated = any(p.code.relocations for p in at.whole.programs) or any(
        code.relocations for code in at.whole.functions.values()
    )
    typed = any(p.place.sort.program_type in _NEEDS_BTF for p in at.programs)
    if btf or not (typed or (relocated and not at.custom_btf)):
        return None
    return Refusal(errno.ESRCH, "Error loading vmlinux BTF")


def _makeable(name: str, definition: Definition, told: KernelFacts, memory: int, cpus: int) -> None:
    fact = Fact(facts.Sort.MAP_TYPE, definition.type)
    if told.ask(fact).value is False:
        raise Refused(errno.EINVAL)
    if definition.type not in stores.KNOWN:
        raise CannotTellError(f"map {name}: maps of type {definition.type} are not simulated")
    longest = stores.STACK if told.version[:2] < _LONG_KEYS else stores.LARGEST
    stores.check(definition, memory, cpus, longest)


def _program(
    program: Program, at: Situation, seen: walk.Seen, unmet: Sequence[reach.Unmet], told: KernelFacts,
    types: Types | None,
) -> Refusal | None:  # fmt: skip
    place = program.place
    if place.sort.target is Target.FUNCTION and not _function(told, types, place.name):
        return Refusal(errno.ESRCH, f"prog '{program.name}': failed to find kernel BTF type ID of '{place.name}'")
    if told.ask(Fact(facts.Sort.PROGRAM_TYPE, place.sort.program_type)).value is False:
        return Refusal(errno.EINVAL, f"prog '{program.name}': BPF program load failed")
    if seen.kfuncs:
        raise CannotTellError(f"program {program.name} calls functions of the kernel (kfuncs)")
    for code, words in (
        *((errno.EINVAL, f"failed to resolve CO-RE relocation: {each.words}") for each in unmet),
        *_helpers(program, seen, told, at.whole.license),
        *_arguments(program, seen, told, types),
        *_uses(program, seen, at),
    ):
        return Refusal(code, words, program.name)
    return None


def _function(told: KernelFacts, types: Types | None, name: str) -> bool:
    if types is not None:
        return any(types.kind(i) == Kind.FUNC for i in types.named(name))
    return told.ask(Fact(facts.Sort.FUNCTION, name)).value is True


def _helpers(program: Program, seen: walk.Seen, told: KernelFacts, licence: str) -> Iterator[tuple[int, str]]:
    """Calls that the kernel does not lend to this type of program, or to a program under that licence."""
    kind = program.place.sort.program_type
    if kind in _WANT_GPL and not gpl(licence):
        yield errno.EINVAL, f"{_WANT_GPL[kind]} programs must have a GPL compatible license"
    for number in sorted(seen.helpers):
        name = HELPERS[number] if 0 <= number < len(HELPERS) else ""
        if not name or told.ask(Fact(facts.Sort.HELPER, f"bpf_{name}")).value is False:
            yield errno.EINVAL, f"invalid func unknown#{number}"
        elif not program.place.sleepable and told.ask(Fact(facts.Sort.CALL, f"{kind} bpf_{name}")).value is False:
            yield errno.EINVAL, f"program of this type cannot use helper bpf_{name}#{number}"
        elif not gpl(licence) and gpl_only(name, kind, told.version):
            yield errno.EINVAL, "cannot call GPL-restricted function from non-GPL compatible program"


def _arguments(program: Program, seen: walk.Seen, told: KernelFacts, types: Types | None) -> Iterator[tuple[int, str]]:
    """A program on a function that reads more arguments than there are (and the result)."""
    name = program.place.name
    if program.place.sort.target is not Target.FUNCTION or not seen.context:
        return
    if types is not None:
        function = next(i for i in types.named(name) if types.kind(i) == Kind.FUNC)
        given = types.parameters(types.target(function))
        parameters = len(given)
        yield from _unreadable(program, seen, told, types, given)
    else:
        words = str(told.ask(Fact(facts.Sort.SIGNATURE, name)).value)
        inside = words[words.rindex("(") + 1 : -1]
        parameters = 0 if inside == "void" else inside.count(",") + 1
    last = max(seen.context) // 8
    if last >= parameters + program.place.at_end:
        yield errno.EACCES, f"func '{name}' doesn't have {last + 1}-th argument"


def _unreadable(
    program: Program, seen: walk.Seen, told: KernelFacts, types: Types, parameters: Sequence[int]
) -> Iterator[tuple[int, str]]:
    """Arguments that are pointers to no struct: a 5.10 lets no program read them, a 6.1 those to integers."""
    for index in sorted({offset // 8 for offset in seen.context}):
        bare = types.bare(parameters[index]) if index < len(parameters) else 0
        if types.kind(bare) != Kind.PTR:
            continue
        target = types.bare(types.target(bare))
        if types.kind(target) in {Kind.VOID, *COMPOSITE}:
            continue
        if told.version <= _STRUCTS_ONLY:
            yield errno.EACCES, f"func '{program.place.name}' arg{index} is no pointer to a struct"
        elif told.version < _INTEGERS_TOO or types.kind(target) != Kind.INT:
            raise CannotTellError(
                f"program {program.name} reads value {index + 1} of {program.place.name}, a pointer to no struct: not "
                "every kernel lets it"
            )


def _uses(program: Program, seen: walk.Seen, at: Situation) -> Iterator[tuple[int, str]]:
    """What helpers and instructions do to maps and their values, in the order of the code."""
    found: list[tuple[int, int, str]] = []
    maps = at.maps
    for call in seen.calls:
        found += [(call.at, code, words) for code, words in _call(call, maps)]
    for access in seen.accesses:
        there = access.pointer
        if there.region == VALUE and not _within(there, access.size, maps):
            size = maps[there.map].value_size
            words = f"invalid access to map value, value_size={size} off={there.offset} size={access.size}"
            found.append((access.at, errno.EACCES, words))
    for _, code, words in sorted(found):
        yield code, words
    if not found:
        _unsure(program, seen, at)


def _within(there: Pointer, size: int, maps: Mapping[str, Definition]) -> bool:
    return there.map not in maps or 0 <= there.offset <= maps[there.map].value_size - size


def _unsure(program: Program, seen: walk.Seen, at: Situation) -> None:
    """CannotTellError where a value that was made smaller goes to a helper that may want more of it."""
    for call in seen.calls:
        for given in call.arguments:
            name = given.map if isinstance(given, Pointer) and given.region == VALUE else ""
            declared = at.whole.declared.get(name)
            if declared is not None and at.maps[name].value_size < declared.value_size:
                raise CannotTellError(f"program {program.name} gives a value of {name}, made smaller, to a helper")


def _call(call: walk.Call, maps: Mapping[str, Definition]) -> Iterator[tuple[int, str]]:
    name = helper_name(call.helper)
    index, wanted = _OUTPUT.get(name, (0, ""))
    given = call.arguments[index]
    if not isinstance(given, Pointer) or given.region != MAP or given.map not in maps:
        return
    definition = maps[given.map]
    sizes = (definition.key_size, definition.value_size)[: _KEY_AND_VALUE.get(name, 0)]
    for argument, size in zip(call.arguments[1:], sizes, strict=False):
        if not size:
            yield errno.EACCES, f"invalid zero-sized read, at: {given.map}"
            return
        if isinstance(argument, Pointer) and argument.region == STACK and argument.offset + size > 0:
            yield errno.EACCES, f"invalid read from stack of {size} bytes"
            return
        if isinstance(argument, Pointer) and argument.region == VALUE and not _within(argument, size, maps):
            yield errno.EACCES, f"invalid access to map value of {argument.map}"
            return
    refused = definition.type != wanted if wanted else definition.type in stores.EVENTS and name in _KEY_AND_VALUE
    if refused:
        number = map_number(definition.type)
        yield errno.EINVAL, f"cannot pass map_type {number} into func {name}#{call.helper}, at: {given.map}"
