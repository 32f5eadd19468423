"""What each endpoint answers. No sockets here: ``server`` turns bytes into requests and answers into bytes.

| path | method | answers |
|---|---|---|
| /debug/usm/traced_programs | GET | the active files of every registry, each with its processes |
| /debug/usm/blocked_processes | GET | each registry's blocklist that is not empty; looking refreshes nothing |
| /debug/usm/attach-pid, /debug/usm/detach-pid | POST | ``{"pid": 12, "type": "native"}`` done |
| /debug/usm_telemetry | GET | all metrics, by name |
| /metrics | GET | those for Prometheus, text or OpenMetrics |

Statuses of a write, the first that holds: 405 not a POST; 401 not the token; 400 no such JSON; 400 unknown type; 503 as
many writes as there may be are running; 500 the callback raised; 200. A list with nothing in it is ``[]`` (the
original's is ``null``). Two registries of one name have an entry each. No lock is held while a callback runs.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from threading import BoundedSemaphore, Lock
from typing import NamedTuple
from urllib.parse import urlsplit

from harness.errors import SettingsError
from harness.telemetry import DEFAULT, Registry
from harness.telemetry.exposition import scrape
from harness.watcher.registry import FileRegistry

WRITES = 4
"""Callbacks that may run at a time."""
PIDS = 1 << 32

Attach = Callable[[int], object]
"""Attaches to or detaches from the process of that number; raising means that it did not work."""


class Request(NamedTuple):
    """A request that has arrived whole; the names of headers are lower-case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""


class Response(NamedTuple):
    """What to answer."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


def text(status: int, words: str, *headers: tuple[str, str]) -> Response:
    """An answer in words."""
    return Response(status, f"{words}\n".encode(errors="backslashreplace"), headers=headers)


class Debugger:
    """The endpoints over some registries and attachers. Without a ``token`` every write is refused."""

    def __init__(self, *, token: str | None = None, metrics: Registry = DEFAULT, writes: int = WRITES) -> None:
        if token is not None and not token.strip():
            raise SettingsError("an empty token for the debug endpoints", hint="give none, and nobody may write")
        self._token = token
        self._metrics = metrics
        self._places = BoundedSemaphore(writes)
        self._lock = Lock()
        self._registries: list[FileRegistry] = []
        self._attachers: dict[str, tuple[Attach, Attach]] = {}
        self._reads: Mapping[str, Callable[[Request], Response]] = {
            "/debug/usm/traced_programs": lambda _: _json(self.traced_programs()),
            "/debug/usm/blocked_processes": lambda _: _json(self.blocked_processes()),
            "/debug/usm_telemetry": lambda _: _json(self.telemetry()),
            "/metrics": lambda request: _scraped(self._metrics, request.headers.get("accept", "")),
        }

    def add_registry(self, registry: FileRegistry) -> None:
        """Show a registry; the same one twice is shown once."""
        with self._lock:
            if registry not in self._registries:
                self._registries.append(registry)

    def remove_registry(self, registry: FileRegistry) -> None:
        """Show it no more; does nothing where it is not shown."""
        with self._lock:
            self._registries = [shown for shown in self._registries if shown is not registry]

    def add_attacher(self, name: str, attach: Attach, detach: Attach) -> None:
        """Take writes for that type; another one of that name is replaced."""
        with self._lock:
            self._attachers[name] = (attach, detach)

    def remove_attacher(self, name: str) -> None:
        """Take no more; does nothing where there is none."""
        with self._lock:
            self._attachers.pop(name, None)

    def answer(self, request: Request) -> Response:
        """The answer to any request; never raises an ``Exception``."""
        try:
            path = urlsplit(request.target).path
        except ValueError:
            return text(400, "this target is no URL")
        if path in ("/debug/usm/attach-pid", "/debug/usm/detach-pid"):
            return self._write(request, "attach" if "attach" in path else "detach")
        if path not in self._reads:
            return text(404, "no such endpoint; there are: " + ", ".join(self._reads))
        if request.method not in ("GET", "HEAD"):
            return text(405, "Only GET requests are allowed", ("Allow", "GET, HEAD"))
        return self._reads[path](request)

    def traced_programs(self) -> list[dict[str, object]]:
        """Every active file: ``ProgramType`` (registry's name), ``FilePath`` (as first seen), ``PIDs``."""
        return [
            {"ProgramType": registry.program, "FilePath": file.path, "PIDs": list(file.pids)}
            for registry in self._shown()
            for file in registry.traced()
        ]

    def blocked_processes(self) -> list[dict[str, object]]:
        """Every blocklist with something in it; ``SamplePath`` is the host's path at the time of blocking."""
        blocked = [(registry.program, registry.blocklist.entries()) for registry in self._shown()]
        return [
            {
                "ProgramType": program,
                "PathIdentifiers": [{"Dev": id.dev, "Inode": id.inode, "SamplePath": path} for id, path in entries],
            }
            for program, entries in blocked
            if entries
        ]

    def telemetry(self) -> list[dict[str, object]]:
        """Every metric: ``Name``, ``Type``, ``Tags`` (left out where there are none), ``Opts``, ``Value``."""
        shown = []
        for metric in sorted(self._metrics.metrics(), key=lambda metric: metric.identity):
            tags = {"Tags": list(metric.tags)} if metric.tags else {}
            kind = type(metric).__name__.lower()
            shown.append(
                {"Name": metric.name, "Type": kind, **tags, "Opts": sorted(metric.options), "Value": metric.value}
            )
        return shown

    def _shown(self) -> list[FileRegistry]:
        with self._lock:
            return list(self._registries)

    def _write(self, request: Request, verb: str) -> Response:
        if request.method != "POST":
            return text(405, "Only POST requests are allowed", ("Allow", "POST"))
        if not self._may_write(request.headers.get("authorization", "")):
            return text(401, "a write takes the token of this server", ("WWW-Authenticate", "Bearer"))
        wanted = _parsed(request.body)
        if wanted is None:
            return text(400, f'the body is no JSON like {{"pid": 12, "type": "native"}}, with a pid below {PIDS}')
        pid, name = wanted
        with self._lock:
            attacher = self._attachers.get(name)
        if attacher is None:
            return text(400, f'Module "{name}" is not enabled')
        if not self._places.acquire(blocking=False):
            return text(503, "too many attachments are under way", ("Retry-After", "1"))
        try:
            attacher[verb == "detach"](pid)
        except Exception as error:
            return text(500, f"Error {verb}ing PID: {error}")
        finally:
            self._places.release()
        return text(200, f"{name} successfully {verb}ed PID {pid}")

    def _may_write(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        if self._token is None or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode(errors="replace"), self._token.encode(errors="replace"))


def _parsed(body: bytes) -> tuple[int, str] | None:
    """The pid and type that a write names; None for anything else. Further keys are ignored."""
    try:
        wanted = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(wanted, dict):
        return None
    pid, name = wanted.get("pid"), wanted.get("type")
    if type(pid) is not int or not 0 <= pid < PIDS or not isinstance(name, str):
        return None
    return pid, name


def _json(value: object) -> Response:
    return Response(200, json.dumps(value).encode(), "application/json")


def _scraped(metrics: Registry, accept: str) -> Response:
    return Response(200, *scrape(metrics, accept))
