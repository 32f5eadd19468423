"""The register of runs: what runs now in any terminal of this user, and what the last ones left.

Each run has a room ``runs/<id>/`` in the cache: ``run.json`` (written whole or not at all), a lock that the run
holds while it lives, and a directory a kernel for its console and artefacts.

Laws: a run whose lock is free is over, whatever its file says; a signal goes only to a process whose pid *and*
start time are the recorded ones; the last ``KEEP`` runs that are over stay, older ones are removed by the next.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from kmt.errors import ConfigError, KmtError
from kmt.hints import task
from kmt.paths import cache, locked

RESULTS = "results.json"
"""In a run's room: its results (``docs/results.md``), once it is over."""
KEEP = 20
"""How many runs that are over keep their consoles."""


@dataclass(frozen=True)
class KernelState:
    """Where one kernel of a run is. ``phase`` is a word of ``kmt.hooks.PHASES``; ``since`` is Unix time."""

    phase: str = "waiting"
    since: float = 0.0
    detail: str = ""
    console: str = ""
    vm_pid: int | None = None
    outcome: str = ""


@dataclass
class Record:
    """``run.json``: who runs, what, and how far each kernel is."""

    id: str
    pid: int
    created: float
    """The process's start time as psutil gives it: with the pid, its identity."""
    started: str
    argv: list[str]
    cwd: str
    kernels: dict[str, KernelState] = field(default_factory=dict)
    exit_status: int | None = None
    """None while it runs, and for ever when it was killed."""
    seconds: float | None = None


class RunError(KmtError):
    """A run could not be found or stopped."""


class Run:
    """A run of this process. Thread-safe; made by ``start``."""

    def __init__(self, directory: Path, record: Record) -> None:
        self.dir = directory
        self.id = record.id
        self._record = record
        self._begin = time.monotonic()
        self._mutex = threading.Lock()

    def kernel_dir(self, name: str) -> Path:
        """The kernel's own directory in this run, made when missing. Any row name or image path may be given."""
        path = self.dir / _file_name(name)
        path.mkdir(exist_ok=True)
        return path

    def update(
        self,
        kernel: str,
        *,
        phase: str | None = None,
        detail: str | None = None,
        console: Path | None = None,
        vm_pid: int | None = None,
        outcome: str | None = None,
    ) -> None:
        """Record what is new about a kernel; what is not given stays (``detail`` is cleared by a new phase)."""
        with self._mutex:
            state = self._record.kernels.get(kernel, KernelState(since=time.time()))
            if phase is not None and phase != state.phase:
                state = replace(state, phase=phase, since=time.time(), detail="")
            new: dict[str, Any] = {"detail": detail, "console": console and str(console)}
            new |= {"vm_pid": vm_pid, "outcome": outcome}
            self._record.kernels[kernel] = replace(state, **{k: v for k, v in new.items() if v is not None})
            self._note()

    def finish(self, exit_status: int) -> None:
        """Record how the whole run ended."""
        with self._mutex:
            self._record.exit_status = exit_status
            self._record.seconds = round(time.monotonic() - self._begin, 3)
            self._note()

    def _note(self) -> None:
        with suppress(OSError):  # a full disk must not end a run that only wanted to say how far it is
            self._write()

    def _write(self) -> None:
        work = self.dir / f".run.{os.getpid()}.json"
        work.write_text(json.dumps(asdict(self._record), indent=1))
        work.replace(self.dir / "run.json")


@contextmanager
def start(kernels: Sequence[str], argv: Sequence[str]) -> Iterator[Run]:
    """Register a run of this process for as long as the ``with`` lasts."""
    now = datetime.now(UTC)
    run_id = f"{now:%m%d-%H%M%S}-{secrets.token_hex(2)}"
    directory = cache("runs") / run_id
    pid = os.getpid()
    states = {name: KernelState(since=now.timestamp()) for name in kernels}
    created = psutil.Process(pid).create_time()
    record = Record(run_id, pid, created, now.isoformat(timespec="microseconds"), list(argv), str(Path.cwd()), states)
    run = Run(directory, record)
    lock = FileLock(directory / "lock", mode=0o600)
    try:
        with locked("runs"):
            _prune(KEEP)
            directory.mkdir()
            lock.acquire()
        run._write()
    except OSError as error:
        lock.release()
        raise RunError(f"{directory}: {error.strerror}", hint=f"{task('doctor')} looks at the disk") from None
    try:
        yield run
    finally:
        lock.release()


