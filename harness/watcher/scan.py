"""Which files a running process has open or mapped, for processes that were there before we looked.

Laws: a library that the process opened before this looks is found, whether or not it is mapped already: descriptors
are read before mappings, and the loader maps before it closes. A path in ``/proc`` is as this process would name
it, not as that one does (they differ in a chroot); so a file is taken by the kernel's own link to it
(``map_files``, ``fd``) wherever the path through the process's root does not lead to the same one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from harness.watcher.identity import host_path
from harness.watcher.maps import map_file, mappings


class Sighting(NamedTuple):
    """A file of a process: its path, and where the host sees it."""

    path: str
    seen_at: str


def sightings(proc_root: str, pid: int, wanted: Callable[[str], bool]) -> Iterator[Sighting]:
    """The wanted files of process ``pid``, each path once. Raises the OSError of maps that cannot be read."""
    found = dict(_descriptors(proc_root, pid, wanted))
    fd = os.open(f"{proc_root}/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        maps = file.read()
    for path, at in mappings(maps).items():
        if path not in found and wanted(path):
            with suppress(ValueError):
                found[path] = f"{proc_root}/{pid}/map_files/{map_file(at)}"
    for path, link in found.items():
        yield Sighting(path, _seen_at(proc_root, pid, path, link))


def _descriptors(proc_root: str, pid: int, wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Paths of open files and the links to them. What cannot be listed is passed over: the maps say so, if anybody."""
    directory = f"{proc_root}/{pid}/fd"
    try:
        numbers = os.listdir(directory)  # noqa: PTH208 (a hot path)
    except OSError:
        return
    for number in numbers:
        link = f"{directory}/{number}"
        with suppress(OSError):
            path = os.readlink(link)  # noqa: PTH115
            if path[:1] == "/" and not path.endswith(" (deleted)") and wanted(path):
                yield path, link


def _seen_at(proc_root: str, pid: int, path: str, link: str) -> str:
    rooted = host_path(proc_root, pid, path)
    try:
        real = os.stat(link)  # noqa: PTH116
    except OSError:
        return rooted  # not allowed (it takes CAP_SYS_ADMIN), or gone
    with suppress(OSError):
        named = os.stat(rooted)  # noqa: PTH116
        if (named.st_dev, named.st_ino) == (real.st_dev, real.st_ino):
            return rooted
    return link
