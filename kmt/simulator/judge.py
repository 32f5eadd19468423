"""(pure) A program against a kernel's own files: would it load and attach there?

What is asked: its type and place, the types of all maps of its object, the helpers that its code reaches, what it is
attached to, how many arguments it reads, and its relocations. Laws: "no" has a reason that the kernel's files, a
profile or a gate give; what they do not answer is "cannot tell" with what is missing; "yes" says that nothing speaks
against it, for only the verifier knows the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from kmt.simulator import facts, reach, uapi, walk
from kmt.simulator.derive import KernelFacts
from kmt.simulator.facts import Fact
from kmt.simulator.objects import EbpfObject, Program
from kmt.simulator.sections import Target
from kmt.simulator.types import COMPOSITE, Kind, Types


class Answer(StrEnum):
    """What is known of one requirement, or of all."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True)
class Finding:
    """One requirement. ``fact`` is what gates may know of it, where there is such a one."""

    answer: Answer
    words: str
    fact: Fact | None = None


@dataclass(frozen=True)
class Image:
    """A kernel image: its types, its configuration by option, and what is otherwise told of its series."""

    name: str
    release: str
    types: Types
    config: dict[str, str]
    told: KernelFacts


@dataclass(frozen=True)
class Names:
    """What numbers in an object mean: helpers and map types, as the newest kernel at hand has them."""

    helpers: dict[int, str]
    maps: dict[int, str]

    @classmethod
    def of(cls, newest: Types) -> Names:
        """Out of its BTF."""
        return cls(_names(newest, "bpf_func_id", "BPF_FUNC_", "bpf_"), _names(newest, "bpf_map_type", "BPF_MAP_TYPE_"))

    def helper(self, number: int) -> str:
        """Its name, or its number."""
        return self.helpers.get(number, f"number {number}")

    def map(self, number: int) -> str:
        """A map type's name, or its number."""
        return self.maps.get(number, f"number {number}")


_DEPRECATED = "_DEPRECATED"


def _names(types: Types, enumeration: str, prefix: str, before: str = "") -> dict[int, str]:
    """Names by numbers; of several of one number the first that is not called deprecated, which older kernels have."""
    found: dict[int, str] = {}
    for name, number in sorted(types.enumeration(enumeration).items(), key=lambda item: item[0].endswith(_DEPRECATED)):
        found.setdefault(number, before + name.removeprefix(prefix).lower())
    return found


def overall(findings: list[Finding]) -> Answer:
    """No before cannot tell before yes."""
    answers = {finding.answer for finding in findings}
    return next((a for a in (Answer.NO, Answer.UNKNOWN) if a in answers), Answer.YES)


def judge(program: Program, whole: EbpfObject, image: Image, names: Names) -> list[Finding]:
    """All findings on one program. Raises CannotTellError."""
    reached, unmet = reach.follow(program.code, whole, image.types)
    missing = [Finding(Answer.NO, said.words) for said in unmet]
    helpers = sorted(reached.helpers)
    return [
        *_kinds(program, whole, image, names),
        *(_helper(program, number, image, names) for number in helpers),
        *_licence(program, whole, image, [names.helper(number) for number in helpers]),
        *_target(program, image),
        *_arguments(program, reached, image),
        *missing,
        *([Finding(Answer.UNKNOWN, "it calls functions of the kernel (kfuncs)")] if reached.kfuncs else []),
    ]


def required(program: Program, whole: EbpfObject, newest: Types, names: Names) -> Iterator[Fact]:
    """What gates may know of a program's needs, its code followed as on ``newest``."""
    reached, _ = reach.follow(program.code, whole, newest)
    sort = program.place.sort
    yield Fact(facts.Sort.PROGRAM_TYPE, sort.program_type)
    if sort.attach_type:
        yield Fact(facts.Sort.ATTACH_TYPE, sort.attach_type)
    for number in sorted(set(whole.maps.values())):
        yield Fact(facts.Sort.MAP_TYPE, names.map(number))
    for number in sorted(reached.helpers):
        yield _call_fact(program, names.helper(number))
    if sort.target in (Target.FUNCTION, Target.SYMBOL):
        yield Fact(facts.Sort.FUNCTION, program.place.name)
    if sort.target is Target.TRACEPOINT:
        yield Fact(facts.Sort.TRACEPOINT, program.place.name.replace("/", ":"))


