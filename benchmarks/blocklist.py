"""Look-ups in the blocklist, beside the least-recently-used maps of PyPI that are installed.

``python benchmarks/blocklist.py [--rounds N]``; for the comparison ``pip install cachetools lru-dict pylru``. Each has
2,000 entries and is asked for each of them, all hits that count as use; "with a lock" is what threads may share. A line
a map: million look-ups a second (the best round of all, taken in turns) and how many times faster than ours.
"""

import argparse
import importlib
import sys
import time
from functools import partial
from pathlib import Path
from threading import Lock

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.watcher.blocklist import CAPACITY, Blocklist
from harness.watcher.identity import PathIdentifier

OTHERS = {
    "cachetools": ("cachetools", "LRUCache"),
    "lru-dict": ("lru", "LRU"),
    "pylru": ("pylru", "lrucache"),
}
IDS = [PathIdentifier(66306, inode) for inode in range(CAPACITY)]


def under(lock, get, id):
    with lock:
        return get(id)


def maps():
    """Functions that look an id up, by what they are."""
    ours = Blocklist()
    for id in IDS:
        ours.add(id, "/proc/1/root/usr/lib/libssl.so.3")
    found = {"blocklist (ours)": ours.sample_path}
    for name, (module, kind) in OTHERS.items():
        try:
            made = getattr(importlib.import_module(module), kind)(CAPACITY)
        except ImportError:
            print(f"{name} is not installed", file=sys.stderr)
            continue
        for id in IDS:
            made[id] = "/proc/1/root/usr/lib/libssl.so.3"
        found[f"{name}, with a lock"] = partial(under, Lock(), made.get)
        found[f"{name}, bare"] = made.get
    return found


def rate(look_up):
    """Million look-ups a second."""
    begin = time.perf_counter()
    for _ in range(20):
        for id in IDS:
            look_up(id)
    return 20 * len(IDS) / (time.perf_counter() - begin) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=15, help="of which the best counts (15)")
    options = parser.parse_args()
    found = maps()
    best = dict.fromkeys(found, 0.0)
    for _ in range(options.rounds):
        for name, look_up in found.items():
            best[name] = max(best[name], rate(look_up))
    ours = next(iter(best.values()))
    for name, million in best.items():
        print(f"{name:26} {million:6.2f} million/s   {million / ours:5.2f} times ours")


if __name__ == "__main__":
    main()
