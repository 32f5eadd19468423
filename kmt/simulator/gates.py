"""(pure, but for ``load``) The table of gates: which version of Linux brought or removed what, and who says so.

Laws: every gate has a source; a fact has one gate; an unknown key, a version that is none and a newer format are a
ProfileError that names them. What follows from gates is ``derive.py``'s.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kmt.errors import ProfileError
from kmt.simulator.facts import Fact, Sort

FORMAT = 1
TABLE = Path(__file__).with_name("gates.toml")
Series = tuple[int, int]
"""A version's first two numbers."""

_PLAIN = (Sort.PROGRAM_TYPE, Sort.MAP_TYPE, Sort.ATTACH_TYPE, Sort.HELPER, Sort.MARK)
_LISTS = ("calls", "function", "tracepoint", "option", "backport")
_CHANGE = re.compile(r"(\d+)\.(\d+) ([0-9a-f]{12})", re.ASCII)
_SERIES = re.compile(r"(\d+)\.(\d+)", re.ASCII)


def series(text: str) -> Series:
    """``(5, 15)`` of ``5.15``. ProfileError for anything else."""
    found = _SERIES.fullmatch(text)
    if found is None:
        raise ProfileError(f"{text!r} is no series of kernels", hint="say 5.15, or 6.6")
    return int(found[1]), int(found[2])


def spelled(version: Series) -> str:
    """``5.15`` of ``(5, 15)``."""
    return f"{version[0]}.{version[1]}"


@dataclass(frozen=True)
class Change:
    """The series that something came or went with, and the commit that did it."""

    version: Series
    commit: str

    def __str__(self) -> str:
        return f"{spelled(self.version)}, commit {self.commit}"


@dataclass(frozen=True)
class Gate:
    """When a fact began to hold (None: before all that we speak of), and when it ended."""

    fact: Fact
    since: Change | None = None
    until: Change | None = None

    def open(self, version: Series) -> bool:
        """Whether it holds of that version, everything compiled in."""
        begun = self.since is None or self.since.version <= version
        return begun and (self.until is None or version < self.until.version)

    def why(self, version: Series) -> str:
        """The change that decides for that version."""
        if self.until is not None and version >= self.until.version:
            return f"gone since {self.until}"
        return f"since {self.since}" if self.since is not None else f"until {self.until}"


@dataclass(frozen=True)
class Gates:
    """All gates. ``changed``: when functions changed their signatures, oldest first. ``calls``: pairs of program type
    and helper that came together. ``needs``: the options without which a fact is not so. ``backports``: what recorded
    series have against their gate. ``ungated``: what is known to have no gate (signatures: between which series).
    """

    gates: Mapping[Fact, Gate]
    changed: Mapping[str, tuple[Change, ...]]
    calls: frozenset[tuple[str, str]]
    needs: Mapping[Fact, tuple[str, ...]]
    backports: frozenset[tuple[Fact, Series]]
    ungated: frozenset[Fact]
    last_minor: Mapping[int, int]

    def between(self, first: Series, last: Series) -> Iterator[Series]:
        """Every series from ``first`` to ``last``, both too."""
        major, minor = first
        while (major, minor) <= last:
            yield major, minor
            major, minor = (major + 1, 0) if minor >= self.last_minor.get(major, 1 << 30) else (major, minor + 1)


@functools.cache
def load(path: Path = TABLE) -> Gates:
    """The gates of a file. Raises ProfileError."""
    try:
        return parse(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def parse(text: str, where: str = "gates") -> Gates:
    """The gates of a text. Raises ProfileError that begins with ``where``."""
    try:
        document = tomllib.loads(text)
        if document.get("format") != FORMAT:
            raise ProfileError(f"format {document.get('format')}, not {FORMAT}", hint="a newer version wrote it")
        return _gates(document)
    except tomllib.TOMLDecodeError as error:
        raise ProfileError(f"{where}: {error}") from None
    except ProfileError as error:
        raise ProfileError(f"{where}: {error.message}", hint=error.hint) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProfileError(f"{where}: not what a table of gates looks like: {error!r}") from None


def _gates(document: Mapping[str, Any]) -> Gates:
    known = {"format", "last_minor", "ungated", *_LISTS, *_PLAIN}
    if odd := sorted(document.keys() - known):
        raise ProfileError(f"{odd[0]} is no key of a table of gates")
    lists: dict[str, list[dict[str, Any]]] = {key: document.get(key, []) for key in _LISTS}
    gates: dict[Fact, Gate] = {}
    for gate in (*_plain(document), *_ranges(lists)):
        if gates.setdefault(gate.fact, gate) is not gate:
            raise ProfileError(f"{gate.fact} has two gates")
    changed = {row["name"]: tuple(map(_change, row["changed"])) for row in lists["function"] if "changed" in row}
    if any(list(changes) != sorted(changes, key=lambda c: c.version) for changes in changed.values()):
        raise ProfileError("changes of a signature must stand in their order")
    needs: dict[Fact, tuple[str, ...]] = {}
    for row in lists["option"]:
        for fact in _facts({key: names for key, names in row.items() if key != "all"}):
            needs[fact] = (*needs.get(fact, ()), *row["all"])
    backports = {
        (fact, series(row["series"]))
        for row in lists["backport"]
        for fact in _facts({key: names for key, names in row.items() if key not in ("series", "source")})
    }
    for fact in (*needs, *(fact for fact, _ in backports)):
        if fact not in gates:
            raise ProfileError(f"{fact} has no gate")
    return Gates(
        gates=gates,
        changed=changed,
        calls=frozenset((kind, name) for row in lists["calls"] for kind in row["types"] for name in row["helpers"]),
        needs=needs,
        backports=frozenset(backports),
        ungated=frozenset(_facts(document.get("ungated", {}))),
        last_minor={int(major): int(minor) for major, minor in document.get("last_minor", {}).items()},
    )


def _facts(named: Mapping[str, Iterable[str]]) -> Iterator[Fact]:
    for sort, names in named.items():
        for name in names:
            yield Fact(Sort(sort), name)


def _plain(document: Mapping[str, Any]) -> Iterator[Gate]:
    for sort in _PLAIN:
        for name, words in document.get(sort, {}).items():
            yield Gate(Fact(sort, name), since=_change(words))


def _ranges(lists: Mapping[str, list[dict[str, Any]]]) -> Iterator[Gate]:
    for sort in (Sort.FUNCTION, Sort.TRACEPOINT):
        for row in lists[sort]:
            if odd := sorted(row.keys() - {"name", "since", "until", "changed"}):
                raise ProfileError(f"{sort} {row.get('name')}: {odd[0]} is no key")
            since, until = (_change(row[key]) if key in row else None for key in ("since", "until"))
            if since is not None or until is not None:
                yield Gate(Fact(sort, row["name"]), since, until)


def _change(words: str) -> Change:
    found = _CHANGE.fullmatch(words)
    if found is None:
        raise ProfileError(f"{words!r} is not a version and a commit")
    return Change((int(found[1]), int(found[2])), found[3])
