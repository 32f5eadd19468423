"""Runs pytest in the agent's forked child and streams every test report to the host as it happens.

Laws: what the project's ``addopts`` say about kernels, caches or reports does not act here (they are the host's
business); a test is known by the id that it has without a kernel; what the host did not ask for is deselected;
what only one side can see is told to the host, which makes it an error.
"""

from __future__ import annotations

import base64
import os
import socket
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import fresh
from .wire import Decoder, Frame, Kind, pack

if TYPE_CHECKING:
    import pytest

HYPOTHESIS = "/opt/kmt/hypothesis"
"""Where the guest image has Hypothesis's tables ready made."""

_NOT_HERE = ("kmt", "cacheprovider", "terminal", "pastebin", "setuponly", "setupplan", "stepwise")
"""Plugins that only act on options that do not travel; pytest takes its time over each. A kmt that is installed in the
guest would look for kernels of its own.
"""
_ALWAYS = ("-o", "addopts=", *(word for name in _NOT_HERE for word in ("-p", f"no:{name}")))
"""Arguments of every session."""


class Channel:
    """Frames to the host through the agent, and the answers to questions. Threads may share it."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._decoder = Decoder()
        self._sending, self._asking = threading.Lock(), threading.Lock()
        self._come = threading.Condition()
        self._kept: dict[Kind, deque[Frame]] = defaultdict(deque)
        """Frames that have come and nobody has taken; guarded by ``_come``, as is ``_reading``: one thread reads."""
        self._reading = False
        self._owed = 0
        """Questions that no answer has come to; guarded by ``_asking``."""

    def send(self, kind: Kind, body: dict[str, Any]) -> None:
        """Send one frame, whole."""
        data = pack(kind, body)
        with self._sending:
            self._stream.sendall(data)

    def ask(self, body: dict[str, Any]) -> list[bytes]:
        """Ask the example database; returns the values of its answer."""
        with self._asking:  # answers do not say to which question, but come in order
            self.send(Kind.DATABASE, body)
            self._owed += 1
            while True:  # one that was asked for by a test that was ended meanwhile may come first
                answer = self.wait(Kind.EXAMPLES).body
                self._owed -= 1
                if not self._owed:
                    return [base64.b64decode(value) for value in answer["values"]]

    def wait(self, kind: Kind) -> Frame:
        """The next frame of that kind; others are kept for who waits for them. ConnectionError: the agent is gone."""
        while True:
            with self._come:
                self._come.wait_for(lambda: self._kept[kind] or not self._reading)
                if self._kept[kind]:
                    return self._kept[kind].popleft()
                self._reading = True
            frames: list[Frame] = []
            try:
                frames += self._read()
            finally:
                with self._come:
                    for frame in frames:
                        self._kept[frame.kind].append(frame)
                    self._reading = False
                    self._come.notify_all()

    def _read(self) -> Iterator[Frame]:
        data = self._stream.recv(65536)
        if not data:
            raise ConnectionError("the agent is gone")
        return self._decoder.feed(data)


def run_pytest(request: dict[str, Any], channel: Any) -> int:
    """Run what ``request`` says and return pytest's exit status. ``channel`` is a ``Channel``, or stands in for one.

    ``root, inifile, files, ids, options, env, kernel, accelerator, collect_only, strict_skips, coverage, pause``
    are its keys; with ``pause`` it waits after COLLECTED for RUN, whose ``ids`` then are what runs.
    """
    return run_when_told(lambda: request, channel)


def run_when_told(told: Callable[[], dict[str, Any]], channel: Any) -> int:
    """The same for what ``told`` returns, called when pytest stands and has nothing left to do without it."""
    import pytest

    with ExitStack() as stack:
        return int(pytest.main([*_ALWAYS], plugins=[_Told(told, channel, stack)]))


class _Told:
    """Between the making of pytest's configuration and the parsing of its arguments: finds out what to run.

    ``stack`` is left when the session is over.
    """

    def __init__(self, told: Callable[[], dict[str, Any]], channel: Any, stack: ExitStack) -> None:
        self._told, self._channel, self._stack = told, channel, stack

    def pytest_cmdline_parse(self, pluginmanager: pytest.PytestPluginManager, args: list[str]) -> None:
        """Called before pytest's own, which takes what ``args`` are then."""
        request = self._told()
        _enter(request)
        self._stack.enter_context(_measured(request.get("coverage")))
        args += _arguments(request)
        plugins = _plugins(request, self._channel)
        config: Any = pluginmanager.get_plugin("pytestconfig")
        # It was made elsewhere, and files are looked for from here.
        config.invocation_params = type(config).InvocationParams(args=args, plugins=plugins, dir=Path.cwd())
        for plugin in plugins:
            pluginmanager.register(plugin)


def _enter(request: dict[str, Any]) -> None:
    """Become a process of this project's, with seeds of its own."""
    fresh.reseed()
    for fd in (1, 2):
        os.set_blocking(fd, True)
    os.environ.update(request["env"])
    os.environ["KMT_GUEST"] = "1"
    if Path(HYPOTHESIS).is_dir():
        os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", HYPOTHESIS)
    root = request["root"]
    Path(root).mkdir(parents=True, exist_ok=True)
    os.chdir(root)
    sys.dont_write_bytecode = True
    # As ``python -m pytest`` does on the host side.
    if root not in sys.path:
        sys.path.insert(0, root)


@contextmanager
def _measured(wanted: dict[str, Any] | None) -> Iterator[None]:
    """Measure coverage as the host's pytest-cov does; the data is an artefact that the host combines."""
    if not wanted:
        yield
        return
    import coverage

    file = Path(os.environ["KMT_ARTIFACTS"]) / f".coverage.kmt-{os.environ['KMT_KERNEL']}.{os.getpid()}"
    measuring = coverage.Coverage(
        data_file=str(file), source=wanted["source"], branch=wanted["branch"], config_file=wanted["config"]
    )
    measuring.start()
    try:
        yield
    finally:
        measuring.stop()
        measuring.save()


def _plugins(request: dict[str, Any], channel: Any) -> list[Any]:
    from .plugin import SharedPlugin
    from .reporter import GuestReporter

    plugins: list[Any] = [SharedPlugin(request["kernel"], strict_skips=request["strict_skips"])]
    plugins.append(GuestReporter(request, channel))
    return plugins


def _arguments(request: dict[str, Any]) -> Iterable[str]:
    yield from ("--rootdir", request["root"])
    if request.get("inifile"):
        yield from ("-c", request["inifile"])
    if request["collect_only"]:
        yield "--collect-only"
    if plugin := request["kernel"].get("plugin"):
        yield from ("-p", plugin)
    yield from request["options"]
    yield from request["files"]
