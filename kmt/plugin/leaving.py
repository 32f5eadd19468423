"""The files that a session with ``--kernel`` leaves: results as JSON (always in its run's room), logs where wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from kmt import runs
from kmt.errors import ConfigError
from kmt.report import json as json_report
from kmt.report import logs
from kmt.results import KernelResult, Made


def leave(config: pytest.Config, run: runs.Run, kernels: Sequence[KernelResult], made: Made) -> None:
    """Write them. pytest's UsageError where one cannot be written."""
    said = config.getoption("--kernel-json")
    wanted = config.getoption("--kernel-logs")
    try:
        for kernel in kernels if wanted else ():
            target = Path(wanted) / run.kernel_dir(kernel.name).name
            kernel.left_out += logs.copy(run.kernel_dir(kernel.name), target)
        for target in [run.dir / runs.RESULTS, *([Path(said)] if said else [])]:
            json_report.write(target, kernels, made)
    except ConfigError as error:
        raise pytest.UsageError(f"kmt: {error}") from None
