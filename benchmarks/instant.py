"""How fast is a kernel there? Ours, warm and cold, against virtme-ng on the same kernel and accelerator, in one run.

``python benchmarks/instant.py [--pairs N] [--series 6.12] [--json FILE] [--svg FILE]``, or ``./inv bench``. Measured,
interleaved, medians:

- command: guest process started to the answer of ``uname -r``; end to end: ``kmt.exec`` against ``vng -- uname -r``
  (virtme-ng can only be seen from outside, so its one figure stands against both of ours);
- pytest: a file of two tests, one of them Hypothesis with 200 examples, from shell to exit.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import chart
from virtme import VERSION, Virtme

from kmt import archive, backends, config, matrix, proc
from kmt.backends.base import Machine
from kmt.deadline import Deadline
from kmt.errors import KmtError
from kmt.guest.wire import Kind
from kmt.run.link import Link

ROOT = Path(__file__).parents[1]
TESTS = '''"""Two small tests."""

import os

from hypothesis import given, settings
from hypothesis import strategies as st


def test_kernel():
    assert os.uname().release.startswith("{series}")


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.integers()))
def test_sorted(numbers):
    assert sorted(sorted(numbers)) == sorted(numbers)
'''
PROJECT = '[tool.kmt]\ncatalogue = "kernels.toml"\n'
ROW = '[[kernel]]\nname = "{name}"\nseries = "{series}"\nflavour = "amd64"\nsuites = [{suites}]\n'


def project(directory, row):
    """A project of two tests, our tasks, and a catalogue of one kernel: the row's series in the generic flavour."""
    shutil.copy(ROOT / "tasks.py", directory)
    (directory / "pyproject.toml").write_text(PROJECT)
    suites = ", ".join(f'"{suite}"' for suite in row.suites)
    (directory / "kernels.toml").write_text(ROW.format(name=row.name, series=row.series, suites=suites))
    (directory / "test_two.py").write_text(TESTS.format(series=row.series))
    return config.load(directory)


def first_command(backend, kernel, directory):
    """Seconds from the start of the guest's process to the answer of its first command."""
    deadline = Deadline(60 * backend.deadline_factor)
    begin = time.monotonic()
    with backend.launch(kernel, Machine(), Path(tempfile.mkdtemp(dir=directory)), deadline) as vm:
        link = Link(vm, deadline, factor=backend.deadline_factor, cancel=threading.Event())
        link.hello()
        said = b"".join(f.raw[1:] for f in link.start(["uname", "-r"], cwd="/", env={}) if f.kind is Kind.OUTPUT)
        seconds = time.monotonic() - begin
    assert said.decode().strip() == kernel.release, said
    return seconds


def seconds(function, *args, **kwargs):
    """How long a call takes."""
    begin = time.monotonic()
    function(*args, **kwargs)
    return time.monotonic() - begin


def measured(name, function):
    """One figure. Tried again, aloud, where the peer fails: emulated, its kernel panics now and then, and over virtiofs
    pytest sometimes takes a file for another one.
    """
    for _ in range(3):
        try:
            return round(function(), 4)
        except KmtError as error:
            print(f"{name} once more: {str(error).splitlines()[-1]}", file=sys.stderr, flush=True)
    raise SystemExit(f"{name} failed three times in a row")


def measures(home, settings, kernel, accelerator):
    """Name to a function that measures once."""
    warm = backends.get("qemu", config=settings, accel=accelerator)
    cold = backends.get("qemu", config=dataclasses.replace(settings, snapshots=False), accel=accelerator)
    for backend in (warm, cold):
        backend.prepare(kernel, Machine())
    plain, ninep = (Virtme(kernel, accelerator, ninep=choice) for choice in (False, True))
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": ""}
    ours = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--kernel", kernel.name, "test_two.py"]
    theirs = [ninep.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_two.py"]
    execute = [sys.executable, "-m", "invoke", "kmt.exec", kernel.name, "--", "uname", "-r"]
    return {
        "command, warm": lambda: first_command(warm, kernel, home),
        "command, kmt.exec": lambda: seconds(proc.run, execute, cwd=home, env=env),
        "command, cold": lambda: first_command(cold, kernel, home),
        "command, virtme-ng": lambda: seconds(plain.run, ["uname", "-r"], home, kernel.release),
        "command, virtme-ng, 9p": lambda: seconds(ninep.run, ["uname", "-r"], home, kernel.release),
        "pytest, warm": lambda: seconds(proc.run, ours, cwd=home, env=env),
        "pytest, virtme-ng": lambda: seconds(plain.run, theirs, home, "2 passed"),
        "pytest, virtme-ng, 9p": lambda: seconds(ninep.run, theirs, home, "2 passed"),
    }


COMMANDS = ("command, warm", "command, kmt.exec", "command, cold")
RATIOS = {
    "command, virtme-ng": COMMANDS,
    "command, virtme-ng, 9p": COMMANDS,
    "pytest, virtme-ng": ("pytest, warm",),
    "pytest, virtme-ng, 9p": ("pytest, warm",),
}
"""Peer to those of ours that it stands against. Its root by virtiofs, as it comes, and by 9p, which is faster."""


def report(times, about):
    """What goes into the JSON: medians, ranges, ratios, and what was compared."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = {f"{peer} / {mine}": medians[peer] / medians[mine] for peer, all_ in RATIOS.items() for mine in all_}
    return {**about, "medians": medians, "ratios": ratios, "seconds": times}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=9, help="rounds of all measures (9)")
    parser.add_argument("--series", default="6.12", help="a row of the catalogue; its generic flavour is compared")
    parser.add_argument("--accel", default="auto", choices=["auto", "kvm", "tcg"])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--svg", type=Path, help="draw the medians here")
    options = parser.parse_args()
    (row,) = matrix.load().select([options.series])
    with tempfile.TemporaryDirectory(prefix="kmt-bench-") as scratch:
        home = Path(scratch)
        settings = project(home, row)
        (row,) = matrix.load(home / "kernels.toml").select([row.name])
        kernel = archive.prepare(row, config=settings)
        accelerator = backends.get("qemu", config=settings, accel=options.accel).accelerator(kernel)
        functions = measures(home, settings, kernel, accelerator)
        times = {name: [] for name in functions}
        functions["pytest, warm"]()  # makes the snapshot, once
        for number in range(options.pairs):
            for name, function in functions.items():
                times[name].append(measured(name, function))
            print(f"round {number + 1} of {options.pairs}", file=sys.stderr, flush=True)
    about = {"kernel": kernel.release, "accelerator": accelerator, "cores": os.cpu_count(), "virtme-ng": VERSION}
    result = report(times, about)
    title = f"{kernel.release}, {accelerator}, {os.cpu_count()} cores, medians of {options.pairs}"
    drawing = chart.bars(title, result["medians"], unit="s")
    chart.show(drawing)
    for pair, ratio in result["ratios"].items():
        print(f"{ratio:6.1f}  {pair}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.svg:
        chart.save(drawing, options.svg, title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
