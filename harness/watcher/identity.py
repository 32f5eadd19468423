"""Which file a path names: device and inode, whatever the path.

Law: hard links, symbolic links, bind mounts and the views of several mount namespaces onto one file have one
identifier; two files that exist at the same time have two.
"""

from __future__ import annotations

import base64
import os
import struct
from typing import NamedTuple

import mmh3

from harness.watcher.errors import InvalidPathError


class PathIdentifier(NamedTuple):
    """A file's identity on this machine."""

    dev: int
    inode: int

    @classmethod
    def of(cls, stat: os.stat_result) -> PathIdentifier:
        """From a stat that has been made."""
        return cls(stat.st_dev, stat.st_ino)

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> PathIdentifier:
        """From the file that ``path`` names now, following symbolic links; raises the stat's ``OSError``."""
        return cls(*identity(path))

    def key(self) -> str:
        """A short name fit for file names and map keys: murmur3 of both numbers in base64, ``/`` as ``@``."""
        packed = struct.pack("<QQ", self.dev, self.inode)
        half = mmh3.hash64(packed, 0, True, signed=False)[0]
        return base64.b64encode(half.to_bytes(8, "little")).decode().replace("/", "@")

    def __str__(self) -> str:
        return f"dev/inode {os.major(self.dev)}.{os.minor(self.dev)}/{self.inode}"


def identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Device and inode of the file that ``path`` names now: what ``PathIdentifier.of_file`` gives, as a bare tuple."""
    try:
        stat = os.stat(path)  # noqa: PTH116 (pathlib costs twice the stat)
    except ValueError as error:
        raise InvalidPathError(f"{path!r} names no file: {error}") from None
    return stat.st_dev, stat.st_ino


class FilePath(NamedTuple):
    """What a registry's callbacks get. For a deactivation only ``id`` is set."""

    id: PathIdentifier
    host_path: str = ""
    pid: int = 0


def host_path(proc_root: str, pid: int, path: str) -> str:
    """Where the host sees ``path`` as process ``pid`` names it: through its root, or its working directory."""
    if not path:
        raise InvalidPathError(f"process {pid}: an empty path names no file")
    return f"{proc_root}/{pid}/root{path}" if path[0] == "/" else f"{proc_root}/{pid}/cwd/{path}"
