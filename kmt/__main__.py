"""``python -m kmt TASK``: what looks after kernels and cache, for projects that have a wheel of this one, no ``inv``.

Tests are run by ``pytest --kernel``; the tasks here are the ones that errors and ``--help`` refer to.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from kmt import doctor
from kmt.commands import cleaning, explaining, guest, matrix, snapshots, watching
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
    stopping = tasks.add_parser("stop", help="stop runs: once to ask, twice to end them")
    stopping.add_argument("run", nargs="?", default="", help="its id or the beginning of it (default: all)")
    explaining_ = tasks.add_parser("explain", help="what failed, by its cause over kernels")
    explaining_.add_argument("results", nargs="*", help=RESULTS)
    again = tasks.add_parser("rerun", help="run just what failed again; words behind -- go to pytest")
    again.add_argument("--from", dest="results", action="append", default=[], metavar="RESULTS", help=RESULTS)
    again.add_argument("--group", type=int, help="one of the numbers that explain gives")
    again.add_argument("args", nargs="*", help="words for pytest, behind --")
    cleaner = tasks.add_parser("clean", help="remove what older versions and runs that are over left in the cache")
    cleaner.add_argument("--all", action="store_true", help="the whole cache")
    return made


def perform(said: argparse.Namespace, root: Path) -> tuple[Iterable[str], int]:
    """Lines to print and the exit status. Raises KmtError."""
    if said.task == "doctor":
        text, status = doctor.examine(root)
        return [text], status
    if said.task == "ls":
        return [matrix.listing(root, said.kernels)], 0
    if said.task == "fetch":
        return matrix.fetch(root, said.kernels, update=said.update)
    if said.task == "explain":
        return explaining.explain(said.results)
    if said.task == "rerun":
        return [], explaining.again(root, said.results, group=said.group, args=said.args)
    if said.task == "shell":
        return [], guest.shell(root, said.kernel)
    if said.task == "exec":
        return [], guest.execute(root, said.kernel, said.command)
    if said.task == "snapshot":
        return [snapshots.listing()], 0
    if said.task == "status":
        return [watching.status()], 0
    if said.task == "stop":
        return watching.stop(said.run), 0
    return cleaning.clean(everything=said.all), 0


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
