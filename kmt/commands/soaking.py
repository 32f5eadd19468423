"""``kmt.soak -- SELECTION``: the same tests again and again, and how often which of them fails."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kmt import config
from kmt.commands.testing import child
from kmt.commands.words import kernel_patterns
from kmt.errors import EXIT_USAGE, ConfigError, ResultsError
from kmt.explain import files, rates
from kmt.paths import cache
from kmt.report import in_ci
from kmt.results import NO_TESTS, KernelResult, gravest

INTERRUPTED = 2
ONCE = "--kernel-retries=0"
"""What a second attempt makes good is what is looked for."""


def repeat(root: Path, kernels: Sequence[str], *, times: int, args: Sequence[str]) -> int:
    """Run pytest with ``args`` so often in these kernels, nothing in it retried; the gravest of the runs' statuses.

    Ctrl-C ends the run that goes on and counts those before it, as does a run without results: the last line says so.
    ConfigError for words that run nothing.
    """
    if times < 1:
        raise ConfigError(f"--times is {times}", hint="how often to run the tests: 1 or more")
    words = kernel_patterns(kernels) or list(config.load(root).kernels)
    done: list[Sequence[KernelResult]] = []
    statuses: list[int] = []
    ended = ""
    for number, (status, results) in enumerate(_runs(root, words, args, times), 1):
        statuses.append(status)
        if status in (INTERRUPTED, EXIT_USAGE) or results is None:
            why = "" if results else " and left no results"
            ended = f"ended at run {number} of {times}: it had exit status {status}{why}, and is not counted"
            break
        done.append(results)
        print(f"run {number} of {times}: exit status {status}", flush=True)
    found = rates.tally(done)
    for line in in_ci.log().guarded(rates.lines(found) if done else []):
        print(line, flush=True)
    if ended:
        print(ended, flush=True)
    return gravest([*statuses, 1 if found.runs.failed else 0])


def _runs(
    root: Path, kernels: Sequence[str], args: Sequence[str], times: int
) -> Iterator[tuple[int, Sequence[KernelResult] | None]]:
    """Each run's exit status and results; None where it left none."""
    named = [word for kernel in kernels for word in ("--kernel", kernel)]
    for _ in range(times):
        with tempfile.TemporaryDirectory(dir=cache("runs"), prefix=".soak-") as directory:
            file = Path(directory, "results.json")
            status = child([sys.executable, "-m", "pytest", "-q", *named, *args, f"--kernel-json={file}", ONCE], root)
            try:
                (one,) = files.load([file]).results
            except (ResultsError, ValueError):
                yield status or NO_TESTS, None  # --collect-only, say: nothing has run
            else:
                yield status, one.kernels
