"""Which of a project's files travel to a guest, and how.

Laws: what git knows plus untracked files that it does not ignore (without git: everything but caches and virtual
environments); links travel as links; a file over the limit stays behind and is named; names with spaces or
newlines, or that are no UTF-8, are names like any other. The guest unpacks them at the same absolute path.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO

from kmt import proc
from kmt.errors import ConfigError
from kmt.text import visible

SKIPPED_WITHOUT_GIT = frozenset(
    {".git", ".hg", ".venv", "venv", ".tox", "__pycache__", ".mypy_cache", ".pytest_cache", "node_modules"}
)


@dataclass(frozen=True)
class Tree:
    """Paths relative to ``root`` that travel, and those that do not with why."""

    root: Path
    paths: tuple[str, ...]
    left_out: tuple[str, ...]


def survey(root: Path, limit_mib: int) -> Tree:
    """Look at ``root`` and decide."""
    taken: list[str] = []
    left: list[str] = []
    closed: list[str] = []
    for name in sorted(set(_names(root, closed))):
        shown = visible(name)
        try:
            status = (root / name).lstat()
        except (FileNotFoundError, NotADirectoryError):  # tracked and deleted, or its directory is a file now
            continue
        except PermissionError:
            left.append(f"{shown} (its directory is not readable)")
            continue
        if stat.S_ISREG(status.st_mode) and status.st_size > limit_mib << 20:
            left.append(f"{shown} ({status.st_size >> 20} MiB is over the limit of {limit_mib} MiB)")
        elif stat.S_ISREG(status.st_mode) and not os.access(root / name, os.R_OK):
            left.append(f"{shown} (not readable)")
        elif stat.S_ISDIR(status.st_mode):
            left.append(f"{shown} (a repository of its own that git does not list)")
        elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
            taken.append(name)
    left += [f"{visible(name)} (not readable)" for name in closed]
    return Tree(root, tuple(taken), tuple(left))


def _names(root: Path, closed: list[str]) -> Iterator[str]:
    """What there is; without git, the directories that could not be read are put into ``closed``."""
    if proc.which("git") and _in_repository(root):
        # Two listings, for git looks into submodules only for what is tracked.
        for words in (("--others", "--exclude-standard"), ("--cached", "--recurse-submodules")):
            listing = ["git", "-C", str(root), "ls-files", "-z", *words]
            said = proc.run(listing, error=ConfigError, undecodable="surrogateescape")
            yield from filter(None, said.stdout.split("\0"))
        return
    for directory, folders, files in os.walk(
        root, onerror=lambda error: closed.append(os.path.relpath(error.filename, root))
    ):
        folders[:] = [f for f in folders if f not in SKIPPED_WITHOUT_GIT and not f.endswith(".egg-info")]
        links = [f for f in folders if (Path(directory) / f).is_symlink()]
        for name in [*files, *links]:
            yield os.path.relpath(Path(directory) / name, root)


def _in_repository(root: Path) -> bool:
    return any((folder / ".git").exists() for folder in (root, *root.parents))


def write_tar(tree: Tree, target: IO[bytes], more: Mapping[str, bytes] = MappingProxyType({})) -> None:
    """Write the tree as a tar stream, and ``more`` files (path and content) behind it.

    A file that vanished, or may no longer be read, since the survey is left out.
    """
    with tarfile.open(fileobj=target, mode="w|") as tar:
        add_tree(tar, tree)
        for name, content in more.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def add_tree(tar: tarfile.TarFile, tree: Tree, *, under: str = "") -> None:
    """Add it to a tar, below ``under``."""
    for name in tree.paths:
        try:
            tar.add(tree.root / name, arcname=Path(under) / name, recursive=False)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
