"""Files that hold secrets, or that others read while they are written."""

from __future__ import annotations

import os
from pathlib import Path


def publish(file: Path, raw: bytes) -> None:
    """Write ``file``, for its owner alone; whoever opens it sees all of the old or all of the new."""
    part = file.with_name(f".{file.name}.part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
        out.write(raw)
        out.flush()
        os.fsync(out.fileno())
    part.replace(file)
