"""(pure) The table that ends a run: a row a kernel, wide or narrow, with or without colour; and the lines below it.

Laws: every kernel of the run has a row, whatever became of it; a number that does not exist is a dash, never 0;
colour only repeats what a word says; in a narrow terminal columns go, the least telling first.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kmt.results import KernelResult, Outcome, TestResult
from kmt.text import visible

NONE = "–"
_COLOURS = {
    Outcome.OK: "green",
    Outcome.FAILED: "red",
    Outcome.UNAVAILABLE: "yellow",
    Outcome.BUILD: "magenta",
    Outcome.LOST: "bold magenta",
    Outcome.PANIC: "bold magenta",
    Outcome.HANG: "bold magenta",
    Outcome.STOPPED: "yellow",
}


@dataclass(frozen=True)
class Column:
    """A column: its head, how a kernel's cell is made, and how soon it goes when there is no room (0: never)."""

    head: str
    cell: Callable[[KernelResult], str]
    goes: int = 0
    right: bool = False


def duration(seconds: float | None) -> str:
    """``4.2 s`` below a minute, ``3:05`` above it; a dash for None."""
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return f"{int(seconds + 0.5) // 60}:{int(seconds + 0.5) % 60:02d}"


def _tests(word: str) -> Callable[[KernelResult], str]:
    return lambda kernel: str(kernel.counts()[word]) if kernel.tests else NONE


def _properties(kernel: KernelResult) -> str:
    passed, run = kernel.properties()
    return f"{passed}/{run}" if run else NONE


def _memory(kernel: KernelResult) -> str:
    """What the largest of its machines had for itself."""
    return f"{max(kernel.private_mib):.0f} MiB" if kernel.private_mib else NONE


def _fact(name: str) -> Callable[[KernelResult], str]:
    return lambda kernel: kernel.facts.get(name) or NONE


def columns(facts: Sequence[str]) -> list[Column]:
    """All columns, ``facts`` among them, in their order."""
    return [
        Column("kernel", lambda k: k.name),
        Column("release", lambda k: k.release or NONE, goes=3),
        Column("accel", lambda k: k.accelerator or NONE, goes=2),
        Column("boot", lambda k: duration(k.boot_seconds), goes=5, right=True),
        *(Column(name, _fact(name), goes=6) for name in facts),
        Column("properties", _properties, goes=4, right=True),
        Column("passed", _tests("passed"), right=True),
        Column("failed", _tests("failed"), right=True),
        Column("skipped", _tests("skipped"), right=True),
        Column("errors", _tests("error"), right=True),
        Column("memory", _memory, goes=1, right=True),
        Column("time", lambda k: duration(k.seconds or None), goes=1, right=True),
        Column("outcome", lambda k: k.outcome.value + (" (simulated)" if k.simulated else "")),
    ]


def _width(column: Column, kernels: Sequence[KernelResult]) -> int:
    return max(cell_len(column.head), *(cell_len(visible(column.cell(k))) for k in kernels), 0)


def _fitting(wanted: list[Column], kernels: Sequence[KernelResult], width: int) -> list[Column]:
    """Leave out columns, the soonest to go first, until the rest fits (or nothing more can go)."""
    while sum(_width(c, kernels) + 2 for c in wanted) > width and any(c.goes for c in wanted):
        leaves = min((c for c in wanted if c.goes), key=lambda c: c.goes)
        wanted = [c for c in wanted if c is not leaves]
    return wanted


def table(kernels: Sequence[KernelResult], facts: Sequence[str] = (), width: int = 200) -> Table:
    """The table as rich draws it; of ``facts`` those that some kernel has."""
    wanted = columns([name for name in facts if any(kernel.facts.get(name) for kernel in kernels)])
    place = next(n for n, column in enumerate(wanted) if column.head == "errors") + 1
    if any(kernel.retried() for kernel in kernels):
        wanted.insert(place, Column("retried", lambda k: str(len(k.retried())) if k.tests else NONE, right=True))
    if any(kernel.not_applicable for kernel in kernels):
        wanted.insert(place, Column("n/a", lambda k: str(len(k.not_applicable)) if k.simulated else NONE, right=True))
    shown = _fitting(wanted, kernels, width)
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in shown:
        drawn.add_column(column.head, justify="right" if column.right else "left", no_wrap=True)
    for kernel in kernels:
        drawn.add_row(*(_styled(column, kernel) for column in shown))
    return drawn


def _styled(column: Column, kernel: KernelResult) -> Text:
    text = visible(column.cell(kernel))
    if column.head == "outcome":
        return Text(text, style=_COLOURS[kernel.outcome])
    if column.head in ("failed", "errors") and text not in ("0", NONE):
        return Text(text, style="red")
    return Text(text, style="dim" if text == NONE else "")


def lines(kernels: Sequence[KernelResult]) -> list[str]:
    """What has to be said below the table: why a kernel is not ``ok``, and what did not travel to it."""
    said = []
    for kernel in kernels:
        if kernel.stands_for and kernel.simulated:
            said.append(f"{kernel.name}: simulated, for it could not be had: {kernel.stands_for}")
        if kernel.reason:
            hint = f" ({kernel.hint})" if kernel.hint else ""
            said.append(f"{kernel.name}: {kernel.outcome.value}: {kernel.reason}{hint}")
        said += [f"{kernel.name}: made good by another guest: {entry}" for entry in kernel.recovered]
        for test in kernel.tests:
            said += _of_test(kernel.name, test)
    said += totals(kernels)
    left_out = sorted({entry for kernel in kernels for entry in kernel.left_out})
    said += [f"left out of the guests: {entry}" for entry in left_out]
    return said


def totals(kernels: Sequence[KernelResult]) -> list[str]:
    """Real and simulated results, each by themselves; nothing where nothing is simulated."""
    simulated = [kernel for kernel in kernels if kernel.simulated]
    if not simulated:
        return []
    real = [kernel for kernel in kernels if not kernel.simulated]
    said = [_total("real", real)] if real else []
    gone = sum(len(kernel.not_applicable) for kernel in simulated)
    more = f"; {gone} not applicable (the results say why)" if gone else ""
    return [*said, _total("simulated", simulated) + more]


def _total(word: str, kernels: Sequence[KernelResult]) -> str:
    counted = [kernel.counts() for kernel in kernels]
    sums = {outcome: sum(counts[outcome] for counts in counted) for outcome in counted[0]}
    said = ", ".join(f"{number} {outcome}" for outcome, number in sums.items() if number) or "no test"
    return f"{word}: {len(kernels)} kernel{'s' * (len(kernels) > 1)}, {said}"


def _of_test(kernel: str, test: TestResult) -> list[str]:
    """What must not pass in silence: that it ran again, that its failure was expected no longer, or in vain."""
    said = []
    if test.retries:
        times = f"run again {len(test.retries)} time{'s' * (len(test.retries) > 1)}"
        said.append(f"{kernel}: {times}, then {test.outcome}: {test.id}: {'; '.join(test.retries)}")
    if test.expected and test.outcome != "skipped":
        said.append(f"{kernel}: {test.outcome}, though expected to fail: {test.id}: {test.expected}")
    return said


def render(
    kernels: Sequence[KernelResult], facts: Sequence[str] = (), *, width: int = 200, colour: bool = False
) -> str:
    """The table and its lines as text, without a newline at the end."""
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, no_color=not colour, highlight=False, emoji=False
    )
    console.print(table(kernels, facts, width))
    for line in lines(kernels):
        console.print(visible(line), markup=False, soft_wrap=True)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())
