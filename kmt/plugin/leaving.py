"""The files that a session with ``--kernel`` leaves: results as JSON (always in its run's room), logs where wanted.

Laws: results come first, so that nothing of what follows costs them; a file that cannot be written is a line below the
table and the status of a wrong usage, and takes nothing else with it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kmt import runs
from kmt.errors import KmtError
from kmt.report import json as json_report
from kmt.report import logs
from kmt.results import KernelResult, Made
from kmt.text import visible


@dataclass
class Left:
    """``notes``: logs that stayed behind; ``wrong``: what could not be written, and why."""

    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def tell(self, reporter: pytest.TerminalReporter) -> None:
        """Say it below the table."""
        for note in self.notes:
            reporter.write_line(visible(note))
        for wrong in self.wrong:
            reporter.write_line(f"kmt: {visible(wrong)}", red=True)


def leave(config: pytest.Config, run: runs.Run, kernels: Sequence[KernelResult], made: Made) -> Left:
    """Write them."""
    left = Left()
    said, wanted = config.getoption("--kernel-json"), config.getoption("--kernel-logs")
    for target in [run.dir / runs.RESULTS, *([Path(said)] if said else [])]:
        try:
            json_report.write(target, kernels, made)
        except KmtError as error:
            left.wrong.append(str(error))
    try:
        for kernel in kernels if wanted else ():
            target = Path(wanted) / run.kernel_dir(kernel.name).name
            left.notes += [f"{kernel.name}: {note}" for note in logs.copy(run.kernel_dir(kernel.name), target)]
    except KmtError as error:
        left.wrong.append(str(error))
    return left


def complete(config: pytest.Config, kernels: Sequence[KernelResult], strict: Collection[str]) -> str:
    """Add the kernels to the JUnit file that pytest has written by now; why it could not be done, or nothing."""
    target = config.getoption("xmlpath", default=None)
    if target and kernels:
        from kmt.report import junit

        try:
            junit.complete(Path(target), kernels, strict=strict)
        except KmtError as error:
            return visible(str(error))
    return ""
