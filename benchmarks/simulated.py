"""Situations of the fallback chain in a simulated kernel: how many a second on one core, warm.

``python benchmarks/simulated.py [--kernel 6.1] [--situations N] [--rounds N]``. A situation is one of the differential
tests' chains: settings, a fault in each stage's files or none, rings or perf buffers, rights; played through the
harness's own loader (``harness.watcher.program``) with real files. Their trees are made, and each situation is
played once, before the clock starts. Faults that hide directories from a thread are left out: what they cost is the
host's mounts. Seconds are of the processor, beside those of a calibration (SHA-256 of 1 MiB).
"""

import argparse
import hashlib
import itertools
import logging
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from chain_faults import FAULTS, copied  # noqa: E402
from chain_table import TABLE  # noqa: E402
from situations import Chain  # noqa: E402
from worlds import Simulated  # noqa: E402

from kmt import archive, build, build_kernel, config, matrix  # noqa: E402
from kmt.simulator.faults import Faults  # noqa: E402
from kmt.simulator.kernel import simulated  # noqa: E402


def programs(name, room):
    """What a guest of that kernel would be given."""
    settings = config.load(ROOT)
    (row,) = matrix.load().select([name])
    kernel = archive.prepare(row, config=settings)
    place = room / "built"
    for directory in build_kernel.directories(settings, build.build(settings), kernel):
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            target = place / path.relative_to(directory)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return copied(place, room / "bpf")


def situations(number, pristine, room):
    """So many, each with its tree."""
    dice = random.Random(1)
    found = []
    for n in itertools.count():
        if len(found) == number:
            return found
        place = room / f"tree-{n}"
        copied(pristine, place)
        faults = tuple(dice.choice((None, *names)) for _, names in FAULTS.values())
        broken = zip(FAULTS.values(), faults, strict=True)
        away = [directory for (spoil, _), how in broken if how for directory in spoil(place, how)]
        (place / "garbage.btf").write_bytes(b"\x9f\xeb" + bytes(range(256)))
        if away:
            continue
        chain = Chain(dice.choice(sorted(TABLE)), faults, dice.random() < 0.5, dice.random() < 0.5, dice.random() < 0.2)
        found.append((chain, place))


def timed(do):
    begun = time.process_time()
    do()
    return time.process_time() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="6.1")
    parser.add_argument("--situations", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    block = bytes(1 << 20)
    with tempfile.TemporaryDirectory() as name:
        room = Path(name)
        drawn = situations(chosen.situations, programs(chosen.kernel, room), room)
        kernels = {
            denied: Simulated(simulated(chosen.kernel, room / "proc", faults=Faults(denied=denied)))
            for denied in (False, True)
        }
        stages = set()

        def play():
            for chain, place in drawn:
                steps = chain.play(kernels[chain.denied], place)
                stages.update(str(step[1][0]) for step in steps if step[0] == "start" and isinstance(step[1], tuple))

        play()
        calibration, rounds = [], []
        for _ in range(chosen.rounds):
            calibration.append(timed(lambda: hashlib.sha256(block).digest()))
            rounds.append(timed(play) / len(drawn))
    each = statistics.median(rounds)
    print(f"{1 / each:,.0f} situations a second on one core ({', '.join(sorted(stages))} won)")
    print(f"one costs {each * 1e6:,.0f} us, {each / statistics.median(calibration):.2f} times SHA-256 of 1 MiB")


if __name__ == "__main__":
    main()
