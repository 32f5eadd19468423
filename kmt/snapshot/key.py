"""(pure) Which snapshot fits a machine: a digest of everything that its memory or its devices depend on.

Law: two machines have one key only when all of these are equal: the recipe of snapshots, QEMU (its words of itself
and its binary), the accelerator and the processor below it, the kernel, every file that is attached (which the
agent is part of), and every word of the command line. A snapshot is never used for another machine; one that fits
none any more is the oldest some day, and goes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

RECIPE = 2
"""Raise it when a snapshot of the same machine would hold something else."""


@dataclass(frozen=True)
class Ingredients:
    """What goes into a key. ``files`` maps each attached path to an identity of its content."""

    qemu: str
    accelerator: str
    processor: str
    kernel: str
    files: Mapping[str, str]
    argv: Sequence[str]
    modules: Sequence[str] = ()
    """What was loaded besides."""


def key(made_of: Ingredients) -> str:
    """The snapshot's name: 32 hexadecimal digits. Paths count by what they hold, not by where they lie."""
    parts = asdict(made_of)
    files = parts.pop("files")
    parts["argv"] = [_without_paths(word, files) for word in made_of.argv]
    parts["files"] = sorted(files.values())
    parts["recipe"] = RECIPE
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _without_paths(word: str, files: Mapping[str, str]) -> str:
    # Longest first: one path may be the beginning of another. QEMU's options have commas in paths doubled.
    for path in sorted(files, key=len, reverse=True):
        for spelled in (path.replace(",", ",,"), path):
            word = word.replace(spelled, f"<{files[path]}>")
    return word
