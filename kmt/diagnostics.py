"""(pure) What a compiler says, made short: the files that it read, and its first errors."""

from __future__ import annotations

import re

_ERROR = re.compile(r"([^\s:][^:]*(:\d+){0,2}: )?(fatal )?error: |LLVM ERROR: |.*undefined reference to ")
_NEXT = re.compile(r"[^\s:][^:]*:\d+:\d+: |In file included from |\d+ (error|warning)s? |PLEASE submit a bug report")


def dependencies(text: str) -> list[str]:
    """The files that a rule written by ``-MMD`` names, the source first."""
    _, _, names = text.replace("\\\n", " ").partition(": ")
    return [re.sub(r"\\([ #])", r"\1", name).replace("$$", "$") for name in re.findall(r"(?:\\.|[^\s\\])+", names)]


def explain(said: str, status: int, most: int = 3) -> str:
    """The compiler's first errors, each with place, reason and line; warnings and notes are left out."""
    lines = said.splitlines()
    starts = [number for number, line in enumerate(lines) if _ERROR.match(line)]
    if not starts:
        return "\n".join(lines[-6:]) or f"it ended with status {status} and said nothing"
    shown = []
    for start in starts[:most]:
        end = next((n for n in range(start + 1, len(lines)) if _NEXT.match(lines[n])), len(lines))
        shown += lines[start : min(end, start + 5)]
    if len(starts) > most:
        shown.append(f"(and {len(starts) - most} more)")
    return "\n".join(shown)
