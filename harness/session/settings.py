"""(pure) What a session's configuration file says, checked when it is read.

TOML; every table and key may be left out. Laws: what is not known is an error that names it; paths are relative to
the file; the same text gives the same settings.

- top: ``log_level``
- ``[bpf]``: ``dir``, ``btf``, ``ring_buffers``, ``runtime_compiler``, ``runtime_dir``
- ``[tracer]``: ``enabled``, ``kind`` (``fentry``, ``kprobe``, or ``auto``: by where we are),
  ``max_closed_connections_buffered``, and the fields of ``TracerSettings``
- ``[watcher]``: ``enabled``, ``rules``: a list of ``{pattern = "...", action = "count" | "tls"}``
- ``[remote]``: ``url``, ``ca``, ``certificate``, ``key``, ``server_name``, ``token`` (a file), ``root`` (a file: the
  first root), ``unverified``, ``interval``, ``deadline`` and ``keep_alive`` (seconds), ``keep`` (a directory for
  verified metadata; none: they are not kept), ``agent_name``
- ``[debug]``: ``address``, ``token`` (a file; none: no writes)
"""

from __future__ import annotations

import logging
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.ebpf.settings import BpfSettings
from harness.errors import HarnessError, SettingsError
from harness.remote.endpoint import Endpoint
from harness.tracer.settings import TracerSettings
from harness.watcher.rules import TLS_LIBRARIES, Rule

LEVELS = {
    "trace": logging.DEBUG, "debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING,
    "warning": logging.WARNING, "error": logging.ERROR, "critical": logging.CRITICAL, "off": logging.CRITICAL + 10,
}  # fmt: skip
"""Names of log levels, in small letters."""
ACTIONS = ("count", "tls")
KINDS = ("auto", "fentry", "kprobe")
MOST_BUFFERED = 1 << 20


@dataclass(frozen=True)
class Watch:
    """A rule of the watcher by the name of what it does: ``count`` a library, or count what goes through it by TLS."""

    pattern: str
    action: str = "count"

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str) or not self.pattern:
            raise SettingsError(f"a rule's pattern must be text, not {self.pattern!r}")
        if self.action not in ACTIONS:
            raise SettingsError(f"a rule's action is one of {', '.join(ACTIONS)}, not {self.action!r}")
        Rule.of(self.pattern, lambda file: None, lambda file: None)


@dataclass(frozen=True)
class Live:
    """What may change while a session runs, remotely too; the rest of a session's settings is as it was at its start.

    ``tracer`` is whole; only what it collects may change (the sizes are of maps that are in the kernel already).
    """

    tracer: TracerSettings = field(default_factory=TracerSettings)
    max_closed_connections_buffered: int = 10_000
    rules: tuple[Watch, ...] = tuple(Watch(pattern) for pattern in TLS_LIBRARIES)
    log_level: str = "info"

    def __post_init__(self) -> None:
        room = self.max_closed_connections_buffered
        if type(room) is not int or not 1 <= room <= MOST_BUFFERED:
            raise SettingsError(
                f"max_closed_connections_buffered must be a whole number from 1 to {MOST_BUFFERED}, not {room!r}"
            )
        if not isinstance(self.log_level, str) or self.log_level.lower() not in LEVELS:
            raise SettingsError(f"log_level is one of {', '.join(LEVELS)}, not {self.log_level!r}")


@dataclass(frozen=True)
class Remote:
    """Where configurations come from. ``root`` None: unverified, for tests only."""

    endpoint: Endpoint
    token: Path
    root: Path | None
    interval: float = 5.0
    keep: Path | None = None
    agent_name: str = "unknown"


@dataclass(frozen=True)
class Settings:
    """All of it. ``remote`` and ``debug`` None: without."""

    bpf: BpfSettings
    live: Live = field(default_factory=Live)
    trace: bool = True
    tracer: str = "auto"
    watch: bool = True
    remote: Remote | None = None
    debug: str | None = None
    debug_token: Path | None = None

    def __post_init__(self) -> None:
        if self.tracer not in KINDS:
            raise SettingsError(f"a tracer's kind is one of {', '.join(KINDS)}, not {self.tracer!r}")


def parse(text: str, where: Path, *, bpf_dir: Path | None = None) -> Settings:
    """The settings that a file at ``where`` with this text means; SettingsError says what is wrong in it.

    ``bpf_dir`` is where the programs are, unless the text says so.
    """
    try:
        whole = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{where}: {error}") from None
    try:
        top = _Table(whole, "", where.parent)
        settings = _settings(top, bpf_dir)
        top.done()
    except HarnessError as error:
        raise SettingsError(f"{where}: {error.message}", hint=error.hint) from None
    return settings


