"""What more of the same costs: a matrix by its number of kernels, guests of one kernel by their memory.

``python benchmarks/scale.py [--kernels default] [--guests 10] [--json FILE]``, also a part of ``./inv bench``. The
matrix runs two small tests in a project of its own, from shell to exit, everything warm; beside the seconds stand
those of all processors, for guests share them. Guests of one kernel map one snapshot's memory copy-on-write: counted
is what each has for itself (private), and its share of all (proportional), as the kernel's smaps_rollup has it.
"""

import argparse
import json
import os
import re
import resource
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from instant import TESTS
from rich.console import Console
from rich.table import Table

from kmt import archive, backends, config, matrix, proc
from kmt.backends.base import Machine
from kmt.deadline import Deadline
from kmt.run.link import Link


def timed(argv, cwd):
    """Seconds by the clock and by the processors of one command."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    proc.run(argv, cwd=cwd)
    seconds, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def matrices(home, names):
    """For 1, 2, 3 ... of the kernels: (how many, seconds, processor seconds)."""
    (home / "test_two.py").write_text(TESTS.format(series=""))
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_two.py", "--kernel"]
    timed([*argv, ",".join(names)], home)  # whatever is made once
    return [(n, *timed([*argv, ",".join(names[:n])], home)) for n in range(1, len(names) + 1)]


def rollup(pid):
    """Private and proportional memory of a process, in MiB."""
    found = dict(re.findall(r"^(\w+): +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE))
    private = int(found["Private_Clean"]) + int(found["Private_Dirty"])
    return private / 1024, int(found["Pss"]) / 1024


def crowd(backend, kernel, number, scratch):
    """That many guests of one kernel at once, idle: (private, proportional) of each in MiB."""
    backend.prepare(kernel, Machine())
    deadline = Deadline(120 * backend.deadline_factor)
    with ExitStack() as stack:
        vms = []
        for _ in range(number):
            room = Path(tempfile.mkdtemp(dir=scratch))
            vm = stack.enter_context(backend.launch(kernel, Machine(), room, deadline))
            Link(vm, deadline, factor=backend.deadline_factor, cancel=threading.Event()).hello()
            vms.append(vm)
        return [rollup(vm.pid) for vm in vms]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kernels", default="default")
    parser.add_argument("--guests", type=int, default=10, help="guests at once of the first kernel (10)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kmt-bench-") as scratch:
        home = Path(scratch)
        settings = config.load(home)
        rows = matrix.load().select([options.kernels])
        backend = backends.get("qemu", config=settings)
        guests = crowd(backend, archive.prepare(rows[0], config=settings), options.guests, home)
        runs = matrices(home, [row.name for row in rows])
    table = Table(title=f"{os.cpu_count()} cores", title_justify="left", box=None, pad_edge=False)
    for head in ("kernels", "seconds", "more than before", "processor seconds"):
        table.add_column(head, justify="right")
    for i, (n, seconds, busy) in enumerate(runs):
        more = f"{seconds - runs[i - 1][1]:.1f}" if i else ""
        table.add_row(str(n), f"{seconds:.1f}", more, f"{busy:.1f}")
    Console().print(table)
    private, share = (statistics.median(column) for column in zip(*guests, strict=True))
    each = sum(s for _, s in guests) / len(guests)
    print(f"{len(guests)} idle guests: {private:.0f} MiB private, {share:.0f} MiB proportional at the median")
    print(f"guests per GiB: {1024 / each:.1f}")
    if options.json:
        told = {"kernels": runs, "guests": guests, "guests_per_gib": 1024 / each}
        options.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
