"""How long ``kmt.explain`` takes over many files of results, reading included.

``python benchmarks/explaining.py [--files N] [--tests N]``: files of five kernels each, every fiftieth test failing for
one of seven reasons, against the time that ``json.loads`` alone takes for the same bytes; the best of three.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from kmt.explain import causes, files, words
from kmt.results import KernelResult, Made, Outcome, TestResult, to_json

KERNELS = ("5.10", "6.1", "6.12", "6.18", "7.3")


def kernel(name, tests, seed):
    made = KernelResult(name, f"{name}.1-cloud-amd64", "qemu", accelerator="tcg", outcome=Outcome.FAILED)
    for number in range(tests):
        bad = (number + seed) % 50 == 0
        reason = f"AssertionError: reason {number % 7} at 0x{number:x}" if bad else ""
        nodeid = f"tests/kernel/test_{number % 20}.py::test_something_long_enough[{number}]"
        made.tests.append(TestResult(nodeid, "failed" if bad else "passed", 0.01, reason))
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--tests", type=int, default=80, help="tests of each kernel")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for number in range(options.files):
            kernels = [kernel(name, options.tests, number) for name in KERNELS]
            document = to_json(kernels, Made("2026-01-01T00:00:00+00:00", 1.0, 1))
            Path(directory, f"results-{number:03}.json").write_text(json.dumps(document, indent=1))
        best = parsing = float("inf")
        for _ in range(3):
            begin = time.perf_counter()
            groups = causes.groups(files.load([Path(directory)]).results)
            lines = list(words.lines(groups, kernels=len(KERNELS), command=["again"]))
            best = min(best, time.perf_counter() - begin)
            begin = time.perf_counter()
            size = sum(len(json.dumps(json.loads(path.read_bytes()))) for path in Path(directory).iterdir())
            parsing = min(parsing, time.perf_counter() - begin)
    tests = options.files * len(KERNELS) * options.tests
    print(f"{options.files} files, {tests:,} tests, {size / 1e6:.0f} MB: {best:.2f} s ({len(groups)} groups,"
          f" {len(lines)} lines); to load and dump their JSON: {parsing:.2f} s")  # fmt: skip


if __name__ == "__main__":
    main()
