"""(pure) The files that a process has mapped, from the text of its ``/proc/<pid>/maps``.

Laws: only lines of exactly six fields with an inode other than 0 count, so anonymous regions, deleted files (marked
by a seventh field) and paths with spaces never do; each path comes once, in the order of first appearance; no
input raises.
"""

from __future__ import annotations

import os


def mapped_files(maps: bytes) -> list[str]:
    """The distinct paths as the process names them. Bytes that are no UTF-8 survive as ``os.fsdecode`` has them."""
    found: dict[bytes, None] = {}
    for line in maps.split(b"\n"):
        fields = line.split()
        if len(fields) == 6 and fields[4] != b"0":
            found[fields[5]] = None
    # The kernel writes a newline in a path as \012 and nothing else in another form (fs/proc/task_mmu.c).
    return [os.fsdecode(path.replace(b"\\012", b"\n")) for path in found]
