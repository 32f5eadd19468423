"""Boot kernels again and again: how many boots fail, how long one takes from power-on to the agent's hello.

``python benchmarks/boots.py [--boots N] [--jobs N] [KERNEL ...]``; without kernels, the default set. Prints a line a
kernel and ends with status 1 when any boot failed. Consoles of failed boots are kept and named.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from kmt import archive, backends, config, matrix
from kmt.backends.base import Machine
from kmt.deadline import Deadline
from kmt.errors import KmtError
from kmt.run.link import Link

SETTINGS = replace(config.load(Path(__file__).parents[1]), snapshots=False)


def boot(backend, kernel, directory, machine):
    """One boot: (seconds to hello, "") or (None, what went wrong)."""
    directory.mkdir()
    deadline = Deadline(60 * backend.deadline_factor)
    begin = time.monotonic()
    try:
        with backend.launch(kernel, machine, directory, deadline) as vm:
            link = Link(vm, deadline, factor=backend.deadline_factor, cancel=threading.Event())
            link.hello()
            seconds = time.monotonic() - begin
            link.goodbye()
            while vm.death() is None and not deadline.passed():
                time.sleep(0.02)
            end = str(vm.death())
            return (seconds, "") if "ended with status 0" in end else (None, f"on leaving: {end}")
    except KmtError as error:
        return None, f"{type(error).__name__}: {error}"


def measure(name, kernel, backend, machine, scratch, boots, jobs):
    """Many boots of one kernel, ``jobs`` at once; prints its line and returns how many failed."""
    backend.prepare(kernel, machine)
    room = scratch / name
    room.mkdir()
    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(lambda n: boot(backend, kernel, room / str(n), machine), range(boots)))
    good = sorted(seconds for seconds, _ in done if seconds is not None)
    errors = Counter(error for seconds, error in done if seconds is None)
    panics = sum(count for error, count in errors.items() if error.startswith("VmPanicked"))
    median = f"{statistics.median(good):5.1f} s  {good[0]:5.1f} to {good[-1]:5.1f} s" if good else "      -"
    print(f"{name:8} {kernel.release:32} {len(good):4} of {boots:4} up  {panics:3} panics  median {median}", flush=True)
    for error, count in errors.most_common():
        print(f"  {count:3}  {error}", flush=True)
    return sum(errors.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("kernels", nargs="*", default=["default"], metavar="KERNEL")
    parser.add_argument("--boots", type=int, default=10, help="boots of each kernel (10)")
    parser.add_argument("--jobs", type=int, default=1, help="guests at once (1)")
    parser.add_argument("--memory", type=int, default=512, help="MiB a guest (512)")
    parser.add_argument("--backend", default="qemu")
    parser.add_argument("--accel", default="auto", choices=["auto", "kvm", "tcg"])
    options = parser.parse_args()
    backend = backends.get(options.backend, config=SETTINGS, accel=options.accel)
    machine = Machine(memory_mib=options.memory)
    scratch = Path(tempfile.mkdtemp(prefix="kmt-boots-"))
    failed = 0
    for row in matrix.load().select(options.kernels):
        kernel = archive.prepare(row, config=SETTINGS)
        failed += measure(row.name, kernel, backend, machine, scratch, options.boots, options.jobs)
    print(f"consoles: {scratch}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
