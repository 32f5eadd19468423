"""Files that become kernel code: opened only if nobody but root could have written them.

Law: what is checked is what is read (the open file, not its name); the directory part of a requested name is
dropped, so that no name leads out of the asset directory.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from harness.errors import AssetError

_OTHERS_WRITE = 0o022


def open_asset(directory: Path, name: str) -> BinaryIO:
    """Open ``name`` in ``directory`` after the permission check. AssetError says which of the rules it breaks."""
    path = directory / Path(name).name
    try:
        file = path.open("rb")
    except OSError as error:
        raise AssetError(f"could not find asset {path}: {error.strerror}", hint="build the programs first") from None
    try:
        check_owner(path, os.fstat(file.fileno()))
    except AssetError:
        file.close()
        raise
    return file


def check_owner(path: Path, status: os.stat_result) -> None:
    """(pure) A regular file of root and its group that no other may write, or AssetError."""
    if not stat.S_ISREG(status.st_mode):
        raise AssetError(f"asset {path} is no regular file")
    if status.st_uid or status.st_gid or status.st_mode & _OTHERS_WRITE:
        raise AssetError(
            f"asset {path} has owner {status.st_uid}, group {status.st_gid}, mode {stat.S_IMODE(status.st_mode):04o}",
            hint=f"chown 0:0 {path} && chmod go-w {path}",
        )
