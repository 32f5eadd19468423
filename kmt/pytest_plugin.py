"""``pytest --kernel``: the entry point by which people meet this project.

Laws: without ``--kernel`` nothing changes but for the markers and the fixture ``kernel``; with it
``plugin/session.py`` takes over. In a guest this module does nothing (``guest/plugin.py`` and ``guest/reporter.py``
speak there).
"""

from __future__ import annotations

import os
import signal

import pytest

from kmt import hooks
from kmt.config import WORDS, load
from kmt.errors import KmtError
from kmt.guest.plugin import SharedPlugin
from kmt.hints import task

IN_GUEST = "KMT_GUEST"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The group "kernel matrix"."""
    group = parser.getgroup("kernel matrix", "run tests inside real kernels (kernel-matrix)")
    group.addoption(
        "--kernel",
        action="append",
        default=[],
        metavar="NAME",
        help="run each test in this kernel: 5.10, a comma list, a glob, all, default, newest, a path to an image, "
        "5.15-simulated (no kernel at all: tests that take the fixture kernel, against one that is data), "
        "or host (this machine's own kernel, no VM); repeatable",
    )
    group.addoption(
        "--kernel-backend",
        metavar="NAME",
        help="what runs the kernels: qemu, simulated, or auto (qemu where a kernel can be had, else simulated); "
        "default: [tool.kmt] backend, qemu",
    )
    group.addoption(
        "--kernel-jobs",
        type=int,
        metavar="N",
        help="processors for guests at once (default: all that this process may use)",
    )
    group.addoption(
        "--kernel-memory-limit", type=int, metavar="MIB", help="memory for all guests at once (default: what is free)"
    )
    group.addoption(
        "--kernel-spread",
        choices=WORDS["spread"],
        help="with fewer kernels than jobs, spread one kernel's tests over guests by module or test (default: module)",
    )
    group.addoption(
        "--kernel-fresh",
        choices=WORDS["fresh"],
        help="what gets a kernel that nobody has touched: each test, each module, the session (default: session)",
    )
    group.addoption(
        "--kernel-accel",
        choices=("auto", "kvm", "tcg"),
        default="auto",
        help="hardware virtualisation or emulation (default: auto, by really booting a guest once)",
    )
    group.addoption(
        "--kernel-timeout",
        type=int,
        metavar="SECONDS",
        help="what one guest may take with hardware virtualisation; scaled under emulation (default: 600)",
    )
    group.addoption(
        "--kernel-dump",
        action="store_true",
        help="keep memory and registers of guests that panic or hang, as cores that drgn and crash open",
    )
    group.addoption(
        "--kernel-keep",
        type=float,
        metavar="MINUTES",
        help="leave guests running for the next run, until they idle that long; what tests did to them stays",
    )
    group.addoption(
        "--kernel-snapshots",
        choices=("on", "off"),
        help="start guests from a memory snapshot of the booted kernel (default: on)",
    )
    group.addoption(
        "--kernel-retries",
        type=int,
        metavar="N",
        help="run a test that failed, or whose guest was lost, again in another guest, up to N times; each is shown",
    )
    group.addoption(
        "--kernel-part", metavar="K/N", help="of the tests' modules, divided evenly over N jobs, only those of the Kth"
    )
    group.addoption(
        "--kernel-logs", metavar="DIR", help="copy consoles and what tests left there, a directory a kernel"
    )
    group.addoption("--kernel-json", metavar="FILE", help="write the results of every kernel as JSON")
    group.addoption(
        "--kernel-strict", action="store_true", help="a kernel that the archive no longer has fails the run"
    )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Make ``pytest_kmt_progress`` and ``pytest_kmt_finished`` known."""
    pluginmanager.add_hookspecs(hooks)


def pytest_configure(config: pytest.Config) -> None:
    """Register what is needed: the shared part always, the matrix where kernels are asked for."""
    if IN_GUEST in os.environ:
        return
    try:
        strict = load(config.rootpath).strict_skips
    except KmtError as error:
        raise pytest.UsageError(f"kmt: {error}") from None
    config.pluginmanager.register(SharedPlugin({"name": "host"}, strict_skips=strict), "kmt-shared")
    asked = config.getoption("--kernel")
    if not asked:
        return
    _refuse(config)
    # Sessions without kernels do not wait for what these need.
    from kmt.plugin import totals
    from kmt.plugin.session import MatrixPlugin

    # A shell starts background jobs with SIGINT ignored; kmt.stop has to reach them all the same.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        config.pluginmanager.register(MatrixPlugin(config, asked), "kmt-matrix")
    except KmtError as error:
        raise pytest.UsageError(f"kmt: {error}") from None
    config.pluginmanager.register(totals, "kmt-totals")


def _refuse(config: pytest.Config) -> None:
    if config.getoption("usepdb", default=False) or config.getoption("trace", default=False):
        raise pytest.UsageError(f"kmt: --pdb cannot reach into guests; use {task('shell KERNEL')}, or --kernel host")
    if config.getoption("numprocesses", default=None) or config.getoption("tx", default=None):
        raise pytest.UsageError("kmt: -n (xdist) does not go with --kernel; kernels run at once by --kernel-jobs N")
