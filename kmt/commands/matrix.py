"""``kmt.ls``, ``kmt.fetch``, ``kmt.image``, ``kmt.build`` and the dry run: what comes before a kernel boots."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from kmt import archive, backends, build, build_kernel, config, proc
from kmt import matrix as catalogue
from kmt.backends import simulated
from kmt.backends.base import Machine
from kmt.commands.shown import bars, shown
from kmt.commands.words import kernel_patterns
from kmt.config import Config
from kmt.errors import KmtError
from kmt.matrix import Row
from kmt.roots import image
from kmt.run import shared


def rows(settings: Config, words: Sequence[str], default: str) -> list[Row]:
    """The rows that the words choose in the project's catalogue; ``default`` chooses when there are no words."""
    path = settings.root / settings.catalogue if settings.catalogue else None
    return catalogue.load(path).select(kernel_patterns(words) or [default])


def listing(root: Path, words: Sequence[str]) -> str:
    """The rows (all without words), what each resolves to here and now, whether it is in the cache, and by what it
    could be simulated."""
    settings = config.load(root)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("kernel", "default", "release", "cached", "simulated", "note"):
        table.add_column(head, no_wrap=head != "note")
    for row in rows(settings, words, "all"):
        found = archive.describe(row, config=settings)
        cached = "yes" if found.cached else "no"
        words = (row.name, "yes" if row.default else "", found.release or "–", cached, simulated.known(row))
        table.add_row(*words, found.note or row.note)
    return shown(table)


def fetch(root: Path, words: Sequence[str], *, update: bool = False) -> tuple[list[str], int]:
    """Fetch the rows side by side, all before any error counts: a line a row, and the exit status of the worst."""
    settings = config.load(root)
    lines: list[str] = []
    status = 0
    with bars() as progress:
        chosen = rows(settings, words, ",".join(settings.kernels))
        lines += [f"{row.name}: nothing to fetch: {row.runs_at}" for row in chosen if row.runs_at]
        lines += [f"{row.name}: nothing to fetch: it is simulated" for row in chosen if row.simulated]
        chosen = [row for row in chosen if not row.runs_at and not row.simulated]
        for name, found in archive.prepare_all(chosen, config=settings, update=update, progress=progress).items():
            if isinstance(found, KmtError):
                lines.append(f"{name}: {found.outcome}: {found}")
                status = max(status, found.exit_status)
            else:
                lines.append(f"{name}: {found.release} ({found.origin})")
    return lines, status


def make_image(root: Path) -> Path:
    """The guests' root image, built if need be."""
    with bars() as progress:
        return image.ensure(config.load(root), progress)


def compile_objects(root: Path, words: Sequence[str] = ()) -> list[str]:
    """Build the project's eBPF objects: a line an object, the directory, then a directory for each kernel in words."""
    settings = config.load(root)
    with bars() as progress:
        built = build.build(settings, progress=progress)
        lines = [f"{name}: {path}" for name, path in sorted(built.objects.items())] + [str(built.dir)]
        for row in rows(settings, words, "") if any(words) else []:
            kernel = archive.prepare(row, config=settings, progress=progress)
            own = build_kernel.build(settings, built, kernel)
            lines += [f"{row.name}: {own.dir}", *(f"{row.name}: left out: {what}" for what in own.left_out)]
    return lines


def dry_run(root: Path, words: Sequence[str], backend: str, accel: str) -> list[str]:
    """The command line that would boot each kernel, with its name above; fetches, and boots nothing."""
    settings = config.load(root)
    lines = []
    with bars() as progress, tempfile.TemporaryDirectory(prefix="kmt-") as scratch:
        machine = Machine(memory_mib=settings.memory)
        for row in rows(settings, words, ",".join(settings.kernels)):
            word = backends.name_for(row, backend or settings.backend)
            chosen = backends.get(word, config=settings, accel=accel or "auto", progress=progress)
            if row.simulated or chosen.simulated:
                lines.append(f"# {row.name}: simulated: tests run in a process of this machine, and nothing boots")
                continue
            try:
                kernel = shared.fetch(row, chosen, settings, progress)
                command = proc.quoted(chosen.command_line(kernel, machine, Path(scratch)))
            except KmtError as error:
                command = f"# {error.outcome}: {error}"
            lines += [f"# {row.name}", command]
    return lines
