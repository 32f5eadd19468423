"""(pure) One question about a kernel, and what a profile answers.

Law: a profile answers what it was recorded with and nothing else; what it was not asked, or could not tell, is None.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from kmt.simulator.profile import Profile

Value = bool | str


class Sort(StrEnum):
    """What a fact is about, and so what its name is and what its value."""

    PROGRAM_TYPE = "program_type"
    """``kprobe``: whether such programs load."""
    MAP_TYPE = "map_type"
    ATTACH_TYPE = "attach_type"
    """``trace_kprobe_multi``: whether the kernel knows such a place."""
    HELPER = "helper"
    """``bpf_loop``: whether the kernel has it for any program."""
    CALL = "call"
    """``kprobe bpf_loop``: whether such programs may call it."""
    FUNCTION = "function"
    """``tcp_close``: whether the kernel has it."""
    SIGNATURE = "signature"
    """``tcp_close``: its result and parameters, in words."""
    TRACEPOINT = "tracepoint"
    """``tcp:tcp_retransmit_skb``."""
    MARK = "mark"
    """A function that is there with a feature."""
    OPTION = "option"
    """``BPF_LSM``: ``y``, ``m``, ``n`` or its value."""


class Fact(NamedTuple):
    """A question: ``Fact(Sort.MAP_TYPE, "ringbuf")``."""

    sort: Sort
    name: str

    def __str__(self) -> str:
        words = {Sort.CALL: "helper call", Sort.MARK: "kernel function"}
        return f"{words.get(self.sort, self.sort.replace('_', ' '))} {self.name}"


def recorded(profile: Profile, fact: Fact) -> Value | None:
    """What the profile says; None where it does not."""
    sort, name = fact
    if sort is Sort.PROGRAM_TYPE:
        return profile.program_types.get(name)
    if sort is Sort.MAP_TYPE:
        return profile.map_types.get(name)
    if sort is Sort.OPTION:
        return profile.config.get(name)
    if sort is Sort.MARK:
        return profile.marks.get(name)
    if sort in (Sort.FUNCTION, Sort.SIGNATURE):
        return _function(profile, fact)
    if sort is Sort.TRACEPOINT:
        # A group that is not there may be a module's that was not loaded.
        group = name.partition(":")[0] + ":"
        return name in profile.tracepoints if any(event.startswith(group) for event in profile.tracepoints) else None
    if sort is Sort.ATTACH_TYPE:
        return name in profile.attach_types if profile.btf else None
    return _helper(profile, fact)


def _function(profile: Profile, fact: Fact) -> Value | None:
    function = profile.functions.get(fact.name)
    if function is None:
        return None
    if fact.sort is Sort.FUNCTION:
        return function.symbol
    return None if function.signature is None else str(function.signature)


def _helper(profile: Profile, fact: Fact) -> Value | None:
    kind, _, name = fact.name.rpartition(" ")
    known = name in profile.other_helpers or any(name in helpers for helpers in profile.helpers.values())
    if fact.sort is Sort.HELPER:
        return known if profile.btf else None
    if kind in profile.helpers:
        return name in profile.helpers[kind]
    if profile.program_types.get(kind) is False or (profile.btf and not known):
        return False
    return None
