"""Rich tables and progress as the standard output of a task: plain and unlimited off a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

if TYPE_CHECKING:
    from kmt.archive import Progress as Callback


def shown(what: RenderableType) -> str:
    """It as text for the terminal we have, or 200 columns wide and without colour where there is none."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, emoji=False)
    with console.capture() as captured:
        console.print(what)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


@contextmanager
def bars() -> Iterator[Callback]:
    """A progress callback (label, done, total): bars on a terminal, elsewhere one line a label."""
    console = Console(stderr=True, highlight=False)
    tasks: dict[str, TaskID] = {}
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), console=console, transient=True,
        disable=not console.is_terminal,
    ) as progress:  # fmt: skip

        def callback(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = progress.add_task(label, total=total or None)
                if not console.is_terminal:
                    console.print(label, markup=False, soft_wrap=True)
            progress.update(tasks[label], completed=done, total=total or None)

        yield callback