def _call_fact(program: Program, helper: str) -> Fact:
    if program.place.sleepable:  # they may call more, and profiles have the others
        return Fact(facts.Sort.HELPER, helper)
    return Fact(facts.Sort.CALL, f"{program.place.sort.program_type} {helper}")


def _kinds(program: Program, whole: EbpfObject, image: Image, names: Names) -> Iterator[Finding]:
    sort, types = program.place.sort, image.types
    yield _named(image, Fact(facts.Sort.PROGRAM_TYPE, sort.program_type), "bpf_prog_type", "BPF_PROG_TYPE_")
    if sort.attach_type:
        yield _named(image, Fact(facts.Sort.ATTACH_TYPE, sort.attach_type), "bpf_attach_type", "BPF_")
    if sort.attach_type.startswith("trace_kprobe"):
        there, mark = bool(types.named("register_fprobe_ips")), Fact(facts.Sort.MARK, "register_fprobe_ips")
        words = "fprobe" if there else "it has no fprobe (CONFIG_FPROBE)"
        yield Finding(Answer.YES if there else Answer.NO, words, mark)
    for number in sorted(set(whole.maps.values())):
        yield _named(image, Fact(facts.Sort.MAP_TYPE, names.map(number)), "bpf_map_type", "BPF_MAP_TYPE_")


def _named(image: Image, fact: Fact, enumeration: str, prefix: str) -> Finding:
    """By the kernel's own headers, then by what a profile or gates say of its configuration."""
    if prefix + fact.name.upper() not in image.types.enumeration(enumeration):
        return Finding(Answer.NO, f"it has no {fact}", fact)
    for option in image.told.needs(fact):
        if image.config.get(option, "") in ("", "n"):
            known = option in image.config
            words = f"{fact} needs CONFIG_{option}" + ("" if known else ", and its configuration is not at hand")
            return Finding(Answer.NO if known else Answer.UNKNOWN, words, fact)
    return Finding(Answer.YES, str(fact), fact)


def _helper(program: Program, number: int, image: Image, names: Names) -> Finding:
    name = names.helper(number)
    fact = _call_fact(program, name)
    if number not in image.types.enumeration("bpf_func_id").values():
        return Finding(Answer.NO, f"it has no helper {name}", fact)
    if program.place.sleepable:
        return Finding(Answer.YES, str(fact), fact)
    told = image.told.told(fact)
    if told is None:
        return Finding(Answer.UNKNOWN, f"whether {program.place.sort.program_type} programs may call {name}", fact)
    words = f"{program.place.sort.program_type} programs may {'' if told.value else 'not '}call {name}"
    return Finding(Answer.YES if told.value else Answer.NO, words, fact)


def _licence(program: Program, whole: EbpfObject, image: Image, helpers: list[str]) -> Iterator[Finding]:
    """What is lent to programs under the GPL only, where this is none."""
    kind = program.place.sort.program_type
    for helper in () if uapi.gpl(whole.license) else helpers:
        if uapi.gpl_only(helper.removeprefix("bpf_"), kind, image.told.version):
            yield Finding(Answer.NO, f"{helper} is for programs under the GPL, and its license is {whole.license!r}")


