"""The watcher through a real kernel: a burst of opens read whole, and the way from an open to its callback.

``./inv kmt.exec 6.12 -- python3 benchmarks/watcher_kernel.py [--opens N] [--events N]``. On this machine's own kernel
it takes root, tracefs and the built programs' directory (``./inv kmt.build`` names it) in ``KMT_BPF_DIR``.

A burst is that many opens of a TLS library by one other process, as fast as it can, under the whole watcher. Each line
has a buffer: the default one, the perf buffer that stands in for it, and a perf buffer of 8 pages a processor that
is not read before the burst is over (what was kept and what was lost must still add up). An open is timed from just
before the system call in another process to the call of its library's callback; each is of a library that nobody
had before.
"""

import argparse
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.ebpf.live import LiveKernel
from harness.ebpf.settings import BpfSettings
from harness.processes.monitor import ProcessMonitor
from harness.processes.source import opener
from harness.telemetry import Registry
from harness.watcher import program
from harness.watcher.watcher import Watcher

OPENER = """
import os, sys, time
opens = int(sys.argv[2])
begin = time.perf_counter()
for _ in range(opens):
    os.close(os.open(sys.argv[1], os.O_RDONLY))
print(opens / (time.perf_counter() - begin))
"""
TIMED = """
import os, sys, time
for line in sys.stdin:
    begin = time.perf_counter()
    os.close(os.open(line.rstrip(), os.O_RDONLY))
    print(begin, flush=True)
"""
PYTHON = [sys.executable, "-I", "-S", "-c"]


def nothing(file):
    pass


@contextmanager
def watching(rule, ringbuf):
    """A whole watcher and its metrics by their last word."""
    metrics, live = Registry(), LiveKernel()
    settings = BpfSettings(Path(os.environ["KMT_BPF_DIR"]), enable_ringbuffers=ringbuf)
    monitor = ProcessMonitor(opener(live, settings), metrics=metrics)
    with Watcher(live, settings, [rule], monitor=monitor, metrics=metrics) as watcher:
        if watcher.program is None:
            sys.exit("the program cannot be loaded here")
        yield watcher, lambda: {metric.name.rpartition(".")[2]: metric.value for metric in metrics.metrics()}


def burst(path, opens, ringbuf):
    """Prints a line: how fast it was, how many were handled, how many lost, and how long the handling lagged."""
    with watching((f"^{path}$", nothing, nothing), ringbuf) as (watcher, counted):
        said = subprocess.run([*PYTHON, OPENER, path, str(opens)], stdout=subprocess.PIPE, check=True, text=True)
        ended = time.perf_counter()
        handled, lag = -1, 0.0
        while handled != (handled := counted()["matches"]):
            lag = time.perf_counter() - ended
            time.sleep(0.5)
        counters = watcher.program.counters()
        lost, missed = counters.lost, counters.missed
        print(
            f"{opens:,} opens, {watcher.program}: {float(said.stdout):,.0f} a second, {handled:,} handled "
            f"({lag:.1f} s behind), {lost:,} lost, {opens - handled - lost:,} not seen, {missed:,} runs left out",
            flush=True,
        )


def overrun(path, opens):
    """The same into a small buffer that nobody reads until the burst is over."""
    program.PERF_PAGES = 8
    settings = BpfSettings(Path(os.environ["KMT_BPF_DIR"]), enable_ringbuffers=False)
    with program.start(LiveKernel(), settings) as running:
        said = subprocess.run([*PYTHON, OPENER, path, str(opens)], stdout=subprocess.PIPE, check=True, text=True)
        read = 0
        while batch := running.read(0.1):
            read += sum(os.fsdecode(event.path) == path for event in batch)
        counters = running.counters()
        print(
            f"{opens:,} opens, 8 pages, not read: {float(said.stdout):,.0f} a second, {read:,} kept, "
            f"{counters.lost:,} lost, {opens - read - counters.lost:,} not seen, {counters.missed:,} runs left out",
            flush=True,
        )


def latency(directory, events, ringbuf):
    """Prints milliseconds from an open to its callback: median, 99th percentile."""
    called, taken = queue.SimpleQueue(), []
    rule = (r"/libssl\.so\.benchmark", lambda file: called.put(time.perf_counter()), nothing)
    with (
        watching(rule, ringbuf) as (watcher, _),
        subprocess.Popen([*PYTHON, TIMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
    ):
        for n in range(events):
            path = Path(directory) / f"libssl.so.benchmark{n}{'r' if ringbuf else 'p'}"
            path.touch()
            time.sleep(0.005)
            other.stdin.write(f"{path}\n")
            other.stdin.flush()
            begin = float(other.stdout.readline())
            taken.append((called.get(timeout=30) - begin) * 1000)
        other.stdin.close()
        taken.sort()
        print(
            f"open to callback, {watcher.program}: {statistics.median(taken):.2f} ms at the median, "
            f"{taken[len(taken) * 99 // 100]:.2f} ms at the 99th percentile of {events}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--opens", type=int, default=100_000, help="of a burst (100,000; 0: no bursts)")
    parser.add_argument("--events", type=int, default=300, help="opens that are timed (300; 0: none)")
    options = parser.parse_args()
    print(f"{os.uname().release}, {len(os.sched_getaffinity(0))} processors", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/libssl.so.3"
        Path(path).touch()
        for ringbuf in (True, False):
            if options.opens:
                burst(path, options.opens, ringbuf)
            if options.events:
                latency(directory, options.events, ringbuf)
        if options.opens:
            overrun(path, options.opens)


if __name__ == "__main__":
    main()
