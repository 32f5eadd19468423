"""(pure, but for ``file_refusal``) Where programs can be attached in a simulated kernel, and what is said where not.

Laws: as in ``verify``: an error number is one that a fact gives; what no fact answers is a CannotTellError. Error
numbers: what libbpf 1.5 returns.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from kmt.errors import CannotTellError
from kmt.simulator import facts
from kmt.simulator.derive import KernelFacts
from kmt.simulator.facts import Fact
from kmt.simulator.objects import Program
from kmt.simulator.sections import Target
from kmt.simulator.stores import ENOTSUPP
from kmt.simulator.types import Types

Symbols = Callable[[Collection[str]], frozenset[str]]
_ATTACHES_AGAIN = (5, 13)
"""commit f3a95075549e: a program on a function can be attached again after it was taken off."""


def by_section(program: Program, told: KernelFacts, types: Types | None, symbols: Symbols, *, again: bool) -> int:
    """0, or why a program cannot be attached where its section says. ``again``: it was taken off before."""
    target, name = program.place.sort.target, program.place.name
    if target is Target.NOTHING or not name:
        return errno.EOPNOTSUPP
    if target is Target.SYMBOL:
        return 0 if symbols([name]) else errno.ENOENT
    if target is Target.FUNCTION:
        if told.ask(Fact(facts.Sort.MARK, "arch_prepare_bpf_trampoline")).value is False:
            return ENOTSUPP
        return errno.ENOENT if again and told.version < _ATTACHES_AGAIN else 0
    if target is Target.TRACEPOINT:
        return 0 if _tracepoint(name, told, types) else errno.ENOENT
    raise CannotTellError(f"attaching {program.name} to {program.section} is not simulated")


def _tracepoint(name: str, told: KernelFacts, types: Types | None) -> bool:
    group, _, event = name.partition("/")
    said = told.told(Fact(facts.Sort.TRACEPOINT, f"{group}:{event}"))
    if said is not None:
        return said.value is True
    call = event.removeprefix("sys_enter_").removeprefix("sys_exit_")
    if types is not None and types.named(f"__x64_sys_{call}" if group == "syscalls" else f"btf_trace_{event}"):
        return True
    raise CannotTellError(f"whether Linux {told.version[0]}.{told.version[1]} has the tracepoint {name}")


def many_functions(told: KernelFacts, symbols: Symbols, functions: Sequence[str]) -> int:
    """0, or why a multi-kprobe cannot be attached to these."""
    if not functions:
        return errno.EINVAL
    if told.ask(Fact(facts.Sort.ATTACH_TYPE, "trace_kprobe_multi")).value is False:
        return errno.EINVAL
    if told.ask(Fact(facts.Sort.MARK, "register_fprobe_ips")).value is False:
        return errno.EOPNOTSUPP
    return 0 if symbols(functions) == frozenset(functions) else errno.ESRCH


def many_places(told: KernelFacts, file: str, offsets: Sequence[int]) -> int:
    """0, or why a multi-uprobe cannot be attached there."""
    if not offsets or told.ask(Fact(facts.Sort.ATTACH_TYPE, "trace_uprobe_multi")).value is False:
        return errno.EINVAL
    return file_refusal(file, offsets, errno.EBADF)


def file_refusal(file: str, offsets: Sequence[int], irregular: int = errno.EINVAL) -> int:
    """0, or why no uprobe can be set at these places of a file; ``irregular``: what is said of one that is no file."""
    try:
        status = Path(file).stat()
    except OSError as error:
        return error.errno or errno.ENOENT
    if not stat.S_ISREG(status.st_mode):
        return irregular
    return 0 if all(0 <= offset <= status.st_size for offset in offsets) else errno.EINVAL