def _target(program: Program, image: Image) -> Iterator[Finding]:
    target, name, types = program.place.sort.target, program.place.name, image.types
    kinds = {types.kind(i) for i in types.named(name)} if name else set()
    fact = Fact(facts.Sort.FUNCTION, name)
    if not name or target is Target.NOTHING:
        return
    if target is Target.FUNCTION:
        if not types.named("arch_prepare_bpf_trampoline"):
            yield Finding(Answer.NO, "it has no BPF trampoline", Fact(facts.Sort.MARK, "arch_prepare_bpf_trampoline"))
        found = Kind.FUNC in kinds
        yield Finding(Answer.YES if found else Answer.NO, f"its BTF has {'a' if found else 'no'} function {name}", fact)
    elif target is Target.SYMBOL:
        yield _symbol(image, name, Kind.FUNC in kinds, fact)
    elif target is Target.SYSCALL:
        found = bool(types.named(f"__x64_sys_{name}"))
        yield Finding(Answer.YES if found else Answer.UNKNOWN, f"system call {name}")
    elif target is Target.LSM_HOOK:
        found = bool(types.named(f"bpf_lsm_{name}"))
        yield Finding(Answer.YES if found else Answer.NO, f"it has {'the' if found else 'no'} LSM hook {name}")
    elif target is Target.RAW_TRACEPOINT:
        found = bool(types.named(f"btf_trace_{name}"))
        yield Finding(Answer.YES if found else Answer.NO, f"it has {'the' if found else 'no'} tracepoint {name}")
    elif target is Target.TRACEPOINT:
        yield _tracepoint(image, name)


def _symbol(image: Image, name: str, in_btf: bool, fact: Fact) -> Finding:
    told = image.told.told(fact)
    if in_btf or (told is not None and told.value):
        return Finding(Answer.YES, str(fact), fact)
    if told is not None:
        return Finding(Answer.NO, f"it has no function {name}", fact)
    return Finding(Answer.UNKNOWN, f"its BTF has no function {name}; the symbol table may", fact)


def _tracepoint(image: Image, name: str) -> Finding:
    group, _, event = name.partition("/")
    fact = Fact(facts.Sort.TRACEPOINT, f"{group}:{event}")
    told = image.told.told(fact)
    if told is not None:
        words = f"it has {'the' if told.value else 'no'} {fact}"
        return Finding(Answer.YES if told.value else Answer.NO, words, fact)
    call = event.removeprefix("sys_enter_").removeprefix("sys_exit_")
    there = image.types.named(f"__x64_sys_{call}" if group == "syscalls" else f"btf_trace_{event}")
    return Finding(Answer.YES if there else Answer.UNKNOWN, str(fact), fact)


def _arguments(program: Program, reached: walk.Seen, image: Image) -> Iterator[Finding]:
    """A fentry or fexit program that reads more arguments than the function has (and its result) is refused."""
    if program.place.sort.target is not Target.FUNCTION or not reached.context:
        return
    function = next((i for i in image.types.named(program.place.name) if image.types.kind(i) == Kind.FUNC), None)
    if function is None:
        return
    types, fact = image.types, Fact(facts.Sort.SIGNATURE, program.place.name)
    parameters = types.parameters(types.target(function))
    read = sorted({offset // 8 for offset in reached.context})
    if read[-1] >= len(parameters) + program.place.at_end:
        has = f"{len(parameters)}{' and a result' if program.place.at_end else ''}"
        yield Finding(Answer.NO, f"it reads value {read[-1] + 1} of {program.place.name}, which has {has}", fact)
    for index in read:
        if index < len(parameters) and not _readable(types, parameters[index]):
            words = (
                f"it reads value {index + 1} of {program.place.name}, a pointer to no struct: not every kernel lets it"
            )
            yield Finding(Answer.UNKNOWN, words)


def _readable(types: Types, parameter: int) -> bool:
    """No pointer, or one to a struct or void: btf_ctx_access of a 5.10 refuses others, that of a 6.1 not all."""
    bare = types.bare(parameter)
    return types.kind(bare) != Kind.PTR or types.kind(types.bare(types.target(bare))) in {Kind.VOID, *COMPOSITE}
