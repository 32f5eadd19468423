"""(pure) How often tests fail, from many runs of the same: rates, and how sure one may be of them.

Laws: an interval holds its rate and lies between 0 and 1; more runs with the same rate never make it wider; no failure
in n runs is no proof of none: the upper end says what could still be. A test that never spoke failed, unless what
lost it was no test's doing (its guest died, nothing was built): then it counts neither way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

from kmt.explain.words import count
from kmt.results import GONE, KernelResult
from kmt.text import visible

CONFIDENCE = 0.95
RAN = frozenset({"passed", "failed", "error"})
"""Outcomes of tests that count; what was skipped or is not applicable did not run."""
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


@dataclass(frozen=True)
class Rate:
    """``failed`` of ``of`` runs."""

    failed: int
    of: int

    def interval(self) -> tuple[float, float]:
        """Wilson's score interval for the true rate, at ``CONFIDENCE``; all of 0 to 1 where nothing ran."""
        if not self.of:
            return 0.0, 1.0
        rate, square = self.failed / self.of, _Z * _Z
        centre = (rate + square / (2 * self.of)) / (1 + square / self.of)
        half = _Z * sqrt(rate * (1 - rate) / self.of + square / (4 * self.of**2)) / (1 + square / self.of)
        return min(max(0.0, centre - half), rate), max(min(1.0, centre + half), rate)

    def __str__(self) -> str:
        low, high = self.interval()
        rate = f"{self.failed / self.of:.1%}" if self.of else "no"
        return f"{self.failed} of {self.of} failed: {rate} ({low:.1%} to {high:.1%} with 95 % confidence)"


@dataclass(frozen=True)
class Tally:
    """What many runs came to. ``tests`` by (kernel, id); ``lost`` by kernel: runs that were not all there."""

    runs: Rate
    tests: dict[tuple[str, str], Rate]
    lost: dict[str, Rate]


def tally(runs: Iterable[Sequence[KernelResult]]) -> Tally:
    """Count them."""
    tests: dict[tuple[str, str], Rate] = {}
    lost: dict[str, Rate] = {}
    bad = of = 0
    for kernels in runs:
        of += 1
        failed_here = False
        for kernel in kernels:
            gone = kernel.outcome in GONE
            lost[kernel.name] = _one_more(lost.get(kernel.name), gone)
            for test in kernel.tests:
                if test.outcome not in RAN or (test.lost and kernel.lost_by(test) in GONE):
                    continue
                failed = test.outcome in ("failed", "error")
                failed_here = failed_here or failed
                tests[kernel.name, test.id] = _one_more(tests.get((kernel.name, test.id)), failed)
        bad += failed_here
    return Tally(Rate(bad, of), tests, lost)


def _one_more(rate: Rate | None, failed: bool) -> Rate:
    before = rate or Rate(0, 0)
    return Rate(before.failed + failed, before.of + 1)


def lines(found: Tally) -> list[str]:
    """For people: what failed at all, the most often first; then what all others stand for."""
    failed = sorted((p for p in found.tests.items() if p[1].failed), key=lambda p: (-p[1].failed / p[1].of, p[0]))
    said = [f"{visible(kernel)}: {visible(nodeid)}: {rate}" for (kernel, nodeid), rate in failed]
    said += [
        f"{visible(kernel)}: guests lost or nothing built: {rate}"
        for kernel, rate in sorted(found.lost.items())
        if rate.failed
    ]
    never = [rate for rate in found.tests.values() if not rate.failed]
    if never:
        fewest = min(never, key=lambda rate: rate.of)
        tests = count(len(never), "test")
        said.append(f"{tests} never failed; in {fewest.of} runs that leaves up to {fewest.interval()[1]:.1%}")
    return [*said, f"runs with a failed test: {found.runs}"]
