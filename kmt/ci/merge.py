"""(pure) The results of many jobs as those of one run.

Laws: every kernel and part that was expected is in the outcome: one that left nothing is lost, aloud; tests are those
of all parts, each counted once; what a kernel came to is the gravest of its parts; the parts of a kernel that were
simulated, for it could not be had there, are a row of their own; the exit status is never milder than any job's own,
nor than its results say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from kmt.errors import EXIT_INFRASTRUCTURE, ResultsError
from kmt.explain.read import Results
from kmt.matrix import SIMULATED
from kmt.results import GRAVITY, NO_TESTS, KernelResult, Made, Outcome, exit_status, gravest
from kmt.text import visible

LEFT_NOTHING = "its job left no results"


@dataclass(frozen=True)
class Merged:
    """One run. ``missing``: (kernel, part) that were expected and left nothing."""

    kernels: tuple[KernelResult, ...]
    made: Made
    missing: tuple[tuple[str, int], ...]


def merge(results: Iterable[Results], *, kernels: Sequence[str], parts: int) -> Merged:
    """What the jobs of ``kernels`` x ``parts`` left. ResultsError: a file is of another matrix, or there twice."""
    results = sorted(results, key=lambda one: one.name)
    found = _placed(results, kernels, parts)
    missing = [(name, part) for name in kernels for part in range(1, parts + 1) if (name, part) not in found]
    rows: list[KernelResult] = []
    for name in kernels:
        left = [found[name, part] for part in range(1, parts + 1) if (name, part) in found]
        rows += _rows(name, left, parts)
    status = _status(results, rows, bool(missing))
    started = min((one.started for one in results), default="")
    made = Made(started, sum(one.seconds for one in results), status)
    return Merged(tuple(rows), made, tuple(missing))


def _placed(results: Sequence[Results], kernels: Sequence[str], parts: int) -> Mapping[tuple[str, int], KernelResult]:
    found: dict[tuple[str, int], KernelResult] = {}
    origin: dict[tuple[str, int], str] = {}
    for one in results:
        part = _part(one, parts)
        for kernel in one.kernels:
            # A job that asked for 6.1 and could not have it may have simulated it.
            stood_for = kernel.name.removesuffix(SIMULATED) if kernel.simulated else kernel.name
            place = (kernel.name if kernel.name in kernels else stood_for, part)
            if place[0] not in kernels:
                name = visible(kernel.name, 80)
                raise ResultsError(f"{one.name}: kernel {name} is not of this matrix", hint=", ".join(kernels))
            if place in found:
                raise ResultsError(f"{one.name}: {kernel.name}, part {part}, is in {origin[place]} too")
            found[place], origin[place] = kernel, one.name
    return found


def _part(one: Results, parts: int) -> int:
    if parts == 1 and not one.part:
        return 1
    number, _, of = one.part.partition("/")
    if not (number.isdecimal() and of == str(parts) and 1 <= int(number) <= parts):
        raise ResultsError(f"{one.name}: part {visible(one.part, 20) or 'none'} of the tests; expected one of {parts}")
    return int(number)


def _rows(name: str, found: Sequence[KernelResult], parts: int) -> Iterator[KernelResult]:
    """One row; two, where only some of its parts are real."""
    real = [one for one in found if not one.simulated]
    simulated = [one for one in found if one.simulated]
    if simulated:
        yield _kernel(simulated[0].name, simulated, len(simulated) if real else parts)
    if real or not simulated:
        yield _kernel(name, real, parts - len(simulated))


def _kernel(name: str, found: Sequence[KernelResult], parts: int) -> KernelResult:
    left = list(found)
    if len(found) < parts:
        left.append(KernelResult(name, outcome=Outcome.LOST, error="JobLostError", reason=LEFT_NOTHING,
                                 hint=f"{parts - len(found)} of {parts} jobs; see their logs"))  # fmt: skip
    worst = min(left, key=lambda one: GRAVITY.index(one.outcome))
    facts = {key: value for one in left for key, value in one.facts.items()}
    boots = [one.boot_seconds for one in left if one.boot_seconds is not None]
    first = left[0]
    return replace(
        worst,
        release=first.release,
        backend=first.backend,
        simulated=first.simulated,
        stands_for=first.stands_for,
        accelerator=first.accelerator,
        boot_seconds=min(boots) if boots else None,
        seconds=round(sum(one.seconds for one in left), 3),
        facts=facts,
        tests=[test for one in left for test in one.tests],
        left_out=list(dict.fromkeys(entry for one in left for entry in one.left_out)),
        recovered=[entry for one in left for entry in one.recovered],
        guests=sum(one.guests for one in left),
        restored=sum(one.restored for one in left),
        private_mib=[mib for one in left for mib in one.private_mib],
        not_run=sum(one.not_run for one in left),
        not_applicable={nodeid: why for one in left for nodeid, why in one.not_applicable.items()},
    )


def _status(results: Sequence[Results], rows: Sequence[KernelResult], missing: bool) -> int:
    own = [one.exit_status for one in results]
    some = any(row.tests for row in rows)
    # A part with no tests of its own is forgiven while others have some.
    with_tests = [status for status in own if status != NO_TESTS] or own
    if not some:
        with_tests = [status or NO_TESTS for status in own]
    # A row that is unavailable and was tolerated by its job is so here.
    said = exit_status(rows, pytest_status=0, strict=()) if some else 0
    return gravest([*with_tests, said, *([EXIT_INFRASTRUCTURE] if missing else [])])
