"""``[tool.kmt]`` of a project's pyproject.toml as a typed value.

Laws: unknown keys and wrong types are errors that name file and key (nearest known key shown); no key has an
effect outside what its docstring says; everything has a default, so that a project needs no table at all.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from kmt.errors import ConfigError

WORDS = {"spread": ("module", "test", "none"), "fresh": ("session", "module", "test")}
"""Keys whose values are words of a list."""
_AT_LEAST = {"jobs": 0, "memory_limit": 0, "timeout": 1, "memory": 1, "file_limit": 0, "retries": 0}


@dataclass(frozen=True)
class Config:
    """One field a key; ``docs/configuration.md`` describes them for users."""

    root: Path
    """The directory of pyproject.toml (the project's root); not a key."""
    kernels: tuple[str, ...] = ("default",)
    """What ``kmt.start`` boots when it is told nothing."""
    catalogue: str = ""
    """A kernels.toml of the project's own, relative to root; empty: the one that travels with this package."""
    lock: str = ""
    """Where exact versions are pinned, relative to root; empty: in the cache."""
    guest: tuple[str, ...] = ("*",)
    """Globs over root-relative test paths that may run in guests."""
    columns: tuple[str, ...] = ()
    """Facts (``record_property("kmt.NAME", ...)``) shown as columns of the table."""
    env: tuple[str, ...] = ()
    """Environment variables (globs) that travel into guests besides LANG, LC_*, TZ, PYTHONHASHSEED, HYPOTHESIS_*."""
    packages: tuple[str, ...] = ()
    """Debian packages to add to the guest image."""
    requirements: tuple[str, ...] = ()
    """Python requirements to add to the guest image besides the host's pytest and hypothesis."""
    sources: tuple[str, ...] = ()
    """Globs of eBPF sources (``*.bpf.c``) that ``kmt.build`` compiles and every guest receives."""
    include: tuple[str, ...] = ()
    """Include directories for them, relative to root."""
    prebuilt: tuple[str, ...] = ()
    """Globs of those sources that are also compiled for each kernel: an object of its own, and against its headers."""
    workloads: tuple[str, ...] = ()
    """Globs of C programs (``*.c``, one file each) that every guest receives as ``$KMT_BPF_DIR/bin/NAME``."""
    start: tuple[str, ...] = ()
    """Options for pytest in ``kmt.start`` where none are given behind ``--``: a selection that is over soon."""
    demo: tuple[str, ...] = ()
    """The command that ``kmt.start --demo`` runs in one kernel, at the project's root."""
    guest_options: tuple[str, ...] = ()
    """Options for pytest inside guests, besides those that always travel (--tb, -W, -l, --hypothesis-seed ...)."""
    strict_skips: bool = False
    """Any skip in a guest that ``requires(...)`` did not make is a failure."""
    backend: str = "qemu"
    timeout: int = 600
    """Seconds a kernel may take from power-on to its last test with hardware virtualisation; scaled without."""
    jobs: int = 0
    """Processors for guests at once, most guests having one; 0: as many as this process may use."""
    ci_image: str = "debian:trixie"
    """Container image in which CI's jobs run; Debian's, for its archive is where kernels come from."""
    ci_host: bool = False
    """CI's pipelines have a job for the tests of the machine itself, too: plain pytest, without kernels."""
    ci_runner: str = ""
    """What runs them: a label of GitHub's runners (empty: ubuntu-latest), a tag of GitLab's (empty: any)."""
    ci_setup: tuple[str, ...] = ("python3 -m venv .venv", ".venv/bin/pip install --quiet --editable .")
    """Shell commands that make ``.venv`` with the project and kmt in it, in a clean checkout."""
    dump: bool = False
    """Keep the memory and registers of guests that panic or hang, as ELF cores beside their consoles."""
    memory: int = 1024
    """MiB a guest."""
    memory_limit: int = 0
    """MiB for all guests at once; 0: what is free."""
    spread: str = "module"
    """What stays in one guest when a kernel's tests are spread over several: module, test, or none (no spreading)."""
    fresh: str = "session"
    """What gets a kernel that nobody has touched: each test, each module, or the session."""
    snapshots: bool = True
    """Start guests from a memory snapshot of the booted kernel where the backend can."""
    warm: tuple[str, ...] = ()
    """Modules of the guest image that a snapshot has loaded already, besides pytest and Hypothesis."""
    snapshot_store: int = 8192
    """MiB that snapshots may take in the cache; the least recently used go first."""
    retries: int = 0
    """How often a test that failed, or whose guest was lost, runs again in another guest."""
    expected: str = ""
    """A file of failures that are known, relative to root."""
    file_limit: int = 10
    """MiB; a larger file of the project stays behind and is named."""


def load(root: Path) -> Config:
    """Read ``root/pyproject.toml``; a missing file or table gives the defaults. Raises ConfigError."""
    path = root / "pyproject.toml"
    if not path.is_file():
        return Config(root=root)
    try:
        document = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    table = document.get("tool", {}).get("kmt", {})
    return _from_table(root, path, table)


def _from_table(root: Path, path: Path, table: Any) -> Config:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: [tool.kmt] must be a table")
    known = {f.name for f in fields(Config)} - {"root"}
    hints = get_type_hints(Config)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise ConfigError(
                f"{path}: [tool.kmt] has no key {key!r}", hint=f"did you mean {near[0]!r}?" if near else ""
            )
        values[key] = _typed(path, key, value, hints[key])
        try:
            check(key, values[key])
        except ConfigError as error:
            raise ConfigError(f"{path}: [tool.kmt] {error}") from None
    return Config(root=root, **values)


def check(key: str, value: Any) -> None:
    """ConfigError when a value of the right type is none of those that the key can have."""
    words = WORDS.get(key)
    if words and value not in words:
        raise ConfigError(f"{key} must be one of {', '.join(words)}, not {value!r}")
    if key in _AT_LEAST and value < _AT_LEAST[key]:
        raise ConfigError(f"{key} must be {_AT_LEAST[key]} or more, not {value}")


def _typed(path: Path, key: str, value: Any, kind: Any) -> Any:
    if kind is str and isinstance(value, str):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    wanted = {str: "a string", int: "a whole number", bool: "true or false"}.get(kind, "a list of strings")
    raise ConfigError(f"{path}: [tool.kmt] {key} must be {wanted}, not {value!r}")


def matched(root: Path, key: str, patterns: Iterable[str]) -> list[Path]:
    """The files under ``root`` that the globs of a key mean, each once. ConfigError for a glob that means none."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        try:
            matches = sorted(p for p in root.glob(pattern) if p.is_file())
        except (NotImplementedError, ValueError) as error:
            raise ConfigError(f"[tool.kmt] {key}: {pattern!r}: {error}") from None
        if not matches:
            raise ConfigError(f"[tool.kmt] {key}: {pattern!r} matches no file in {root}")
        found.update(dict.fromkeys(matches))
    return list(found)
