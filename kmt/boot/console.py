"""(pure) What a guest's serial console says about it: the phase it is in, and the one line that tells why it died.

Laws: memory is bounded whatever is fed, in whatever slices; the same bytes in any slices give the same answer;
bytes that are no text and terminal control sequences are harmless. Only lines with the kernel's time stamp
(``printk.time=1``) count as the kernel's, so a program that merely prints "Kernel panic" is not believed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LINE_LIMIT = 2048
"""Bytes of a line that are looked at; the rest of a longer one is passed over."""
READY = "kmt: ready"
"""What ``kmt/guest/init.sh`` prints when the machine is as tests expect it."""

_STAMP = re.compile(r"\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? (.*)")
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[@-Z\\-_]|[\x00-\x08\x0b-\x1f\x7f]")
_INSTRUCTION = re.compile(r"RIP: \S*?:(\S+)")
_KINDS = (
    ("panic", re.compile(r"Kernel panic - not syncing")),
    # "[#1]" counts the kernel's own faults; a program's fault has the same words without it.
    (
        "oops",
        re.compile(r"BUG: unable to handle|BUG: kernel NULL pointer|: [0-9a-f]{4} \[#\d+\]|BUG: KASAN|BUG: KFENCE"),
    ),
    ("bug", re.compile(r"kernel BUG at|BUG: scheduling while atomic|BUG: Bad |BUG: sleeping function")),
    (
        "stall",
        re.compile(r"soft lockup|hard LOCKUP|rcu.*(self-)?detected stall|workqueue lockup|blocked for more than"),
    ),
    ("oom", re.compile(r"^Out of memory: Killed process")),
)
_FATAL = ("oops", "panic")


@dataclass(frozen=True)
class Finding:
    """The first line of its kind (panic, oops, bug, stall, oom) and, of a fault, the function it was in."""

    kind: str
    line: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.line} in {self.where}" if self.where else self.line


class Console:
    """Takes the console's bytes; knows the phase and what went wrong."""

    def __init__(self) -> None:
        self._partial = b""
        self._findings: dict[str, Finding] = {}
        self._last_kind = ""
        self.lines = 0
        """Lines with something in them so far; 0: the machine has not said a word."""
        self.ready = False
        self.words = ""
        """The last line that ``kmt``'s own init said."""

    def feed(self, data: bytes) -> None:
        """Take more bytes, in slices of any size."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._line(line[:LINE_LIMIT])
        self._partial = self._partial[:LINE_LIMIT]

    def end(self) -> None:
        """No more will come: what is left is a line too."""
        self.feed(b"\n")

    @property
    def phase(self) -> str:
        """``starting``, ``booting``, ``ready``, ``out of memory``, ``stall``, ``bug``, ``oops`` or ``panic``."""
        for kind, word in (("panic",) * 2, ("oops",) * 2, ("bug",) * 2, ("stall",) * 2, ("oom", "out of memory")):
            if kind in self._findings:
                return word
        if self.ready:
            return "ready"
        return "booting" if self.lines else "starting"

    @property
    def fatal(self) -> Finding | None:
        """Why the kernel died: the fault, else the panic; None while it has neither."""
        found = [self._findings[kind] for kind in _FATAL if kind in self._findings]
        return found[0] if found else None

    @property
    def panicked(self) -> bool:
        """True once the kernel has given up for good."""
        return "panic" in self._findings

    def finding(self, kind: str) -> Finding | None:
        """The first line of that kind."""
        return self._findings.get(kind)

    def remarks(self) -> list[str]:
        """What a person wants to know of a guest that hangs: the kernel's own words on stalls and memory."""
        found = (self.finding(kind) for kind in ("oops", "bug", "stall", "oom"))
        return [str(finding) for finding in found if finding]

    def _line(self, raw: bytes) -> None:
        text = _CONTROL.sub("", raw.decode("utf-8", "replace")).strip()
        if not text:
            return
        self.lines += 1
        if text.startswith("kmt: "):
            self.words = text
            self.ready = self.ready or text == READY
        stamped = _STAMP.search(text)
        if stamped:
            self._kernel_line(stamped.group(1))

    def _kernel_line(self, said: str) -> None:
        for kind, pattern in _KINDS:
            if kind not in self._findings and pattern.search(said):
                self._findings[kind] = Finding(kind, said[:500])
                self._last_kind = kind
        at = _INSTRUCTION.search(said)
        fault = self._findings.get(self._last_kind)
        if at and fault and not fault.where and fault.kind in ("oops", "bug", "stall"):
            self._findings[fault.kind] = Finding(fault.kind, fault.line, at.group(1))
