"""What a run's guests left (consoles, QEMU's words, artefacts of tests), copied where ``--kernel-logs`` wants it.

Laws: only regular files are copied, and none over ``MOST_MIB`` (cores of dead guests stay in the cache); what is left
behind is named; nothing is written outside the directory.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from kmt.errors import ConfigError

MOST_MIB = 64


def copy(kernel_dir: Path, target: Path) -> list[str]:
    """Copy one kernel's files below ``target``; what stayed behind, in words. ConfigError: it cannot be written."""
    left = []
    try:
        for file in sorted(_regular(kernel_dir)):
            name = file.relative_to(kernel_dir)
            if file.stat().st_size > MOST_MIB << 20:
                left.append(f"not copied: {name} (larger than {MOST_MIB} MiB: in {file})")
                continue
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / name)
    except OSError as error:
        where = error.filename2 or error.filename or target
        raise ConfigError(f"{where}: {error.strerror}", hint="name another directory for logs") from None
    return left


def _regular(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
