"""The FileRegistry: its pure core by itself, a whole registration against its own stat, memory for each entry.

``python benchmarks/registry.py [--files N] [--processes N] [--rounds N]``. The core holds that many files, each process
ten of them; an operation is a registration, an end of a process, or the word that a callback is done. A whole
registration (path, stat, lock, counters) is of an active file (libc) by another process that holds it, against
``os.stat`` of the same path through that process's root, in turns, by processor time; the ratio is that of the medians.
Memory is what tracemalloc sees.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.telemetry import Registry
from harness.watcher.blocklist import Blocklist
from harness.watcher.identity import FilePath, PathIdentifier
from harness.watcher.registry import FileRegistry
from harness.watcher.registry_core import Core, Epoch

HELD = 10
LIBRARY = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc.so" in line)


def nothing(file):
    pass


class Load:
    """A core under load: what happens, in an order made beforehand, so that nothing but the core is timed."""

    def __init__(self, files, processes):
        dice = random.Random(1)
        ids = [PathIdentifier(66306, 1_000_000 + n) for n in range(files)]
        self.core = Core("benchmark", Blocklist(), Registry())
        self.opens = [
            (pid, [FilePath(id, f"/proc/{pid}/root/lib/{id.inode}.so", pid) for id in dice.sample(ids, HELD)])
            for pid in range(1, processes + 1)
        ]
        # Every file is held by somebody.
        for n, id in enumerate(ids):
            pid, held = self.opens[n % processes]
            held.append(FilePath(id, f"/proc/{pid}/root/lib/{id.inode}.so", pid))
        self.again = dice.sample(self.opens, processes // 2)
        self.operations = 0

    def fill(self):
        """Every process opens its files."""
        for pid, held in self.opens:
            self.open(pid, held)

    def open(self, pid, held):
        core = self.core
        for file in held:
            self.operations += 1
            if core.share(file.id, pid):
                continue
            came_to = core.register(file, "/lib/x.so", nothing, nothing)
            if isinstance(came_to, Epoch):
                core.activated(came_to)
                self.operations += 1

    def churn(self):
        """Half of them end and come again."""
        for pid, held in self.again:
            for epoch in self.core.unregister(pid):
                self.core.deactivated(epoch, failed=False)
                self.operations += 1
            self.operations += 1
            self.open(pid, held)


def core_rate(options):
    """Operations a second of the best round: filling, then churning."""
    best = 0.0
    for _ in range(options.rounds):
        load = Load(options.files, options.processes)
        begin = time.perf_counter()
        load.fill()
        load.churn()
        best = max(best, load.operations / (time.perf_counter() - begin))
        assert load.core.active == options.files
        assert len(load.core.by_pid) == options.processes
    return best


def memory(options):
    """Bytes a file and a holding, of a core that is full."""
    load = Load(options.files, options.processes)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    load.fill()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    holdings = sum(len(held) for held in load.core.by_pid.values())
    return (after - before) / options.files, holdings / options.files


def register_against_stat(options):
    """Medians of a registration and of the stat in it, in microseconds."""
    registry = FileRegistry("benchmark", metrics=Registry())
    stat = os.stat
    times = {"register": [], "stat": []}
    with subprocess.Popen(["sleep", "infinity"]) as other:
        path, pid = str(Path(LIBRARY).resolve()), other.pid
        where = f"/proc/{pid}/root{path}"
        registry.register(path, pid, nothing, nothing)
        for _ in range(20 * options.rounds):
            begin = time.thread_time()
            for _ in range(1000):
                registry.register(path, pid, nothing, nothing)
            middle = time.thread_time()
            for _ in range(1000):
                stat(where)
            end = time.thread_time()
            times["register"].append((middle - begin) * 1000)
            times["stat"].append((end - middle) * 1000)
        other.kill()
    return [statistics.median(times[name]) for name in ("register", "stat")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"core             {core_rate(options):12,.0f} operations/s", flush=True)
    register, stat = register_against_stat(options)
    print(f"whole register   {register:8.2f} us, its stat {stat:.2f} us: {register / stat:.2f} times", flush=True)
    each, holders = memory(options)
    print(f"memory           {each:8.0f} bytes a file with {holders:.1f} holders")


if __name__ == "__main__":
    main()
