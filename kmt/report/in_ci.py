"""What a run says to the CI that it runs in, besides its table: annotations, the step's summary, folded consoles.

``kmt/ci/output.py`` has the words; here is where they go. Law: a file that cannot be written costs a line, no run.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from kmt.ci import output
from kmt.explain import causes
from kmt.explain.read import Results
from kmt.results import KernelResult

SUMMARY = "GITHUB_STEP_SUMMARY"


def log() -> output.Log:
    """Ours, by this process's environment."""
    return output.Log.of(os.environ, secrets.token_hex(16))


def tell(say: Callable[[str], object], kernels: Sequence[KernelResult], table: str) -> None:
    """Say what failed by its causes, and add table and causes to the step's summary."""
    here = log()
    if here.provider != "github":
        return
    groups = causes.groups([Results("this run", "", 0.0, 0, tuple(kernels))])
    for line in here.annotations(groups):
        say(line)
    named = os.environ.get(SUMMARY)
    try:
        if named:
            with Path(named).open("a", encoding="utf-8") as file:
                room = output.MOST_SUMMARY - os.fstat(file.fileno()).st_size
                file.write(output.summary(table, groups, most=room))
    except OSError as error:
        say(f"kmt: no step summary: {error.strerror}")
