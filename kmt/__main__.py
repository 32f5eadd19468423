"""``python -m kmt TASK``: what looks after kernels and cache, for projects that have a wheel of this one, no ``inv``.

Tests are run by ``pytest --kernel``; the tasks here are the ones that errors and ``--help`` refer to.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from kmt import doctor
from kmt.commands import (
    boundary,
    cleaning,
    explaining,
    guest,
    matrix,
    pipelines,
    reporting,
    snapshots,
    soaking,
    vagrant,
    watching,
)
from kmt.errors import KmtError

RESULTS = "a file of --kernel-json, a directory or a zip archive with such files (default: the latest run here)"


def parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    made = argparse.ArgumentParser(prog="python -m kmt", description="kernels and the cache; tests: pytest --kernel")
    tasks = made.add_subparsers(dest="task", required=True, metavar="TASK")
    tasks.add_parser("doctor", help="what this machine has, what it lacks, and the command that mends it")
    listing = tasks.add_parser("ls", help="the kernels: what each resolves to, and whether it is in the cache")
    fetching = tasks.add_parser("fetch", help="fetch kernels into the cache")
    fetching.add_argument("--update", action="store_true", help="move the lock file to the newest versions")
    for each in (listing, fetching):
        each.add_argument("kernels", nargs="*", help="names, globs, all, default, newest")
    shell = tasks.add_parser("shell", help="boot one kernel and give an interactive console in it")
    execute = tasks.add_parser("exec", help="run the command behind -- in one kernel: exec 6.1 -- uname -r")
    for each in (shell, execute):
        each.add_argument("kernel")
    execute.add_argument("command", nargs="+")
    tasks.add_parser("status", help="the runs that go on in any terminal, and the last ones")
    tasks.add_parser("snapshot", help="the warm snapshots that guests start from")
    boxing = tasks.add_parser("box", help="Vagrant's box and machines; box -- bash: a shell with a libvirtd of its own")
    boxing.add_argument("--kernels", action="append", default=[], help="as pytest --kernel takes them")
    boxing.add_argument("command", nargs="*", help="words behind --")
    stopping = tasks.add_parser("stop", help="stop runs: once to ask, twice to end them")
    stopping.add_argument("run", nargs="?", default="", help="its id or the beginning of it (default: all)")
    explaining_ = tasks.add_parser("explain", help="what failed, by its cause over kernels")
    explaining_.add_argument("results", nargs="*", help=RESULTS)
    again = tasks.add_parser("rerun", help="run just what failed again; words behind -- go to pytest")
    again.add_argument("--from", dest="results", action="append", default=[], metavar="RESULTS", help=RESULTS)
    again.add_argument("--group", type=int, help="one of the numbers that explain gives")
    again.add_argument("args", nargs="*", help="words for pytest, behind --")
    pipeline = tasks.add_parser("ci", help="write a pipeline of GitLab's or GitHub's from the matrix")
    pipeline.add_argument("--provider", required=True, choices=pipelines.PROVIDERS)
    pipeline.add_argument("--kernels", action="append", default=[], help="as pytest --kernel takes them")
    pipeline.add_argument("--split", type=int, default=1, metavar="N", help="jobs a kernel, each with a share of tests")
    pipeline.add_argument("--output", default="", metavar="FILE", help="write it there (default: standard output)")
    merging = tasks.add_parser("merge", help="one table and one verdict over what the jobs of a pipeline left")
    merging.add_argument("results", help="the directory with all jobs' files")
    merging.add_argument("--kernels", action="append", required=True, help="the names of all that were to run")
    merging.add_argument("--parts", type=int, default=1, metavar="N", help="how many jobs each of them had")
    merging.add_argument("--json", default="", metavar="FILE", help="write the merged results there")
    merging.add_argument("--junit", default="", metavar="FILE", help="write the merged JUnit file there")
    merging.add_argument("--host", action="store_true", help="there was a job of the host's tests too")
    soaking_ = tasks.add_parser("soak", help="run tests again and again: how often each fails")
    soaking_.add_argument("--kernels", action="append", default=[], help="as pytest --kernel takes them")
    soaking_.add_argument("--times", type=int, default=20, metavar="N")
    soaking_.add_argument("args", nargs="*", help="words for pytest, behind --")
    bundle = tasks.add_parser("flare", help="what a bug report needs, without secrets, as one archive")
    bundle.add_argument("--output", default="", metavar="FILE")
    oldest = tasks.add_parser("boundary", help="the oldest kernel that an eBPF object loads and attaches on")
    oldest.add_argument("object", type=Path)
    oldest.add_argument("program", nargs="?", default="", help="one of its programs (default: all)")
    oldest.add_argument("--kernels", action="append", default=[], help="which (default: all that are in the cache)")
    oldest.add_argument("--static", action="store_true", help="from the kernels' files alone: boot nothing")
    oldest.add_argument("--json", type=Path, help="write what was found to this file")
    cleaner = tasks.add_parser("clean", help="remove what older versions and runs that are over left in the cache")
    cleaner.add_argument("--all", action="store_true", help="the whole cache")
    return made


def _ci(said: argparse.Namespace, root: Path) -> Said:
    words = {"kernels": said.kernels, "parts": said.split, "output": said.output}
    return pipelines.generate(root, said.provider, **words), 0


def _merge(said: argparse.Namespace, root: Path) -> Said:
    words = {"kernels": said.kernels, "parts": said.parts, "json": said.json, "junit_file": said.junit,
             "host": said.host}  # fmt: skip
    return pipelines.verdict(root, said.results, **words)


def _boundary(said: argparse.Namespace, root: Path) -> Said:
    words = {"kernels": said.kernels, "static": said.static, "target": said.json}
    return [boundary.boundary(root, said.object, said.program, **words)], 0


def _doctor(_said: argparse.Namespace, root: Path) -> Said:
    text, status = doctor.examine(root)
    return [text], status


Said = tuple[Iterable[str], int]
"""Lines to print and the exit status."""
TASKS: Mapping[str, Callable[[argparse.Namespace, Path], Said]] = {
    "doctor": _doctor,
    "ls": lambda said, root: ([matrix.listing(root, said.kernels)], 0),
    "fetch": lambda said, root: matrix.fetch(root, said.kernels, update=said.update),
    "shell": lambda said, root: ([], guest.shell(root, said.kernel)),
    "exec": lambda said, root: ([], guest.execute(root, said.kernel, said.command)),
    "status": lambda said, root: ([watching.status()], 0),
    "box": lambda said, root: vagrant.make(root, said.kernels, said.command),
    "snapshot": lambda said, root: ([snapshots.listing()], 0),
    "stop": lambda said, root: (watching.stop(said.run), 0),
    "explain": lambda said, root: explaining.explain(said.results),
    "rerun": lambda said, root: ([], explaining.again(root, said.results, group=said.group, args=said.args)),
    "ci": _ci,
    "merge": _merge,
    "soak": lambda said, root: ([], soaking.repeat(root, said.kernels, times=said.times, args=said.args)),
    "flare": lambda said, root: (reporting.flare(root, said.output), 0),
    "boundary": _boundary,
    "clean": lambda said, root: (cleaning.clean(everything=said.all), 0),
}


def perform(said: argparse.Namespace, root: Path) -> Said:
    """Do the task. Raises KmtError."""
    return TASKS[said.task](said, root)


def main(argv: Sequence[str] | None = None) -> int:
    """Do it in the current directory; an error is one line."""
    said = parser().parse_args(argv)
    try:
        lines, status = perform(said, Path.cwd())
    except KmtError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    for line in lines:
        print(line)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
