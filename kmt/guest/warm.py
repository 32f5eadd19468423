"""What a guest does before its memory is kept: load what tests will need, and leave no trace of having used it.

One throw-away pytest session runs in the agent itself, so that every session after it, a fork of the agent, finds
pytest, Hypothesis and their tables in memory, warm. Laws: afterwards no module is loaded that is not the image's or
ours, one thread runs, and directory, environment, path and Hypothesis's profile are as before; whatever breaks one
of these is a ``NotCleanError``, and the memory is not kept.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import linecache
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import fresh, throwaway
from .children import start_command
from .wire import Frame, Kind

ROOM = "/run/kmt/warm"
"""Where the throw-away project lies while it runs."""
EXTRA = ("coverage", "hypothesis.stateful", "_pytest.junitxml", "multiprocessing", "concurrent.futures", "ctypes")
"""Modules that sessions need often and that the throw-away one does not load."""
ROOTS = [p for p in sys.path if p]
"""Where modules may come from: what was on the path when the agent started."""


class NotCleanError(RuntimeError):
    """The warm-up left something behind."""


class _Nobody:
    """The other end of a throw-away session: counts what is done, knows no examples."""

    def __init__(self) -> None:
        self.done: set[str] = set()

    def send(self, kind: Kind, body: dict[str, Any]) -> None:
        """Not passed on."""
        if kind is Kind.REPORT and body["report"]["when"] == "teardown":
            self.done.add(body["report"]["nodeid"])

    def ask(self, body: dict[str, Any]) -> list[bytes]:
        """No examples."""
        return []

    def wait(self, kind: Kind) -> Frame:
        """At once."""
        return Frame(kind, {})


def warm(modules: Sequence[str] = ()) -> dict[str, Any]:
    """Load and use everything once, and load ``modules``; returns ``modules`` and ``status``.

    Raises NotCleanError; ImportError where one of ``modules`` is not there.
    """
    for name in EXTRA:
        if importlib.util.find_spec(name.split(".")[0]):
            importlib.import_module(name)
    for name in modules:
        importlib.import_module(name)
    status = _session() if importlib.util.find_spec("pytest") else None
    fresh.set_machine_id("0" * 32)  # the overlay copies the file once, here
    _command(["sh", "-c", "uname -r; ls /; cat /proc/version"])
    _settle()
    if status is not None:
        from . import ready

        ready.prepare(_again)
    return {"modules": len(sys.modules), "status": status}


def _again() -> None:
    """The same in a fork: all is loaded, and each page that a session touches becomes its own."""
    _session()
    _settle()


def _settle() -> None:
    check(sys.modules, ROOTS, len(os.listdir("/proc/self/task")))  # noqa: PTH208
    gc.collect()
    gc.freeze()


def _command(argv: list[str]) -> None:
    """What starts commands, and the programs and libraries that most of them need, are in memory after one."""
    child = start_command({"argv": argv}, tied=False)
    for fd in child.outputs:
        while os.read(fd, 4096):
            pass
        os.close(fd)
    if child.stdin is not None:
        os.close(child.stdin)
    os.waitpid(child.pid, 0)


def _session() -> int:
    from .runner import run_pytest

    room = Path(ROOM)
    room.mkdir(parents=True)
    with _undone(room):
        files = _files(room)
        ids = [f"{file}::{name}" for file, names in files.items() for name in names]
        request = {
            "root": ROOM,
            "inifile": "",
            "files": list(files),
            "ids": ids,
            "options": ["--basetemp", f"{ROOM}/tmp"],
            "env": {"KMT_KERNEL": "warm", "KMT_ARTIFACTS": ROOM},
            "kernel": {"name": "warm", "accelerator": "none"},
            "accelerator": "tcg",
            "collect_only": False,
            "strict_skips": True,
        }
        nobody = _Nobody()
        status = run_pytest(request, nobody)
    if status != 0 or nobody.done != set(ids):
        raise NotCleanError(f"the throw-away session ended with status {status}, {len(nobody.done)} tests done")
    return status


def _files(room: Path) -> dict[str, list[str]]:
    """Write the throw-away project; its files and the tests in each."""
    (room / "test_plain.py").write_text(throwaway.PLAIN)
    files = {"test_plain.py": throwaway.PLAIN_IDS}
    if importlib.util.find_spec("hypothesis"):
        (room / "test_properties.py").write_text(throwaway.PROPERTIES)
        files["test_properties.py"] = throwaway.PROPERTIES_IDS
    return files


@contextmanager
def _undone(room: Path) -> Iterator[None]:
    """Put back what a session changes in its process."""
    path, environment, directory = list(sys.path), dict(os.environ), Path.cwd()
    quiet = sys.dont_write_bytecode
    try:
        yield
    finally:
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
        sys.dont_write_bytecode = quiet
        for name in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", None)).startswith(str(room))]:
            del sys.modules[name]
        for place in [p for p in sys.path_importer_cache if str(p).startswith(str(room))]:
            del sys.path_importer_cache[place]
        linecache.clearcache()
        importlib.invalidate_caches()
        shutil.rmtree(room)
        _forget_settings()


def _forget_settings() -> None:
    if "hypothesis" in sys.modules:
        import hypothesis
        from hypothesis.configuration import set_hypothesis_home_dir

        hypothesis.settings.load_profile("default")
        set_hypothesis_home_dir(None)


def check(modules: dict[str, Any], roots: list[str], threads: int) -> None:
    """Raise NotCleanError where a module came from elsewhere than below ``roots``, or a second thread runs."""
    for name, module in list(modules.items()):
        origin = getattr(module, "__file__", None)
        if origin and not any(str(origin).startswith(f"{root}/") for root in roots):
            raise NotCleanError(f"the module {name} of {origin} is loaded")
    if threads != 1:
        raise NotCleanError(f"{threads} threads run")
