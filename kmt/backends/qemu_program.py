"""Which QEMU is here, and is it new enough."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path

from kmt import proc
from kmt.errors import VmNeverStartedError

OLDEST = (7, 0)
"""Has every option of ``qemu_args.py``; the oldest that was tried is 7.2 (Debian 12)."""
_INSTALL = "try: apt-get install qemu-system-x86"


def find() -> str:
    """QEMU's path: ``KMT_QEMU``, else from PATH. Raises VmNeverStartedError when it is missing or too old."""
    named = os.environ.get("KMT_QEMU", "qemu-system-x86_64")
    path = proc.which(named)
    if path is None:
        raise VmNeverStartedError(f"{named} is not installed", hint=_INSTALL)
    have = version(path)
    if have < OLDEST:
        old, new = (".".join(map(str, v)) for v in (have, OLDEST))
        raise VmNeverStartedError(f"{path} is QEMU {old}; it takes {new} or newer", hint=_INSTALL)
    return path


def identity(path: str) -> str:
    """What tells this QEMU from any other: its words of itself, size and time of its program."""
    status = Path(path).stat()
    return f"{_said(path).splitlines()[0]} {status.st_size} {status.st_mtime_ns}"


@lru_cache
def version(path: str) -> tuple[int, int, int]:
    """``(7, 2, 22)``. Raises VmNeverStartedError when it is no QEMU."""
    match = re.search(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?", _said(path))
    if match is None:
        raise VmNeverStartedError(f"{path} --version does not speak of QEMU: {_said(path)}", hint=_INSTALL)
    major, minor, patch = (int(number or 0) for number in match.groups())
    return major, minor, patch


@lru_cache
def _said(path: str) -> str:
    said = proc.run([path, "--version"], check=False, timeout=30, error=VmNeverStartedError)
    return said.stdout or said.tail(1)
