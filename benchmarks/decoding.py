"""How many closed connections a second come out of the events that carry them.

``python benchmarks/decoding.py [--events N]``: batches of four, as the kernel writes them, through the decoder that the
tracer uses, into named tuples; the best of five rounds, by the clock on the wall and in processor time.
"""

import argparse
import struct
import time

from harness.ebpf import events
from harness.ebpf.events import Conn
from harness.tracer.batches import Batches


def records(number):
    """So many connections, in batches."""
    conn = events.pack(Conn(0, 0x0100007F, 0, 0x0200007F, 40000, 80, 4026531840, 1234, events.TCP, 1000, 2000, 3, 4,
                            10**15, 10**9, 77, 0, 0, 0, 0, 5, 2, 100, 50, 130, 0))  # fmt: skip
    return [conn * 4 + struct.pack("<QIHxx", n, 0, 4) for n in range(number // 4)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--events", type=int, default=200_000)
    options = parser.parse_args()
    data, wall, cpu = records(options.events), 0.0, 0.0
    for _ in range(5):
        batches = Batches()
        begin, used = time.perf_counter(), time.process_time()
        conns = batches.merge([], data)
        wall = max(wall, len(conns) / (time.perf_counter() - begin))
        cpu = max(cpu, len(conns) / (time.process_time() - used))
    print(f"{wall:,.0f} closed connections a second, {cpu:,.0f} a second of processor time")


if __name__ == "__main__":
    main()