def _settings(top: _Table, bpf_dir: Path | None) -> Settings:
    tracer, watcher, remote, debug = (top.table(name) for name in ("tracer", "watcher", "remote", "debug"))
    given = top.some(["log_level"]) | tracer.some(["max_closed_connections_buffered"])
    given |= {name: rules(listed) for name, listed in watcher.some(["rules"]).items()}
    live = Live(tracer=TracerSettings(**tracer.some(f.name for f in fields(TracerSettings))), **given)
    made = Settings(
        _bpf(top.table("bpf"), bpf_dir),
        live,
        trace=tracer.get("enabled", True, bool),
        tracer=tracer.get("kind", "auto", str),
        watch=watcher.get("enabled", True, bool),
        remote=_remote(remote) if "remote" in top.values else None,
        debug=debug.get("address", None, str),
        debug_token=debug.path("token"),
    )
    for table in (tracer, watcher, debug):
        table.done()
    return made


def _bpf(table: _Table, directory: Path | None) -> BpfSettings:
    directory = table.path("dir") or directory
    if directory is None:
        raise SettingsError("where are the programs?", hint="dir in [bpf], or set KMT_BPF_DIR; kmt.build makes them")
    made = BpfSettings(
        directory,
        btf_path=table.path("btf"),
        enable_runtime_compiler=table.get("runtime_compiler", False, bool),
        enable_ringbuffers=table.get("ring_buffers", True, bool),
        runtime_output_dir=table.path("runtime_dir"),
    )
    table.done()
    return made


def _remote(table: _Table) -> Remote:
    url, token, root = table.get("url", None, str), table.path("token"), table.path("root")
    if url is None or token is None:
        raise SettingsError("[remote] needs a url and a token")
    if (root is None) != table.get("unverified", False, bool):
        raise SettingsError("[remote] needs either a root or unverified = true")
    interval = table.number("interval", 5.0)
    if not 0 < interval < math.inf:
        raise SettingsError(f"[remote] interval must be positive, not {interval!r}")
    endpoint = Endpoint(
        url,
        ca=table.path("ca"),
        certificate=table.path("certificate"),
        key=table.path("key"),
        server_name=table.get("server_name", None, str),
        seconds=table.number("deadline", 10.0),
        keep_alive=table.number("keep_alive", 30.0),
    )
    keep, name = table.path("keep"), table.get("agent_name", "unknown", str)
    table.done()
    if root is None and keep is not None:
        raise SettingsError("[remote] keep is for verified metadata, and unverified = true has none")
    return Remote(endpoint, token, root, interval, keep, name)


def rules(listed: object) -> tuple[Watch, ...]:
    """Rules from a list of tables. SettingsError or RuleError names what is wrong."""
    if not isinstance(listed, list):
        raise SettingsError(f"rules must be a list, not {listed!r}")
    made = []
    for rule in listed:
        if not isinstance(rule, Mapping) or not {"pattern"} <= rule.keys() <= {"pattern", "action"}:
            raise SettingsError(f"a rule is {{pattern, action}}, not {rule!r}")
        made.append(Watch(**rule))
    return tuple(made)


class _Table:
    """A table, and which of its keys nobody has asked for."""

    def __init__(self, values: Mapping[str, Any], name: str, base: Path) -> None:
        self.values = values
        self._name = f"{name}." if name else ""
        self._base = base
        self._left = set(values)

    def get(self, key: str, default: Any, kind: type) -> Any:
        self._left.discard(key)
        value = self.values.get(key, default)
        if value is not default and type(value) is not kind:
            raise SettingsError(f"{self._name}{key} must be a {kind.__name__}, not {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        return float(self.get(key, default, int if isinstance(value, int) else float))

    def path(self, key: str) -> Path | None:
        value = self.get(key, None, str)
        return None if value is None else self._base / value

    def some(self, keys: Any) -> dict[str, Any]:
        """Those of the keys that are there, unchecked."""
        found = {key: self.values[key] for key in keys if key in self.values}
        self._left -= found.keys()
        return found

    def table(self, key: str) -> _Table:
        return _Table(self.get(key, {}, dict), f"{self._name}{key}", self._base)

    def done(self) -> None:
        """SettingsError if there is a key that nobody asked for."""
        for key in sorted(self._left):
            raise SettingsError(f"{self._name}{key} is not known")
