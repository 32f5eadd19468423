"""What a machine over SSH costs beside the same agent in a process here: to its first word, to a command, per MB.

``python benchmarks/over_ssh.py [--rounds N]``: a private sshd on a loopback port, this machine's kernel on both sides,
so that all the difference is ssh's and the journey's. Prints medians and ratios; first words and commands of the two
take turns.
"""

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from sshd import serving

from kmt import backends, config
from kmt.backends.base import Machine
from kmt.deadline import Deadline
from kmt.matrix import Row
from kmt.run.link import Link

MEGABYTES = 100


def once(backend, kernel):
    """Seconds to HELLO, of one command, and of the output of ``MEGABYTES``."""
    with tempfile.TemporaryDirectory(prefix="kmt-bench-") as scratch:
        begin = time.monotonic()
        with backend.launch(kernel, Machine(), Path(scratch), Deadline(600)) as vm:
            link = Link(vm, Deadline(600), factor=1.0, cancel=threading.Event())
            link.hello()
            hello = time.monotonic()
            list(link.start(["true"]))
            command = time.monotonic()
            said = sum(len(frame.raw) for frame in link.start(["head", "-c", str(MEGABYTES * 10**6), "/dev/zero"]))
            assert said >= MEGABYTES * 10**6
            return hello - begin, command - hello, time.monotonic() - command


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5, help="of each (5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kmt-bench-") as room, serving(Path(room)) as server:
        settings = config.load(Path(room))
        places = {"host": Row("host"), "ssh": server.row()}
        made = {name: backends.get(name, config=settings) for name in places}
        begin = time.monotonic()
        kernels = {name: made[name].kernel(row) for name, row in places.items()}
        print(f"asking what runs there     {time.monotonic() - begin:7.3f} s")
        taken = {name: [] for name in places}
        for _ in range(options.rounds):
            for name, backend in made.items():
                taken[name].append(once(backend, kernels[name]))
    for number, what in enumerate(("to the agent's first word", "a command", f"{MEGABYTES} MB of output")):
        here, there = (statistics.median(one[number] for one in taken[name]) for name in ("host", "ssh"))
        print(f"{what:26} {there:7.3f} s over SSH, {here:7.3f} s here: {there / here:.1f} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())
