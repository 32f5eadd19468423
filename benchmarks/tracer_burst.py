"""A burst of short TCP connections under the tracer: how many of their ends were told, and how many called lost.

``./inv kmt.exec 6.12 -- python3 benchmarks/tracer_burst.py [--tracer fentry|kprobe] [--connections 100000]``.

One process (fixtures/workloads/connections.c) connects, sends 7 bytes, gets 3 back and closes both ends, as fast as it
can. Lines are for the default buffer, the perf buffer that stands in for it, and the default buffer that nobody reads
before the burst is over. None may be unaccounted for: told and lost are all ends, and who was told of is right in every
byte.
"""

import argparse
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from threading import Event, Thread

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.ebpf.live import LiveKernel
from harness.ebpf.settings import BpfSettings
from harness.tracer import fentry, kprobe
from harness.tracer.settings import TracerSettings

LOADERS = {
    "fentry": lambda *words: fentry.load_tracer(*words, fargate=lambda: True),
    "kprobe": kprobe.load_tracer,
}
ROOM = Path(os.environ.get("KMT_BPF_DIR", "."))


class Reader:
    """Counts ends as the agent takes them: by the bytes that went each way."""

    def __init__(self, tracer):
        self.tracer, self.over = tracer, Event()
        self.pid, self.told = 0, Counter()
        self.thread = Thread(target=self.run)

    def run(self):
        while not self.over.is_set():
            self.take(0.1)

    def take(self, seconds):
        conns = self.tracer.closed(seconds)
        self.told.update((conn.pid, conn.sent_bytes, conn.recv_bytes) for conn in conns)
        return conns


def burst(load, number, *, ringbuf, read):
    settings = BpfSettings(ROOM, enable_ringbuffers=ringbuf)
    with load(LiveKernel(), settings, TracerSettings()) as tracer:
        reader = Reader(tracer)
        if read:
            reader.thread.start()
        with subprocess.Popen([ROOM / "bin/connections", "burst", str(number)], stdout=subprocess.PIPE) as program:
            speed = float(program.stdout.read())
        if read:
            reader.over.set()
            reader.thread.join()
        while reader.take(0.2):
            pass
        counters, missed, kind = tracer.counters(), tracer.missed(), str(tracer)
    told = {key[1:]: n for key, n in reader.told.items() if key[0] == program.pid}
    right = told.pop((7, 3), 0) + told.pop((3, 7), 0)
    print(
        f"{os.uname().release}, {kind}, {'read' if read else 'not read before its end'}: {number:,} connections, "
        f"{speed:,.0f} a second; of {2 * number:,} ends {right:,} told, {sum(told.values()):,} told wrongly, "
        f"{counters.events_lost:,} lost, {2 * number - right - sum(told.values()) - counters.events_lost:,} "
        f"unaccounted for; {missed:,} runs left out",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tracer", choices=LOADERS, default="fentry")
    parser.add_argument("--connections", type=int, default=100_000)
    options = parser.parse_args()
    load = LOADERS[options.tracer]
    for ringbuf, read in ((True, True), (False, True), (True, False)):
        burst(load, options.connections, ringbuf=ringbuf, read=read)


if __name__ == "__main__":
    main()
