"""How long the whole agent takes to end: from SIGTERM to its exit, with its programs loaded and while it polls.

In a guest: ``./inv kmt.exec 6.12 -- python3 benchmarks/session_end.py [--tracer kprobe|fentry] [--rounds 5]``. And how
long after that the kernel has its programs, which do nothing any more: some (6.12) let go of fentry programs function
by function, and wait for a grace period of all tasks for each. Where guests are emulated, all of it takes several times
longer.
"""

import argparse
import ctypes
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.ebpf import abi
from harness.remote.serve.directory import Directory
from harness.remote.serve.host import Host
from harness.remote.serve.server import GrpcServer

ROOT = Path(__file__).parents[1]
CONFIG = """
[tracer]
kind = "{kind}"
[remote]
url = "unix://{room}/socket"
root = "{root}"
token = "token"
interval = 0.1
[debug]
address = "unix:{room}/debug"
"""


def programs():
    """The ids of the programs in the kernel."""
    step = ctypes.CDLL(abi.SONAME).bpf_prog_get_next_id
    found, last = set(), ctypes.c_uint32(0)
    while step(last.value, ctypes.byref(last)) == 0:
        found.add(last.value)
    return found


def one_round(config, host):
    """Seconds from SIGTERM to the end of an agent that polls, from there to the end of its programs, and its tracer."""
    host.seen.clear()
    before = programs()
    words = [sys.executable, "-m", "harness", "run", "--config", str(config)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as agent:
        try:
            started = json.loads(agent.stdout.readline())
            while not host.seen:
                time.sleep(0.01)
            begun = time.monotonic()
            agent.send_signal(signal.SIGTERM)
            status = agent.wait()
            seconds = time.monotonic() - begun
        finally:
            agent.kill()
    assert status == 0
    begun = time.monotonic()
    while programs() - before:
        time.sleep(0.01)
    return seconds, time.monotonic() - begun, started["tracer"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tracer", default="kprobe", choices=["kprobe", "fentry"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        (room / "site").mkdir()
        (room / "token").write_text("token")
        directory = Directory(room / "site")
        config = room / "session.toml"
        config.write_text(CONFIG.format(kind=options.tracer, room=room, root=directory.root))
        host = Host(directory, random.Random(0))
        with GrpcServer(host.serve, address=f"unix:{room}/socket", token="token"):
            seconds, later, tracers = zip(*(one_round(config, host) for _ in range(options.rounds)), strict=True)
    print(f"{os.uname().release}, {tracers[-1]}: SIGTERM to exit {statistics.median(seconds):.2f} s "
          f"(median of {options.rounds}, {min(seconds):.2f} to {max(seconds):.2f}), "
          f"no program in the kernel {statistics.median(later):.2f} s later")  # fmt: skip


if __name__ == "__main__":
    main()
