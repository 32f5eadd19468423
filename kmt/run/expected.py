"""(pure but for ``load``) Failures that a project knows of: which test on which kernels, why, and until when.

Laws: an entry makes a failure no success: it is reported as pytest's own expected failures are (``xfailed``); after its
date the failure fails the run; a test that passes all the same is said (``xpassed``) and fails nothing; a wrong entry
is a ConfigError that names file and entry, never a silent one.
"""

from __future__ import annotations

import operator
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from kmt.errors import ConfigError
from kmt.kernel import Version

KEYS = {"test": str, "kernels": str, "reason": str, "until": date}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le, ">=": operator.ge, "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_TERM = re.compile(r"(<=|>=|==|!=|<|>)\s*(\d+(?:\.\d+){1,2})", re.ASCII)


@dataclass(frozen=True)
class Range:
    """``>=5.10, <6.1``: all must hold. A version counts as far as it is written: 6.12.9 is ``<=6.12``."""

    terms: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read it; ``*`` is every kernel. ValueError when it is none."""
        if text.strip() == "*":
            return cls(())
        terms = []
        for word in text.split(","):
            match = _TERM.fullmatch(word.strip())
            if match is None:
                raise ValueError(f"{word.strip()!r} is no range of kernels")
            terms.append((match[1], tuple(int(number) for number in match[2].split("."))))
        return cls(tuple(terms))

    def holds(self, release: str) -> bool:
        """For a kernel's release, or the name of its row. What has no version is only in ``*``."""
        try:
            version = Version.parse(release)
        except ValueError:
            return not self.terms
        numbers = (version.major, version.minor, version.patch)
        return all(_COMPARE[sign](numbers[: len(bound)], bound) for sign, bound in self.terms)


@dataclass(frozen=True)
class Entry:
    """One failure that is expected. ``test`` is a glob over ids without kernels, or such an id."""

    test: str
    kernels: Range
    reason: str
    until: date


@dataclass(frozen=True)
class Expected:
    """All of a project's, seen on one day."""

    entries: tuple[Entry, ...] = ()
    today: date = field(default=date.max)

    def of(self, nodeid: str, release: str) -> Entry | None:
        """The first entry that is about this test on this kernel."""
        fits = (e for e in self.entries if e.test == nodeid or fnmatchcase(nodeid, e.test))
        return next((entry for entry in fits if entry.kernels.holds(release)), None)

    def said(self, entry: Entry) -> str:
        """The entry's reason, and whether its time is over."""
        return f"{entry.reason} (until {entry.until}{', which is over' if self.today > entry.until else ''})"

    def apply(self, data: dict[str, Any], release: str) -> dict[str, Any]:
        """A report as it counts: a failure that is expected becomes an expected failure; all else stays."""
        entry = self.of(str(data.get("nodeid")), release)
        if entry is None or self.today > entry.until:
            return data
        if data.get("outcome") == "failed" and data.get("when") in ("setup", "call"):
            return {**data, "outcome": "skipped", "wasxfail": self.said(entry)}
        if data.get("outcome") == "passed" and data.get("when") == "call":
            return {**data, "wasxfail": self.said(entry)}
        return data


def load(path: Path, today: date) -> Expected:
    """Read a file of ``[[expected]]`` tables. Raises ConfigError."""
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    entries = document.pop("expected", [])
    if document or not isinstance(entries, list):
        raise ConfigError(f"{path}: it may hold [[expected]] tables only", hint="keys: " + ", ".join(KEYS))
    return Expected(tuple(_entry(f"{path}: expected {n}", entry) for n, entry in enumerate(entries, 1)), today)


def _entry(where: str, table: object) -> Entry:
    if not isinstance(table, dict) or (wrong := sorted(table.keys() ^ KEYS.keys())):
        what = f"{', '.join(wrong)}: unknown or missing" if isinstance(table, dict) else "no table"
        raise ConfigError(f"{where}: {what}", hint="keys: " + ", ".join(KEYS))
    for key, kind in KEYS.items():
        # A date with a time of day is a datetime, which is a date.
        if type(table[key]) is not kind or not table[key]:
            wanted = "a date such as 2030-01-31" if kind is date else "a string that is not empty"
            raise ConfigError(f"{where}: {key} must be {wanted}, not {table[key]!r}")
    try:
        kernels = Range.parse(table["kernels"])
    except ValueError as error:
        raise ConfigError(f"{where}: kernels: {error}", hint='such as ">=5.10, <6.1", or "*"') from None
    return Entry(table["test"], kernels, table["reason"], table["until"])
