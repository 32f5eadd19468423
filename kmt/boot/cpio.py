"""(pure) cpio archives in the "newc" format: what an initramfs is made of.

Laws: the same entries give the same bytes; an archive is padded to 512 bytes, so that archives can be concatenated
(the kernel unpacks them one after the other). Format: Documentation/driver-api/early-userspace/buffer-format.rst
of the kernel.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One member: ``mode`` holds type and permissions, ``data`` a file's content or a link's target."""

    name: str
    mode: int
    data: bytes = b""


def file(name: str, data: bytes, *, executable: bool = False) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)


def directory(name: str) -> Entry:
    """A directory; its parents must come before it."""
    return Entry(name, stat.S_IFDIR | 0o755)


def link(name: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def archive(entries: Iterable[Entry]) -> bytes:
    """The entries as one archive; all belong to root and have no time."""
    out = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], 1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        _pad(out, 4)
        out += entry.data
        _pad(out, 4)
    _pad(out, 512)
    return bytes(out)


def _pad(out: bytearray, size: int) -> None:
    out += bytes(-len(out) % size)
