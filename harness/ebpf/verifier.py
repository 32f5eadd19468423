"""(pure) What the verifier said, made short.

Law: any text gives one line of at most ``LONGEST`` characters, without instructions, register states and statistics;
where nothing else is left, the last line. The whole log stays behind it, in ``VerifierError.log``.
"""

from __future__ import annotations

import re

LONGEST = 400
_INSTRUCTION = re.compile(r"\d+: ")
_STATISTICS = re.compile(r"processed \d+ insns|verification time|stack depth|max_states_per_insn|-- (BEGIN|END) ")
_STATE = re.compile(r"\s*R\d+(_\w+)?=|from \d+ to \d+|frame\d+:|last_idx |regs=|parent |mark_precise|propagating ")
_REPORT = "Verification failed:"
"""Begins a report of many lines for people, behind the objection: kernels from 7.3 on, perhaps earlier."""


def reason(log: str) -> str:
    """The verifier's objection: the lines after the last instruction, and the source line they belong to."""
    lines = [line.rstrip() for line in log.replace("\0", "").splitlines() if line.strip()]
    said: list[str] = []
    source = ""
    for line in reversed(_without_report(lines)):
        if line.startswith(";"):
            source = line.lstrip("; ").strip()
            break
        if _INSTRUCTION.match(line) or _STATE.match(line):
            if said:
                continue
        elif not _STATISTICS.match(line):
            said.insert(0, line.strip())
    words = "; ".join(said) or (lines[-1].strip() if lines else "the verifier said nothing")
    return (f"{words}, at: {source}" if source else words)[:LONGEST]


def _without_report(lines: list[str]) -> list[str]:
    begin = next((i for i, line in enumerate(lines) if line.startswith(_REPORT)), len(lines))
    return lines[:begin] or lines
