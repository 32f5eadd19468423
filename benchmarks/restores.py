"""Restore a kernel from its warm snapshot again and again: failures, leaks, seconds to the first command, memory.

``python benchmarks/restores.py [--restores N] [--boots N] [KERNEL ...]``; without kernels, 6.12. Boots of the same
machine run in between, for the ratio. Prints a line of each; ends with status 1 when anything failed or leaked: a
process, a descriptor, a file, a listening socket, or memory of this process that grows.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil

from kmt import archive, backends, config, matrix, proc
from kmt.backends.base import Machine
from kmt.deadline import Deadline
from kmt.errors import KmtError
from kmt.guest.wire import Kind
from kmt.run.link import Link
from kmt.snapshot import store

SETTINGS = config.load(Path(__file__).parents[1])
GROWTH_MIB = 8
"""What this process may grow by over all restores: allocators are not exact."""


def start(backend, kernel, machine, *, restored):
    """One guest: (seconds to its agent's word, to the first command's answer, private MiB when idle), or the error."""
    with tempfile.TemporaryDirectory(prefix="kmt-restores-") as scratch:
        deadline = Deadline(60 * backend.deadline_factor)
        begin = time.monotonic()
        try:
            with backend.launch(kernel, machine, Path(scratch), deadline) as vm:
                link = Link(vm, deadline, factor=backend.deadline_factor, cancel=threading.Event())
                link.hello()
                ready = time.monotonic() - begin
                if vm.restored != restored:
                    return f"it {'booted' if restored else 'was restored'}: {backend.notice}"
                idle = proc.private_mib(vm.pid)
                *said, end = link.start(["uname", "-r"])
                first = time.monotonic() - begin
                answer = b"".join(frame.raw[1:] for frame in said).decode().strip()
                if (answer, end.kind, end.body["status"]) != (kernel.release, Kind.EXIT, 0):
                    return f"uname -r said {answer!r}"
                return ready, first, idle
        except KmtError as error:
            return f"{type(error).__name__}: {error}"


def holdings(key):
    """What this process holds now: processes, descriptors, listening sockets, files of the snapshot, its memory."""
    gc.collect()
    me = psutil.Process()
    return {
        "processes": len(me.children(recursive=True)),
        "descriptors": me.num_fds(),
        "listening sockets": len([c for c in me.net_connections("inet") if c.status == psutil.CONN_LISTEN]),
        "files of the snapshot": len(list(store.rooms().glob(f"*{key}*/**/*"))),
        "scratch directories": len(list(Path(tempfile.gettempdir()).glob("kmt-restores-*"))),
        "MiB": me.memory_info().rss >> 20,
    }


def spread(values):
    """Median, smallest and largest, in words."""
    return f"{statistics.median(values):6.3f} s ({min(values):.3f} to {max(values):.3f})"


def measure(name, options, machine):
    """All starts of one kernel; prints, and returns how much went wrong."""
    (row,) = matrix.load().select([name])
    kernel = archive.prepare(row, config=SETTINGS)
    warm = backends.get("qemu", config=SETTINGS, accel=options.accel)
    cold = backends.get("qemu", config=replace(SETTINGS, snapshots=False), accel=options.accel)
    warm.prepare(kernel, machine)
    start(warm, kernel, machine, restored=True)  # the first one pays for imports and cold caches
    key = warm.key(kernel, machine)
    before, restores, boots = holdings(key), [], []
    every = max(1, options.restores // options.boots) if options.boots else 0
    for number in range(options.restores):
        restores.append(start(warm, kernel, machine, restored=True))
        if every and number % every == 0 and len(boots) < options.boots:
            boots.append(start(cold, kernel, machine, restored=False))
    after = holdings(key)
    good, booted = ([found for found in runs if not isinstance(found, str)] for runs in (restores, boots))
    print(f"{name} ({kernel.release}): {len(good)} of {len(restores)} restored, {len(booted)} of {len(boots)} booted")
    if good:
        ready, first, idle = zip(*good, strict=True)
        print(f"  restore to the agent's word     {spread(ready)}\n  restore to the first command    {spread(first)}")
        print(f"  private memory when idle        {statistics.median(idle):6.1f} MiB, at most {max(idle):.1f}")
    if good and booted:
        _, slow, _ = zip(*booted, strict=True)
        ratio = statistics.median(slow) / statistics.median(first)
        print(f"  boot to the first command       {spread(slow)}: {ratio:.1f} times as long")
    wrong = [found for found in (*restores, *boots) if isinstance(found, str)]
    grown = {what: (before[what], after[what]) for what in before if after[what] > before[what]}
    if grown.get("MiB", (0, 0))[1] - grown.get("MiB", (0, 0))[0] <= GROWTH_MIB:
        grown.pop("MiB", None)
    for word in wrong:
        print(f"  failed: {word}")
    for what, (was, now) in grown.items():
        print(f"  grown: {what} from {was} to {now}")
    return len(wrong) + len(grown)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("kernels", nargs="*", default=["6.12"], metavar="KERNEL")
    parser.add_argument("--restores", type=int, default=200, help="restores of each kernel (200)")
    parser.add_argument("--boots", type=int, default=3, help="boots in between (3)")
    parser.add_argument("--memory", type=int, default=SETTINGS.memory, help=f"MiB a guest ({SETTINGS.memory})")
    parser.add_argument("--accel", default="auto", choices=["auto", "kvm", "tcg"])
    options = parser.parse_args()
    return 1 if sum(measure(name, options, Machine(memory_mib=options.memory)) for name in options.kernels) else 0


if __name__ == "__main__":
    sys.exit(main())
