"""Where the files that tests leave in guests are kept: one directory a kernel, whichever of its guests they are from.

Law: no guest's file takes the place of another's; where a name is taken, the file goes below ``guest-NUMBER``.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def keep(incoming: Path, dest: Path, number: int) -> None:
    """Move the files of ``incoming`` into ``dest``; ``number`` is the guest's."""
    for file in sorted(path for path in incoming.rglob("*") if path.is_file()):
        for folder in _folders(dest, number):
            target = folder / file.relative_to(incoming)
            # FileExistsError and NotADirectoryError: an earlier guest's file is in the way.
            with suppress(FileExistsError, NotADirectoryError):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.hardlink_to(file)
                break
    shutil.rmtree(incoming, ignore_errors=True)


def _folders(dest: Path, number: int) -> Iterator[Path]:
    yield dest
    yield dest / f"guest-{number}"
    for again in itertools.count(2):
        yield dest / f"guest-{number}-{again}"
