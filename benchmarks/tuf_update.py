"""What verifying an update costs: ours against python-tuf on the same bytes, in one process.

``python benchmarks/tuf_update.py [--rounds N] [--size BYTES] [FILES ...]``; without numbers, 10, 1,000 and 10,000
files. Ours is ``State.apply``; python-tuf's is parsing the targets, ``verify_delegate`` over their canonical form,
and length and hashes of every file that was sent. Prints the median CPU time of each, taken in turns, their
ratio, and the most memory that one update takes. Status 1 if ours costs more than 1.3 times python-tuf's and more
than 1 ms above it, or if a file takes more memory among many files than among few.
"""

import argparse
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from tuf.api.metadata import Metadata, Targets

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures/tuf"))

from tuf_server import NOW, Server

from harness.remote.state import State, Update

TIMES, EXTRA = 1.3, 0.001
FEWEST, MORE = 1_000, 1.3
"""Below so many files, what does not depend on them counts; above, a file takes at most so much more memory."""


def cpu(work: Callable[[], object]) -> float:
    """Seconds of CPU that one call takes."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def library(state: State, update: Update) -> None:
    """The part of the work that python-tuf does."""
    assert state.trusted is not None
    targets = Metadata[Targets].from_bytes(update.targets)
    state.trusted.root.verify_delegate("targets", targets.signed_bytes, targets.signatures)
    for path, raw in update.files.items():
        targets.signed.targets[path].verify_length_and_hashes(raw)


def peak(work: Callable[[], object]) -> float:
    """MiB allocated at the most during one call."""
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 2**20


def measure(name: str, state: State, update: Update, rounds: int) -> tuple[bool, float]:
    """Print a line for one update; whether its time is within the bounds, and the MiB it takes."""

    def ours() -> object:
        return state.apply(update, now=NOW)

    def theirs() -> object:
        return library(state, update)

    ours(), theirs()
    pairs = [(cpu(ours), cpu(theirs)) for _ in range(rounds)]
    mine, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    good, most = mine <= TIMES * other or mine <= other + EXTRA, peak(ours)
    print(
        f"{name:24} {1000 * mine:9.2f} ms  python-tuf {1000 * other:9.2f} ms  ratio {mine / other:5.2f}"
        f"  most memory {most:7.1f} MiB{'' if good else '  too much time'}",
        flush=True,
    )
    return good, most


def linear(memory: dict[int, float]) -> bool:
    """Does a file take about the same memory, however many there are?"""
    each = [most / count for count, most in sorted(memory.items()) if count >= FEWEST]
    good = all(later <= MORE * earlier for earlier, later in pairwise(each))
    print("memory is linear in the files" if good else "memory grows faster than the files", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=int, default=[10, 1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=500, help="bytes of one file")
    options = parser.parse_args()
    good, memory = True, {}
    for count in options.files:
        server = Server(files={f"datadog/2/TESTING1/{n}/c": (b"%0*d" % (options.size, n), 1) for n in range(count)})
        fresh = State.verified(server.roots[0])
        first = server.answer(fresh)
        held = fresh.apply(first, now=NOW).state
        cases = [("new", fresh, first), ("unchanged", held, server.answer(held))]
        server.files = {path: (raw[::-1] + b"!", 2) for path, (raw, _) in server.files.items()}
        server.targets_version += 1
        cases.append(("changed", held, server.answer(held)))
        for name, state, update in cases:
            within, memory[count] = measure(f"{count} files, {name}", state, update, options.rounds)
            good &= within
    return 0 if linear(memory) and good else 1


if __name__ == "__main__":
    sys.exit(main())
