"""``kmt.start``, ``kmt.test`` and ``test``: pytest as a child process, with our options spelt as pytest's.

Laws: there is one engine, ``pytest --kernel``, and nothing here that it cannot do; the child has our terminal; its
exit status is ours; it gets one signal for each that the user sent.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kmt import backends, config, proc
from kmt.backends.base import Machine
from kmt.commands.words import kernel_patterns, user_path
from kmt.errors import ConfigError
from kmt.keeper import client
from kmt.run.budget import budget

KEEP_MINUTES = 15.0
"""How long kept guests idle before they end."""
LIVE = ("-p", "kmt.report.live")
_SOAKED = {
    "KMT_ROUNDS": "tests/kernel/test_rounds.py",
    "KMT_PROCESSES": "tests/kernel/test_watcher_live.py::test_processes_in_a_row_leave_nothing_and_exact_counts",
    "KMT_SITUATIONS": "tests/properties/test_differential.py",
}
"""Tests that a variable makes longer."""


@dataclass(frozen=True)
class Options:
    """What ``kmt.start`` and ``kmt.test`` take; an empty value leaves the choice to ``[tool.kmt]``."""

    kernels: Sequence[str] = ()
    backend: str = ""
    jobs: int = 0
    accel: str = ""
    timeout: int = 0
    json: str = ""
    junit: str = ""
    strict: bool = False
    keep: float = 0
    quick: bool = False
    """What ``[tool.kmt] start`` selects, where ``args`` say nothing."""
    args: Sequence[str] = ()


def command(root: Path, options: Options, *, live: bool) -> list[str]:
    """The pytest command. ConfigError when the project's configuration is wrong."""
    settings = config.load(root)
    kernels = kernel_patterns(options.kernels) or list(settings.kernels)
    argv = [sys.executable, "-m", "pytest", *(LIVE if live else ())]
    argv += [word for kernel in kernels for word in ("--kernel", kernel)]
    valued = {
        "--kernel-backend": options.backend,
        "--kernel-jobs": options.jobs,
        "--kernel-accel": options.accel,
        "--kernel-timeout": options.timeout,
        "--kernel-keep": options.keep or (KEEP_MINUTES if client.find(root) else 0),
        "--kernel-json": user_path(options.json) if options.json else "",
        "--junit-xml": user_path(options.junit) if options.junit else "",
    }
    argv += [f"{name}={value}" for name, value in valued.items() if value]
    argv += ["--kernel-strict"] if options.strict else []
    return [*argv, *(options.args or (settings.start if options.quick else ()))]


def minutes(keep: object) -> float:
    """What ``--keep`` says: nothing, itself, or a number. ConfigError for anything else."""
    if keep is None or keep is False:
        return 0
    try:
        return KEEP_MINUTES if keep is True else float(str(keep))
    except ValueError:
        raise ConfigError(f"--keep takes minutes, not {keep!r}") from None


def run(root: Path, options: Options, *, live: bool = True) -> int:
    """Run it in ``root``; its exit status."""
    return child(command(root, options, live=live), root)


def everything(root: Path, args: Sequence[str]) -> int:
    """The host's tests, then the guests'. A failed test (1) counts for more than what else went wrong.

    A whole suite is what real kernels say: where one cannot be had, nothing else stands in for it.
    """
    host = child([sys.executable, "-m", "pytest", *args], root)
    if host not in (0, 1, 5):
        return host
    real = backends.REAL if config.load(root).backend == backends.AUTO else ""
    return merged(host, run(root, Options(backend=real, args=args)))


def soak(root: Path, kernels: Sequence[str], *, boots: int, rounds: int, processes: int, situations: int = 0) -> int:
    """In each kernel: that many boots, rounds of all programs on and off under traffic, processes one after another
    under the watcher, situations compared with the simulated kernel. 0 leaves that part out."""
    settings, status = config.load(root), 0
    if boots:
        words = kernel_patterns(kernels) or list(settings.kernels)
        jobs = budget(settings).guests(Machine(memory_mib=settings.memory))
        status = child([sys.executable, "benchmarks/boots.py", f"--boots={boots}", f"--jobs={jobs}", *words], root)
    asked = {"KMT_ROUNDS": rounds, "KMT_PROCESSES": processes, "KMT_SITUATIONS": situations}
    tests = {name: number for name, number in asked.items() if number}
    if not tests:
        return status
    chosen = Options(kernels, args=[_SOAKED[name] for name in tests])
    env = {name: str(number) for name, number in tests.items()}
    return merged(status, child(command(root, chosen, live=True), root, env))


def bench(root: Path, *, pairs: int) -> int:
    """Measure against virtme-ng, and what more kernels and guests cost; figures and chart to ``benchmarks/results``."""
    results = root / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    files = [f"--{kind}={results / f'instant.{kind}'}" for kind in ("json", "svg")]
    status = child([sys.executable, "benchmarks/instant.py", f"--pairs={pairs}", *files], root)
    return status or child([sys.executable, "benchmarks/scale.py", f"--json={results / 'scale.json'}"], root)


def fuzz(root: Path, *, seconds: int) -> int:
    """Give the parsers of what servers send (JSON, protobuf) whatever breaks them, for so long."""
    return child([sys.executable, "tests/fuzz/fuzz.py", f"--seconds={seconds}"], root)


def merged(first: int, second: int) -> int:
    """One status for two pytest runs: 1 (a failed test) before all others, 5 (no tests) only when both say so."""
    both = {first, second}
    if 1 in both or both == {5}:
        return 1 if 1 in both else 5
    return max(both - {5})


def child(argv: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> int:
    """Run it on our terminal, signals passed on; its exit status as a shell has it."""
    # Paths in the child's own words, and in those of what it starts, are relative to where that stands.
    process = proc.spawn(argv, stdin=None, stdout=None, stderr=None, cwd=cwd, env={**(env or {}), "KMT_CWD": ""})
    with _forwarded(process.send_signal):
        status = process.wait()
    return status if status >= 0 else 128 - status


@contextmanager
def _forwarded(send: Callable[[int], None]) -> Iterator[None]:
    """While this lasts, signals are the child's to act on, not ours."""

    def forward(number: int, _frame: FrameType | None) -> None:
        # A terminal sends SIGINT to its whole foreground group: the child has that one already.
        if not (number == signal.SIGINT and _in_foreground()):
            send(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    try:
        with Path("/dev/tty").open("rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
