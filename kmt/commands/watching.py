"""``kmt.status``, ``kmt.stop``, ``kmt.logs``: runs of this and of other terminals."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from kmt import runs
from kmt.commands.shown import shown
from kmt.report.table import duration


def status(limit: int = 5) -> str:
    """All runs that go on and the last ``limit`` that are over, a line a kernel."""
    known = runs.seen()
    over = [run for run in known if not run.alive]
    wanted = over[max(0, len(over) - limit) :] + [run for run in known if run.alive] if limit else known
    if not wanted:
        return "no runs yet"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("run", "state", "pid", "kernel", "phase", "since", "vm"):
        table.add_column(head, no_wrap=True)
    for run in wanted:
        record = run.record
        table.add_row(record.id, run.state, str(record.pid) if run.alive else "", "", "", record.started[:19])
        for name, kernel in record.kernels.items():
            phase = kernel.outcome or f"{kernel.phase} {kernel.detail}".strip()
            since = duration(time.time() - kernel.since) if run.alive and not kernel.outcome else ""
            table.add_row("", "", "", name, phase, since, str(kernel.vm_pid or "") if run.alive else "")
    return shown(table)


def stop(run_id: str = "") -> list[str]:
    """Stop that run; without an id, all that go on. A line a run; ConfigError when there is none."""
    wanted = [runs.find(run_id, alive=True)] if run_id else [run for run in runs.seen() if run.alive]
    return [runs.stop(run) for run in wanted] or ["no run is going on"]


def logs(kernel: str, run_id: str = "", *, follow: bool = False) -> Iterator[str]:
    """The console of a kernel, in pieces; with ``follow`` also what comes, until the run is over."""
    run = runs.find(run_id) if run_id else _latest_with(kernel)
    with runs.console(run, kernel).open("rb") as file:
        while True:
            over = not follow or not _going_on(run)
            while piece := file.read(1 << 16):
                yield piece.decode(errors="replace")
            if over:
                return
            time.sleep(0.2)


def _latest_with(kernel: str) -> runs.Seen:
    """The latest run that has a console of that kernel, else the latest run."""
    for run in reversed(runs.seen()):
        state = run.record.kernels.get(kernel)
        if state is not None and state.console and Path(state.console).is_file():
            return run
    return runs.find()


def _going_on(run: runs.Seen) -> bool:
    return any(other.alive for other in runs.seen() if other.record.id == run.record.id)
