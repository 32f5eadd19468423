"""Real machines for tests of the machinery itself: a kernel from the archive, backends, a guest with its link."""

import functools
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil

from kmt import archive, backends, config, matrix
from kmt.backends.base import HasKernels, Machine
from kmt.deadline import Deadline
from kmt.matrix import Row
from kmt.run.link import Link

ROOT = Path(__file__).parents[1]
SETTINGS = config.load(ROOT)
SMALL = Machine(memory_mib=512)
KERNELS = {"vagrant": "6.12"}
"""Those of the catalogue which a backend's machines have where a test does not say; for all others 6.1."""


@functools.cache
def kernel(name="6.1"):
    """A kernel of the catalogue, fetched (a cached one on all but the first run)."""
    (row,) = matrix.load().select([name])
    return archive.prepare(row, config=SETTINGS)


@functools.cache
def backend(name="qemu"):
    return backends.get(name, config=SETTINGS)


ROWS = {"host": Row("host")}
"""Of backends whose machines have kernels already; a fixture adds the one that it made."""


def kernel_of(made, name=""):
    """The kernel that a backend is to run: its machine's own where it has one, else that one of the catalogue."""
    own = made.kernel(ROWS.get(made.name, Row(name))) if isinstance(made, HasKernels) else None
    return own or kernel(name or KERNELS.get(made.name, "6.1"))


@contextmanager
def guest(run_dir, *, name="qemu", machine=SMALL, seconds=60, kernel_name="", made=None):
    """A machine whose agent has said hello, and the link to it."""
    made = made or backend(name)
    booted = kernel_of(made, kernel_name)
    made.prepare(booted, machine)
    deadline = Deadline(seconds * made.deadline_factor)
    with made.launch(booted, machine, run_dir, deadline) as vm:
        yield vm, link_to(vm, made, deadline)


def link_to(vm, made, deadline=None):
    """The link to a machine, once its agent has said hello."""
    link = Link(vm, deadline or Deadline(600), factor=made.deadline_factor, cancel=threading.Event())
    link.hello()
    return link


def output(link, *argv, **options):
    """What a command in the guest printed, and its status."""
    *said, end = link.start(argv, **options)
    return b"".join(frame.raw[1:] for frame in said), end.body["status"]


def wait_for(what, seconds=60):
    """The first value of ``what()`` that is true; fails the test when there is none in that time."""
    deadline = Deadline(seconds)
    while not deadline.passed():
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"nothing came in {seconds} s")


def gone(pid):
    """True when no such process runs (a zombie runs no more)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