@dataclass(frozen=True)
class Seen:
    """A registered run as another process sees it."""

    dir: Path
    record: Record
    alive: bool

    @property
    def state(self) -> str:
        """``running``, ``ended N`` or ``killed``."""
        if self.alive:
            return "running"
        return "killed" if self.record.exit_status is None else f"ended {self.record.exit_status}"


def seen() -> list[Seen]:
    """All registered runs, oldest first. A room whose file cannot be read is passed over."""
    found = []
    for path in cache("runs").glob("*/run.json"):
        try:
            document = json.loads(path.read_text())
            kernels = {name: KernelState(**state) for name, state in document.pop("kernels").items()}
            record = Record(**document, kernels=kernels)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        found.append(Seen(path.parent, record, _held(path.parent)))
    return sorted(found, key=lambda run: run.record.started)


def find(run_id: str = "", *, alive: bool = False) -> Seen:
    """The run with that id (a beginning that fits one is enough), or the latest one. ConfigError when there is none."""
    runs = [r for r in seen() if r.alive or not alive]
    if run_id:
        runs = [r for r in runs if r.record.id == run_id] or [r for r in runs if r.record.id.startswith(run_id)]
    if not runs:
        what = f"run {run_id!r}" if run_id else "run"
        raise ConfigError(f"there is no {what}{' going on' if alive else ''}", hint=f"{task('status')} lists them")
    if run_id and len(runs) > 1:
        raise ConfigError(f"{run_id!r} fits {', '.join(r.record.id for r in runs)}", hint="give more of it")
    return runs[-1]


def console(run: Seen, kernel: str) -> Path:
    """The console log of a kernel of that run. ConfigError when it has none."""
    state = run.record.kernels.get(kernel)
    if state is None:
        names = ", ".join(run.record.kernels) or "no kernel"
        raise ConfigError(f"run {run.record.id} has no kernel {kernel!r}", hint=f"it has {names}")
    if not state.console or not Path(state.console).is_file():
        raise ConfigError(f"{kernel} has no console in run {run.record.id}", hint=f"its phase is {state.phase!r}")
    return Path(state.console)


def stop(run: Seen) -> str:
    """Ask a run to stop (SIGINT), or, when that was asked before, end it (SIGTERM). Returns what was done, in words.

    Its VMs end with it either way. RunError when its process cannot be told for certain.
    """
    record = run.record
    try:
        process = psutil.Process(record.pid)
        same = abs(process.create_time() - record.created) < 1.0
    except psutil.Error:
        same = False
    if not run.alive or not same:
        raise RunError(f"run {record.id} ({run.state}) has no process that could be told for certain")
    asked = run.dir / "stop-asked"
    again = asked.exists()
    asked.touch()
    process.send_signal(signal.SIGTERM if again else signal.SIGINT)
    return f"run {record.id} (pid {record.pid}): " + ("ended" if again else "asked to stop")


def _file_name(name: str) -> str:
    plain = re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII).lstrip(".") or "_"
    return (
        plain if plain == name and len(name) < 100 else f"{plain[-80:]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    )


def _held(directory: Path) -> bool:
    lock = FileLock(directory / "lock", mode=0o600)
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
    except FileNotFoundError:  # its room has just been removed: it is over
        return False


def _prune(keep: int) -> None:
    over = [run for run in seen() if not run.alive]
    for run in over[: max(0, len(over) - keep)]:
        shutil.rmtree(run.dir, ignore_errors=True)
