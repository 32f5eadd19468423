"""``kmt.explain`` and ``kmt.rerun``: what failed and why, over kernels and files; and just that once more."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kmt import config, matrix, runs
from kmt.commands.testing import child
from kmt.commands.words import user_path
from kmt.errors import ConfigError, ResultsError
from kmt.explain import causes, files, rerun, words
from kmt.hints import task
from kmt.paths import cache
from kmt.report import in_ci

ON_THE_COMMAND_LINE = 1000
"""Words that pytest is given there; more travel in a file (a command line ends at 2 MiB)."""


def explain(paths: Sequence[str]) -> tuple[list[str], int]:
    """Lines about what failed, and 4 where a file could not be read. Without paths: the latest run here."""
    places = _places(paths)
    loaded = files.load(places)
    for error in loaded.errors:
        print(f"error: {error}", file=sys.stderr)
    if not loaded.results:
        return [], ResultsError.exit_status
    kernels = {kernel.name for one in loaded.results for kernel in one.kernels}
    # The latest run is another one as soon as a group of it was run again: its file is named.
    command = [*task("rerun").split(), *(word for path in paths or map(str, places) for word in ("--from", path))]
    lines = words.lines(causes.groups(loaded.results), kernels=len(kernels), command=command)
    return in_ci.log().guarded(list(lines)), ResultsError.exit_status if loaded.errors else 0


def again(root: Path, paths: Sequence[str], *, group: int | None, args: Sequence[str] = ()) -> int:
    """Run what failed once more, or one group of it; pytest's exit status. ResultsError: a file cannot be used."""
    loaded = files.load(_places(paths))
    if loaded.errors:
        raise loaded.errors[0]
    pairs, origin = rerun.chosen(causes.groups(loaded.results), group)
    settings = config.load(root)
    rows = matrix.load(root / settings.catalogue if settings.catalogue else None).rows
    known = {"host", *(row.name for row in rows), *(row.name + matrix.SIMULATED for row in rows if row.series)}
    with _short(rerun.arguments(pairs, origin, known)) as wanted:
        return child([sys.executable, "-m", "pytest", *wanted, *args], root)


@contextmanager
def _short(wanted: Sequence[str]) -> Iterator[Sequence[str]]:
    """The words, or one that names a file of them."""
    if len(wanted) <= ON_THE_COMMAND_LINE:
        yield wanted
        return
    with tempfile.NamedTemporaryFile("w", dir=cache("runs"), prefix=".rerun-", suffix=".txt") as file:
        file.writelines(f"{word}\n" for word in wanted)
        file.flush()
        yield [f"@{file.name}"]


def _places(paths: Sequence[str]) -> list[Path]:
    if paths:
        return [user_path(path) for path in paths]
    here = str(Path.cwd())
    passed_over: list[str] = []
    for run in reversed([run for run in runs.seen() if run.record.cwd == here]):
        if (run.dir / runs.RESULTS).is_file():
            if passed_over:
                print(f"without results, and passed over: run {', '.join(passed_over)}", file=sys.stderr)
            print(f"run {run.record.id}, {run.record.started[:19]} UTC, {run.state}", file=sys.stderr)
            return [run.dir / runs.RESULTS]
        # Commands in guests (kmt.exec, kmt.shell) leave none either, and nobody waits for any.
        if any("pytest" in part for argv in run.record.argv[:1] for part in Path(argv).parts[-2:]):
            passed_over.append(f"{run.record.id} ({run.state})")
    raise ConfigError("no run of this project has left results here", hint=f"name a file: {task('explain FILE')}")
