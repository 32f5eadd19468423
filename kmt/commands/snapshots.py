"""``kmt.snapshot``: the warm snapshots that guests start from; listed, made ahead, looked over, dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from rich.table import Table

from kmt import archive, backends, config
from kmt.backends.base import Machine
from kmt.commands.matrix import rows
from kmt.commands.shown import bars, shown
from kmt.errors import ConfigError, SnapshotError
from kmt.hints import task
from kmt.snapshot import store

KEY_SHOWN = 12
"""Characters of a key that are shown; a beginning that fits one is enough to name it."""


def listing() -> str:
    """All snapshots, a line each, what was used last at the end."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("snapshot", "kernel", "machine", "MB", "made", "used"):
        table.add_column(head, no_wrap=True)
    for entry in store.entries():
        record = entry.record
        cells = (record.kernel, record.machine, f"{entry.bytes / 1e6:.0f}", _when(record.made), _when(entry.used))
        table.add_row(entry.key[:KEY_SHOWN], *cells)
    return shown(table) if table.row_count else "no snapshots yet"


def _when(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%m-%d %H:%M}" if seconds else "?"


def make(root: Path, words: Sequence[str]) -> Iterator[str]:
    """Make the snapshots of these kernels where they are missing: a line a kernel. Raises KmtError at the first."""
    settings = config.load(root)
    if not settings.snapshots:
        raise ConfigError("[tool.kmt] snapshots is false", hint="set it to true, or leave it out")
    with bars() as progress:
        backend = backends.get(settings.backend, config=settings, progress=progress)
        if not backend.checkpoints:
            raise ConfigError(f"the backend {backend.name!r} has no snapshots")
        for row in rows(settings, words, ",".join(settings.kernels)):
            if row.runs_at or row.simulated:
                yield f"{row.name}: no snapshot: {row.runs_at or 'it is simulated'}"
                continue
            kernel = archive.prepare(row, config=settings, progress=progress)
            backend.prepare(kernel, Machine(memory_mib=settings.memory))
            yield f"{row.name}: {backend.notice or 'ready'}"


def drop(words: Sequence[str]) -> Iterator[str]:
    """Drop snapshots by key, by kernel or ``all``: a line each. ConfigError when a word means none."""
    for word in words:
        meant = _meant(word)
        for entry in meant:
            store.discard(entry.key)
            yield f"dropped {entry.key[:KEY_SHOWN]} ({entry.record.kernel}, {entry.bytes / 1e6:.0f} MB)"


def verify() -> tuple[list[str], int]:
    """Hash all of every snapshot; what is damaged is dropped. A line each; the status is 6 when one was."""
    lines, status = [], 0
    for entry in store.entries():
        name = f"{entry.key[:KEY_SHOWN]} ({entry.record.kernel})"
        try:
            store.verify(entry.key)
            lines.append(f"{name}: whole")
        except SnapshotError as error:
            store.discard(entry.key)
            lines.append(f"{name}: dropped: {error}")
            status = error.exit_status
    return lines, status


def _meant(word: str) -> list[store.Entry]:
    known = store.entries()
    meant = known if word == "all" else [e for e in known if e.record.kernel == word]
    meant = meant or [e for e in known if len(word) >= 4 and e.key.startswith(word)]
    if not meant and word != "all":
        raise ConfigError(f"no snapshot is {word!r}", hint=f"{task('snapshot')} lists them")
    return meant
