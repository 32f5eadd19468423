"""What verifying an update costs: ours against python-tuf on the same bytes, in one process.

``python benchmarks/tuf_update.py [--rounds N] [--size BYTES] [FILES ...]``; without numbers, 10, 1,000 and 10,000
files. Ours is ``State.apply``; python-tuf's is parsing the targets, ``verify_delegate`` over their canonical form,
and length and hashes of every file that was sent. Prints the median CPU time of each, taken in turns, their
ratio, and the most memory that one update takes. Status 1 if ours costs more than 1.3 times python-tuf's and more
than 1 ms above it.
"""

import argparse
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from tuf.api.metadata import Metadata, Targets

sys.path.insert(0, str(Path(__file__).parents[1] / "fixtures/tuf"))

from tuf_server import NOW, Server

from harness.remote.state import State, Update

TIMES, EXTRA = 1.3, 0.001


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


def measure(name: str, state: State, update: Update, rounds: int) -> bool:
    """Print a line for one update; True if it is within the bounds."""

    def ours() -> object:
        return state.apply(update, now=NOW)

    def theirs() -> object:
        return library(state, update)

    ours(), theirs()
    pairs = [(cpu(ours), cpu(theirs)) for _ in range(rounds)]
    mine, other = (statistics.median(times) for times in zip(*pairs, strict=True))
    good = mine <= TIMES * other or mine <= other + EXTRA
    print(
        f"{name:24} {1000 * mine:9.2f} ms  python-tuf {1000 * other:9.2f} ms  ratio {mine / other:5.2f}"
        f"  most memory {peak(ours):7.1f} MiB{'' if good else '  too much'}",
        flush=True,
    )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=int, default=[10, 1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=500, help="bytes of one file")
    options = parser.parse_args()
    good = True
    for count in options.files:
        server = Server(files={f"datadog/2/TESTING1/{n}/c": (b"%0*d" % (options.size, n), 1) for n in range(count)})
        fresh = State.verified(server.roots[0])
        held = fresh.apply(server.answer(fresh), now=NOW).state
        good &= measure(f"{count} files, unchanged", held, server.answer(held), options.rounds)
        server.files = {path: (raw[::-1] + b"!", 2) for path, (raw, _) in server.files.items()}
        server.targets_version += 1
        good &= measure(f"{count} files, changed", held, server.answer(held), options.rounds)
        good &= measure(f"{count} files, new", fresh, server.answer(fresh), options.rounds)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
