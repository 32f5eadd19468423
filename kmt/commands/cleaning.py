"""``kmt.clean``: what lies in the cache, and getting rid of it."""

from __future__ import annotations

import shutil
from pathlib import Path

from kmt import runs
from kmt.errors import ConfigError
from kmt.hints import task
from kmt.paths import cache, cache_base, leftovers, older_layouts, sweep


def clean(*, everything: bool = False) -> list[str]:
    """Remove what older versions, killed makers and runs that are over left; with ``everything``, the whole cache.

    A line for each directory removed. ConfigError, and nothing removed, while a run goes on that uses it.
    """
    alive = [run.record.id for run in runs.seen() if run.alive]
    if everything and alive:
        raise ConfigError(f"run {', '.join(alive)} goes on", hint=f"{task('stop')} ends it")
    if everything:
        return [_remove(cache_base())]
    over = [run.dir for run in runs.seen() if not run.alive]
    swept = [f"removed {path}, half made" for path in leftovers() if sweep(path)]
    return [*swept, *(_remove(path) for path in [*older_layouts(), *over])]


def contents() -> list[tuple[str, int]]:
    """The rooms of the cache with their sizes in bytes, the largest first."""
    rooms = [(path.name, _size(path)) for path in cache().iterdir() if path.is_dir()]
    return sorted(rooms, key=lambda room: -room[1])


def _size(path: Path) -> int:
    files = (p.lstat() for p in path.rglob("*") if p.is_file() and not p.is_symlink())
    return sum(stat.st_blocks * 512 for stat in files)


def _remove(path: Path) -> str:
    size = _size(path)
    shutil.rmtree(path, ignore_errors=True)
    return f"removed {path} ({size / 1e6:.0f} MB)"
