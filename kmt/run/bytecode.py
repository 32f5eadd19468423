"""What guests compiled of a project's modules, kept in the cache for the guests after them.

Laws: only a guest in which nothing of the project has run yet is asked to compile; a file fits by the bytes of its
source; what a guest gives goes to guests only and is never read here; what lies in the cache is a hint: torn or
missing, modules are compiled again. Which modules there are is what the host's own collection loaded.
"""

from __future__ import annotations

import hashlib
import re
import threading
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from kmt.paths import cache, published

LIMIT = 4 << 20
"""Bytes of one compiled file; more is not kept."""
TOTAL = 64 << 20
"""Bytes of all of a project's."""
PROJECTS = 20
"""Files in the cache; those written last stay."""
_TAIL = re.compile(r"\.[A-Za-z0-9][A-Za-z0-9._+-]{0,80}\.pyc")


@dataclass(frozen=True)
class Source:
    """A module: its file relative to the project, whether pytest rewrites it, the digest of its bytes."""

    name: str
    rewritten: bool
    digest: str

    def member(self, tails: Mapping[str, str]) -> str:
        """Where Python and pytest look for it compiled."""
        path = PurePosixPath(self.name)
        return str(path.parent / "__pycache__" / (path.stem + tails["rewritten" if self.rewritten else "plain"]))


@dataclass
class Shelf:
    """For guests with one Python and pytest: what fits (path to content), and the sources of what is missing."""

    file: Path
    sources: dict[str, Source]
    ready: dict[str, bytes] = field(default_factory=dict)

    def missing(self) -> list[tuple[str, bool]]:
        """Names and whether they are rewritten."""
        return [(s.name, s.rewritten) for member, s in self.sources.items() if member not in self.ready]


class Bytecode:
    """One a run, for a project; thread-safe. ``modules``: path relative to ``root``, and whether pytest rewrites it."""

    def __init__(self, root: Path, modules: Mapping[str, bool]) -> None:
        self._root = root
        self._modules = modules
        self._sources: list[Source] | None = None
        self._shelves: dict[tuple[str, str], Shelf] = {}
        self._claimed: set[tuple[str, str]] = set()
        self._mutex = threading.Lock()

    def ready(self, said: object, travelling: Iterable[str]) -> dict[str, bytes]:
        """What fits a guest that ``said`` these tails in its HELLO: path relative to the project, and content."""
        with self._mutex:
            shelf = self._shelf(_tails(said), travelling)
            return dict(shelf.ready) if shelf else {}

    def claim(self, said: object) -> list[tuple[str, bool]]:
        """What such a guest is to compile, for the first one that asks; nothing for those after it."""
        with self._mutex:
            tails = _tails(said)
            if tails not in self._shelves or tails in self._claimed:
                return []
            self._claimed.add(tails)
            return self._shelves[tails].missing()

    def keep(self, said: object, made: Iterable[tuple[str, bytes]]) -> None:
        """Take what a guest compiled; no failure of the cache is the run's."""
        with self._mutex:
            shelf = self._shelves[_tails(said)]
            total = sum(map(len, shelf.ready.values()))
            for member, content in made:
                total += len(content)
                if member in shelf.sources and len(content) <= LIMIT and total <= TOTAL:
                    shelf.ready[member] = content
            with suppress(OSError):
                _write(shelf)

    def _shelf(self, tails: tuple[str, str], travelling: Iterable[str]) -> Shelf | None:
        if not all(tails):
            return None
        if tails not in self._shelves:
            if self._sources is None:
                there = set(travelling)
                self._sources = list(_sources(self._root, {n: r for n, r in self._modules.items() if n in there}))
            plain, rewritten = tails
            names = {"plain": plain, "rewritten": rewritten}
            digest = hashlib.sha256("\0".join([str(self._root), *tails]).encode()).hexdigest()[:32]
            shelf = Shelf(cache("bytecode") / f"{digest}.zip", {s.member(names): s for s in self._sources})
            shelf.ready = dict(_read(shelf))
            self._shelves[tails] = shelf
        return self._shelves[tails]


def _tails(said: object) -> tuple[str, str]:
    """Plain and rewritten, checked; empty words where a guest says none."""
    known = said if isinstance(said, Mapping) else {}
    plain, rewritten = (str(known.get(kind, "")) for kind in ("plain", "rewritten"))
    return (plain, rewritten) if _TAIL.fullmatch(plain) and _TAIL.fullmatch(rewritten) else ("", "")


def _sources(root: Path, modules: Mapping[str, bool]) -> Iterable[Source]:
    for name, rewritten in sorted(modules.items()):
        with suppress(OSError):
            yield Source(name, rewritten, hashlib.sha256((root / name).read_bytes()).hexdigest())


def _read(shelf: Shelf) -> Iterable[tuple[str, bytes]]:
    total = 0
    with suppress(OSError, zipfile.BadZipFile, NotImplementedError), zipfile.ZipFile(shelf.file) as file:
        for info in file.infolist():
            source = shelf.sources.get(info.filename)
            total += info.file_size
            if total > TOTAL or info.compress_type != zipfile.ZIP_STORED:
                return
            if source is not None and info.comment == source.digest.encode():
                yield info.filename, file.read(info)


def _write(shelf: Shelf) -> None:
    with published(shelf.file) as work, zipfile.ZipFile(work, "w") as file:
        for member, content in shelf.ready.items():
            info = zipfile.ZipInfo(member)
            info.comment = shelf.sources[member].digest.encode()
            file.writestr(info, content)
    for stale in sorted(shelf.file.parent.glob("*.zip"), key=lambda path: path.stat().st_mtime)[:-PROJECTS]:
        stale.unlink(missing_ok=True)
