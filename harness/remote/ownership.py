"""(pure, but for ``check_owner``) Whose a file is, before anything in it is believed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from harness.remote.errors import TamperedError


def check_owner(status: os.stat_result, path: Path) -> None:
    """Raise ``TamperedError`` unless the file or directory is this user's and nobody else's to write."""
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise TamperedError(
            f"{path} can be written by others (owner {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o})",
            hint="it must belong to this user and be writable by no other",
        )
