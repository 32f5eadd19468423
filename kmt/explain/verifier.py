"""(pure) The verifier's objection in what a failing test said, whichever library loaded the program.

Laws: a log that a test printed is no rejection unless its failure says so (a chain of fallbacks prints many); the
objection is one line, neither an instruction nor a register state; of several logs the last one counts.
"""

from __future__ import annotations

import re

_END = re.compile(r"^processed \d+ insns\b", re.MULTILINE)
"""The last line of every log since 4.15 (``print_verification_stats``)."""
_NO_OBJECTION = re.compile(
    r"\d+: |;|\s*R\d+(_\w+)?=|from \d+ to \d+|frame\d+:|last_idx |regs=|parent |mark_precise|propagating "
    r"|verification time|stack depth|-- (BEGIN|END) |max_states_per_insn|\s*$"
)
_ERROR = re.compile(
    r"^.*(?:\bVerifierError\b|BPF program load failed|[Ff]ailed to load BPF program"
    r"|\bprog load\b|failed to load: -(?:13|22)\b).*$",
    re.MULTILINE,
)
"""What Python classes of that name, libbpf, bcc and bpftool say."""
_SEARCHED = 1 << 18
_LINES = 400


def objection(message: str, captured: str = "") -> str:
    """One line; empty where the failure's own ``message`` does not say that a program was refused.

    A log may stand in the message itself or in what the test printed. Only their last 256 Ki characters are searched.
    """
    message = message[-_SEARCHED:]
    if found := _last_log(message):
        return found
    errors = _ERROR.findall(message)
    return (_last_log(captured[-_SEARCHED:]) or str(errors[-1]).strip()) if errors else ""


def _last_log(text: str) -> str:
    ends = [match.start() for match in _END.finditer(text)]
    lines = text[: ends[-1]].splitlines()[-_LINES:] if ends else []
    return next((line.strip() for line in reversed(lines) if not _NO_OBJECTION.match(line)), "")
