"""What closes a run on the terminal: the ends of the consoles of guests that died, then the table.

Called from ``pytest_terminal_summary``, with or without the live display.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kmt.hints import task
from kmt.report import in_ci, table
from kmt.results import KernelResult, Outcome

TAIL_LINES = 25
_TAIL_BYTES = 64 * 1024
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[@-~]|[()][0-9A-B]|[=>78cDEHM])|[\x00-\x08\x0b-\x1f\x7f]")
_DIED = frozenset({Outcome.PANIC, Outcome.HANG, Outcome.LOST})


def tail(console: Path, lines: int = TAIL_LINES) -> list[str]:
    """The last lines of a console log without terminal escapes; ``[]`` when there is no such file."""
    try:
        with console.open("rb") as file:
            file.seek(max(0, console.stat().st_size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return []
    said = [_ESCAPES.sub("", line).rstrip() for line in text.replace("\r", "\n").split("\n")]
    return [line for line in said if line][-lines:]


def write(reporter: pytest.TerminalReporter, kernels: Sequence[KernelResult], facts: Sequence[str]) -> None:
    """Write it. ``facts`` are the configured columns."""
    here = in_ci.log()
    for kernel in kernels:
        if kernel.outcome in _DIED and kernel.console:
            said = tail(Path(kernel.console))
            if here.provider:
                said = here.section(
                    f"console of {kernel.name}: the end of {kernel.console}", said, now=int(time.time())
                )
            else:
                reporter.write_sep("-", f"console of {kernel.name}: the end of {kernel.console}")
            for line in said:
                reporter.write_line(line)
    if not kernels:
        return
    reporter.write_sep("=", "kernels", bold=True)
    terminal = reporter.isatty if isinstance(reporter.isatty, bool) else reporter.isatty()
    width = reporter._tw.fullwidth if terminal else 200
    for line in here.guarded(table.render(kernels, facts, width=width, colour=reporter.hasmarkup).splitlines()):
        reporter.write_line(line)
    if any(kernel.outcome not in (Outcome.OK, Outcome.STOPPED) for kernel in kernels):
        reporter.write_line(f"what failed, by its cause: {task('explain')}   just that again: {task('rerun')}")
    in_ci.tell(reporter.write_line, kernels, table.render(kernels, facts))
