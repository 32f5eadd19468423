"""(pure) The files that a process has mapped, from the text of its ``/proc/<pid>/maps``.

Laws: only lines of exactly six fields with an inode other than 0 count, so anonymous regions, deleted files (marked
by a seventh field) and paths with spaces never do; each path comes once, in the order of first appearance; no
input raises.
"""

from __future__ import annotations

import os


def mappings(maps: bytes) -> dict[str, str]:
    """The distinct paths, each with the address range of its first mapping as the line has it.

    Bytes of a path that are no UTF-8 survive as ``os.fsdecode`` has them.
    """
    found: dict[bytes, bytes] = {}
    for line in maps.split(b"\n"):
        fields = line.split()
        if len(fields) == 6 and fields[4] != b"0" and fields[5] not in found:
            found[fields[5]] = fields[0]
    # The kernel writes a newline in a path as \012 and nothing else in another form (fs/proc/task_mmu.c).
    return {os.fsdecode(path.replace(b"\\012", b"\n")): os.fsdecode(at) for path, at in found.items()}


def mapped_files(maps: bytes) -> list[str]:
    """The distinct paths."""
    return list(mappings(maps))


def map_file(at: str) -> str:
    """The name in ``/proc/<pid>/map_files`` of an address range: there without leading zeros. ValueError if none."""
    begin, end = at.split("-")
    return f"{int(begin, 16):x}-{int(end, 16):x}"
