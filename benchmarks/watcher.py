"""The watcher's start-up scan, and the way from an event to a callback.

``python benchmarks/watcher.py [--processes N] [--mapped N] [--rounds N] [--events N]``. The scan is of a proc root that
is made for it: each process has that many mapped files and twenty open ones, and one in ten maps a TLS library
that it has to itself; it is timed from the start of a watcher to its end, beside reading the same files and doing
nothing with them. An event is put into a running watcher through the seam where the eBPF program's events arrive (so
no kernel with eBPF is needed; what the kernel adds is its buffer) and is over when the library's callback is called;
each is of a library that nobody has had before.
"""

import argparse
import logging
import os
import queue
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.ebpf.events import LibraryCounters, LibraryOpen
from harness.ebpf.live import LiveKernel
from harness.ebpf.settings import BpfSettings
from harness.errors import NotSupportedError
from harness.processes.monitor import ProcessMonitor
from harness.telemetry import Registry
from harness.watcher.watcher import Watcher

OPEN = 20
LINE = "7f{n:010x}-7f{n:010x} r-xp 00000000 08:01 {inode:<8}                     {path}\n"


def nothing(file):
    pass


class Injected:
    """The events of a program, from a queue."""

    def __init__(self):
        self.queue = queue.SimpleQueue()

    def take(self, seconds):
        try:
            return [self.queue.get(timeout=seconds)]
        except queue.Empty:
            return []

    def decode(self, record):
        return record

    def counters(self):
        return LibraryCounters(0, 0, 0)

    def close(self):
        pass


def no_source():
    raise NotSupportedError("ends of processes are not what is measured")


def watcher(proc_root, rules, opens):
    metrics = Registry()
    return Watcher(
        LiveKernel(),
        BpfSettings(Path("/nonexistent")),
        rules,
        proc_root=str(proc_root),
        metrics=metrics,
        opens=lambda: opens,
        monitor=ProcessMonitor(no_source, metrics=metrics),
    )


def make_proc_root(root, processes, mapped):
    """As much of ``/proc`` as a scan reads. Gives the number of processes with a library."""
    (root / "self").symlink_to("1")
    libraries = root.parent / "lib"
    libraries.mkdir()
    paths = [libraries / f"libplain{n}.so.1" for n in range(mapped)]
    with_library = 0
    for pid in range(2, processes + 2):
        entry = root / str(pid)
        (entry / "fd").mkdir(parents=True)
        (entry / "root").symlink_to("/")
        fields = " ".join(["S", "1", *["0"] * 15, "1", "0", str(1000 + pid), *["0"] * 30])
        (entry / "stat").write_text(f"{pid} (process {pid}) {fields}\n")
        for fd in range(OPEN):
            (entry / "fd" / str(fd)).symlink_to(f"socket:[{pid * OPEN + fd}]")
        mappings = list(paths)
        if pid % 10 == 0:
            mappings[-1] = libraries / f"libssl.so.{pid}"
            mappings[-1].touch()
            with_library += 1
        text = "".join(LINE.format(n=n, inode=n + 1, path=path) for n, path in enumerate(mappings))
        (entry / "maps").write_text(text)
    return with_library


def read_only(root):
    """Seconds to read what a scan reads, and no more."""
    begin = time.perf_counter()
    for entry in os.scandir(root):
        if entry.name.isdecimal():
            for link in os.listdir(f"{entry.path}/fd"):  # noqa: PTH208 (as the scan does it)
                os.readlink(f"{entry.path}/fd/{link}")  # noqa: PTH115
            for name in ("stat", "maps"):
                with open(f"{entry.path}/{name}", "rb") as file:  # noqa: PTH123
                    file.read()
    return time.perf_counter() - begin


def scan(root, found):
    """Seconds that a start takes."""
    with_callbacks = []
    begin = time.perf_counter()
    started = watcher(root, [(r"libssl\.so", with_callbacks.append, nothing)], Injected())
    started.start()
    seconds = time.perf_counter() - begin
    assert len(started.registry.registered_processes()) == found
    started.stop()
    assert len(with_callbacks) == found
    return seconds


def latency(directory, events):
    """Milliseconds from an event's arrival to its callback, sorted."""
    opens, called = Injected(), queue.SimpleQueue()
    taken = []
    with watcher("/proc", [(r"libssl\.so\.benchmark", lambda file: called.put(time.perf_counter()), nothing)], opens):
        for n in range(events):
            path = Path(directory) / f"libssl.so.benchmark{n}"
            path.touch()
            time.sleep(0.002)
            begin = time.perf_counter()
            opens.queue.put(LibraryOpen(os.getppid(), os.fsencode(path)))
            taken.append((called.get(timeout=10) - begin) * 1000)
    return sorted(taken)


def main():
    logging.disable(logging.WARNING)  # that there is no process monitor
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--processes", type=int, default=5000)
    parser.add_argument("--mapped", type=int, default=50, help="files that each has mapped (50)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "proc"
        root.mkdir()
        found = make_proc_root(root, options.processes, options.mapped)
        times = [(scan(root, found), read_only(root)) for _ in range(options.rounds)]
        start, read = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"start-up scan    {start:6.2f} s, reading alone {read:.2f} s: {start / read:.1f} times", flush=True)
        taken = latency(directory, options.events)
        median, worst = statistics.median(taken), taken[len(taken) * 99 // 100]
        print(f"event to callback {median:5.2f} ms at the median, {worst:.2f} ms at the 99th percentile", flush=True)


if __name__ == "__main__":
    main()
