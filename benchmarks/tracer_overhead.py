"""What the tracer costs: its start, TCP traffic with it and without it, and a burst of short connections.

``python benchmarks/tracer_overhead.py [--kernel 6.12] [--tracer fentry|kprobe] [--pairs 15] [--burst 100000] [--json]``

Boots the kernel and measures in it; numbers are of this machine, ratios travel better. A pair is one run with the
programs attached and one with them taken off again, in alternating order; the ratio is the median over the pairs. A
ping-pong is one byte to and fro over loopback, a big send 64 KiB in one call. The burst's connections are short ones,
read while they come: what was read plus what the tracer calls lost must be twice their number.
"""

import argparse
import json
import os
import socket
import statistics
import sys
import threading
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAMILIES = ("tcp_v4", "tcp_v6", "udp_v4", "udp_v6")


def ping_pong(client, server, rounds=2000):
    begin = time.perf_counter()
    for _ in range(rounds):
        client.send(b"x")
        server.recv(1)
        server.send(b"y")
        client.recv(1)
    return time.perf_counter() - begin


def big_sends(client, server, rounds=400):
    data, room = bytes(1 << 16), bytearray(1 << 16)
    begin = time.perf_counter()
    for _ in range(rounds):
        client.sendall(data)
        left = len(data)
        while left:
            left -= server.recv_into(room, left)
    return time.perf_counter() - begin


def timed(work):
    """Seconds of one run over a connection of its own, after a short one to warm up."""
    from fixtures.workloads import tcp

    client, server = tcp.connected()
    with client, server:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        work(client, server, 20)
        return work(client, server)


def ratios(tracer, work, pairs):
    """On against off, pair by pair; which comes first alternates."""
    found = []
    for pair in range(pairs):
        seconds = {}
        for on in (True, False) if pair % 2 else (False, True):
            tracer.collect(**dict.fromkeys(FAMILIES, on))
            seconds[on] = timed(work)
        found.append(seconds[True] / seconds[False])
        tracer.collect(**dict.fromkeys(FAMILIES, True))
        tracer.closed(0)
    return found


def burst(load, number):
    """Connections a second with and without, and the tracer's account of them."""
    from fixtures.workloads import tcp

    begin = time.perf_counter()
    tcp.burst(number // 10, 7, 3)
    without = (number // 10) / (time.perf_counter() - begin)
    done, read = threading.Event(), 0
    with load(close_event_pages=256) as tracer:

        def reader():
            nonlocal read
            while not done.is_set():
                read += len(tracer.closed(0.2))

        thread = threading.Thread(target=reader)
        thread.start()
        begin = time.perf_counter()
        tcp.burst(number, 7, 3)
        seconds = time.perf_counter() - begin
        done.set()
        thread.join()
        read += len(tracer.closed(0))
        counters = tracer.counters()
        return {
            "connections": number,
            "a second": number / seconds,
            "a second without the tracer": without,
            "ends told": read,
            "ends called lost": counters.events_lost,
            "ends unaccounted for": 2 * number - read - counters.events_lost,
            "programs that could not run": tracer.missed(),
        }


def measure(kind, pairs, number):
    """In the guest."""
    from harness.ebpf.live import LiveKernel
    from harness.ebpf.settings import BpfSettings
    from harness.tracer import fentry, kprobe
    from harness.tracer.settings import TracerSettings

    live, settings = LiveKernel(), BpfSettings(Path(os.environ["KMT_BPF_DIR"]))
    loaders = {"fentry": partial(fentry.load_tracer, fargate=lambda: True), "kprobe": kprobe.load_tracer}

    def load(**changed):
        return loaders[kind](live, settings, TracerSettings(**changed))

    begin = time.perf_counter()
    with load() as tracer:
        start = time.perf_counter() - begin
        found = {"release": live.release, "tracer": str(tracer), "load and attach, s": start}
        for name, work in (("ping-pong", ping_pong), ("64 KiB sends", big_sends)):
            all_ratios = sorted(ratios(tracer, work, pairs)) if pairs else []
            if all_ratios:
                found[f"{name}, on / off"] = statistics.median(all_ratios)
                found[f"{name}, spread"] = [all_ratios[0], all_ratios[-1]]
    if number:
        found["burst"] = burst(load, number)
    print(json.dumps(found), flush=True)


def in_guest(kernel, words):
    """This script's output in that kernel, with the project and its built programs."""
    from kmt import build, runs
    from kmt.commands import guest
    from kmt.guest.wire import Kind
    from kmt.run.guest import BPF_DIR, environment
    from kmt.run.tree import Tree, write_tar

    chosen = guest.choose(ROOT, kernel, "", "")
    built = build.build(chosen.settings).dir
    names = tuple(sorted(str(p.relative_to(built)) for p in built.rglob("*") if p.is_file()))
    said = b""
    with runs.start([chosen.name], sys.argv) as run, guest.booted(chosen, run) as link:
        link.send_tar(BPF_DIR, partial(write_tar, Tree(built, names, ())))
        environment_there = {**environment(chosen.settings.env), "KMT_BPF_DIR": BPF_DIR, "PYTHONPATH": str(ROOT)}
        for frame in link.start(["python3", __file__, "--here", *words], cwd=str(ROOT), env=environment_there):
            if frame.kind is Kind.EXIT:
                run.finish(int(frame.body["status"]))
            else:
                said += frame.raw[1:]
    return json.loads(said.decode().splitlines()[-1]) if said.strip().endswith(b"}") else sys.exit(said.decode())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("--tracer", default="fentry", choices=["fentry", "kprobe"])
    parser.add_argument("--pairs", type=int, default=15, help="of runs with and without (15)")
    parser.add_argument("--burst", type=int, default=100_000, help="short connections (100,000; 0: none)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure(options.tracer, options.pairs, options.burst)
        return
    words = ["--tracer", options.tracer, "--pairs", str(options.pairs), "--burst", str(options.burst)]
    found = in_guest(options.kernel, words)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in {**found, **found.pop("burst", {})}.items():
        print(f"{name:30} {value:.3f}" if isinstance(value, float) else f"{name:30} {value}")


if __name__ == "__main__":
    main()
