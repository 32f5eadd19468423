"""(pure) What failed, grouped by its cause over kernels and files.

Laws: every test that failed or never ran for want of a guest is in exactly one group, and so is every kernel that did
not work; tests of one group have one cause and, but for numbers in it, one line; the order of groups depends on the
results alone, not on the order of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from kmt.explain.read import Results
from kmt.kernel import Version
from kmt.results import KernelResult, Outcome, TestResult


class Cause(StrEnum):
    """Why something failed; in the order in which people should look at it."""

    PANIC = "panic"
    VERIFIER = "verifier"
    BUILD = "build"
    TEST = "test"
    HANG = "hang"
    LOST = "lost"
    ARCHIVE = "archive"


_OF_OUTCOME = {
    Outcome.PANIC: Cause.PANIC,
    Outcome.HANG: Cause.HANG,
    Outcome.LOST: Cause.LOST,
    Outcome.BUILD: Cause.BUILD,
    Outcome.UNAVAILABLE: Cause.ARCHIVE,
}
_ARCHIVE_ERRORS = frozenset({"ArchiveError", "MirrorError", "UnavailableError"})

Pair = tuple[str, str]
"""A kernel's name and a test's id without it."""


@dataclass(frozen=True)
class Group:
    """One cause. ``failing`` and ``passing`` are kernels, oldest first; ``passing`` passed one of ``pairs``' tests."""

    cause: Cause
    line: str
    """The one line that matters."""
    pairs: tuple[Pair, ...]
    """What failed; empty for a kernel that broke without a test."""
    failing: tuple[str, ...]
    passing: tuple[str, ...]
    files: tuple[str, ...]
    hint: str = ""

    @property
    def tests(self) -> tuple[str, ...]:
        """The ids in it, each once, in their order."""
        return tuple(dict.fromkeys(nodeid for _, nodeid in self.pairs))


@dataclass(frozen=True)
class _Failure:
    cause: Cause
    line: str
    kernel: str
    nodeid: str
    file: str
    hint: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What failures of one group have in common."""
        same = _without_numbers(self.line)
        # A test fails for its own reasons: "assert 3 == 4" in two tests is chance.
        return (self.cause, _function(self.nodeid), same) if self.cause is Cause.TEST else (self.cause, same)


def groups(results: Iterable[Results]) -> list[Group]:
    """All that failed; the gravest cause first, of one cause what most kernels have."""
    results = list(results)
    gathered: dict[tuple[str, ...], list[_Failure]] = {}
    for failure in (f for one in results for kernel in one.kernels for f in _failures(kernel, one.name)):
        gathered.setdefault(failure.key, []).append(failure)
    ages = _ages(results)
    passed = _passed(results)
    made = [_group(failures, ages, passed) for failures in gathered.values()]
    causes = list(Cause)
    return sorted(made, key=lambda g: (causes.index(g.cause), -len(g.failing), -len(g.pairs), g.line, g.pairs))


def _failures(kernel: KernelResult, file: str) -> Iterable[_Failure]:
    spoke_for_all = False
    for test in kernel.tests:
        outcome = kernel.lost_by(test) if test.lost else Outcome.FAILED
        if outcome in _OF_OUTCOME:
            spoke_for_all = spoke_for_all or outcome is kernel.outcome
            yield _of_guest(kernel, outcome, test, file)
        elif test.outcome in ("failed", "error"):
            yield _of_test(kernel, test, file)
    if kernel.outcome in _OF_OUTCOME and not spoke_for_all:
        yield _of_guest(kernel, kernel.outcome, None, file)


def _of_guest(kernel: KernelResult, outcome: Outcome, test: TestResult | None, file: str) -> _Failure:
    """Of a test what lost it (files of earlier versions do not say: the kernel's reason); without one the kernel."""
    kernels_own = outcome is kernel.outcome
    cause = _OF_OUTCOME[outcome]
    if cause is Cause.LOST and kernels_own and kernel.error in _ARCHIVE_ERRORS:
        cause = Cause.ARCHIVE
    line = _first(test.reason if test and test.cause else kernel.reason) or f"{outcome}, no reason given"
    hint = _first(kernel.hint) if kernels_own else ""
    return _Failure(cause, line, kernel.name, test.id if test else "", file, hint)


def _of_test(kernel: KernelResult, test: TestResult, file: str) -> _Failure:
    if test.verifier:
        return _Failure(Cause.VERIFIER, test.verifier, kernel.name, test.id, file)
    return _Failure(Cause.TEST, _first(test.reason) or f"{test.outcome}, no reason given", kernel.name, test.id, file)


def _group(failures: Sequence[_Failure], ages: dict[str, int], passed: dict[str, set[str]]) -> Group:
    def by_age(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(set(names), key=lambda name: ages[name]))

    pairs = sorted({(f.kernel, f.nodeid) for f in failures if f.nodeid}, key=lambda p: (p[1], ages[p[0]]))
    failing = by_age(f.kernel for f in failures)
    passing = by_age(k for _, nodeid in pairs for k in passed.get(nodeid, ()))
    return Group(
        cause=failures[0].cause,
        line=min(f.line for f in failures),
        pairs=tuple(pairs),
        failing=failing,
        passing=tuple(name for name in passing if name not in failing),
        files=tuple(sorted({f.file for f in failures})),
        hint=min(f.hint for f in failures),
    )


def _passed(results: Sequence[Results]) -> dict[str, set[str]]:
    """Of each test that failed somewhere: the kernels on which it passed."""
    tests = [(kernel.name, test) for one in results for kernel in one.kernels for test in kernel.tests]
    found: dict[str, set[str]] = {test.id: set() for _, test in tests if test.outcome in ("failed", "error")}
    for name, test in tests:
        if test.outcome == "passed" and test.id in found:
            found[test.id].add(name)
    return found


def _ages(results: Sequence[Results]) -> dict[str, int]:
    """Kernels by name, oldest first; what has no version comes last."""
    releases: dict[str, str] = {}
    for kernel in (kernel for one in results for kernel in one.kernels):
        releases[kernel.name] = max(releases.get(kernel.name, ""), kernel.release)
    ordered = sorted(releases, key=lambda name: (*_version(name, releases[name]), name))
    return {name: number for number, name in enumerate(ordered)}


def _version(name: str, release: str) -> tuple[int, ...]:
    for text in (release, name):
        try:
            version = Version.parse(text)
        except ValueError:
            continue
        return (0, version.major, version.minor, version.patch)
    return (1,)


def _first(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else ""


def _without_numbers(line: str) -> str:
    """What two failures by one cause have in common: addresses, times, pids and counts differ."""
    return re.sub(r"0x[0-9a-fA-F]+|\d+", "#", line)


def _function(nodeid: str) -> str:
    """The id without its parameters."""
    return nodeid.partition("[")[0]
