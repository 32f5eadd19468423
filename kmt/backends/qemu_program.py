"""Which QEMU is here, and is it new enough."""

from __future__ import annotations

import os
import re
from functools import lru_cache

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


@lru_cache
def version(path: str) -> tuple[int, int, int]:
    """``(7, 2, 22)``. Raises VmNeverStartedError when it is no QEMU."""
    said = proc.run([path, "--version"], check=False, timeout=30, error=VmNeverStartedError)
    match = re.search(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?", said.stdout)
    if match is None:
        raise VmNeverStartedError(f"{path} --version does not speak of QEMU: {said.tail(1)}", hint=_INSTALL)
    major, minor, patch = (int(number or 0) for number in match.groups())
    return major, minor, patch
