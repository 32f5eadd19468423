"""The lock file: which exact packages each row resolved to, so that tomorrow's run boots today's kernels.

JSON, keys sorted, one entry a row; no host in it, since a pin holds on every mirror. An entry counts only while
its row still asks for the same thing. ``[tool.kmt] lock`` puts it into the project; else it is in the cache.
Laws: reading back what was written gives the same; nothing in a file that others wrote is believed unchecked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kmt import paths
from kmt.archive.packages import Package, inside
from kmt.config import Config
from kmt.errors import ConfigError
from kmt.matrix import Row

VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+~:_-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TEXTS = ("name", "version", "arch", "suite", "path", "sha256")
_FIELDS: dict[str, type] = dict.fromkeys(_TEXTS, str) | {"size": int, "installed": int}


@dataclass(frozen=True)
class Pin:
    """What a row resolved to. ``wanted`` is what the row asked for then (``asks``)."""

    wanted: str
    release: str
    packages: tuple[Package, ...]


def asks(row: Row) -> str:
    """What of a row decides its packages, as one line."""
    archive = f" {row.archive.uri} {' '.join(row.archive.components)}" if row.archive else ""
    return f"{row.series} {row.flavour} {row.arch} {' '.join(row.suites)}{archive}"


def location(config: Config) -> Path:
    """The lock file of a project."""
    return config.root / config.lock if config.lock else paths.cache() / "kernels.lock.json"


def parse(text: str, path: Path) -> dict[str, Pin]:
    """(pure) The pins of a lock file's text, by row. Raises ConfigError that names the file and the entry."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise _bad(path, f"line {error.lineno}: {error.msg}") from None
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise _bad(path, f"not a lock file of version {VERSION}")
    entries = document.get("kernels")
    if not isinstance(entries, dict):
        raise _bad(path, "kernels must be an object")
    return {name: _pin(entry, path, name) for name, entry in entries.items()}


def dump(pins: Mapping[str, Pin]) -> str:
    """(pure) The text of a lock file."""
    kernels = {
        name: {
            "wanted": pin.wanted,
            "release": pin.release,
            "packages": [{key: asdict(p)[key] for key in _FIELDS} for p in pin.packages],
        }
        for name, pin in pins.items()
    }
    return json.dumps({"version": VERSION, "kernels": kernels}, indent=2, sort_keys=True) + "\n"


def read(path: Path) -> dict[str, Pin]:
    """The pins of a file; none when it is not there."""
    try:
        return parse(path.read_text(), path)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(path, str(error)) from None


def pinned(path: Path, row: Row) -> Pin | None:
    """The row's pin, if it has one and still asks for the same."""
    pin = read(path).get(row.name)
    return pin if pin is not None and pin.wanted == asks(row) else None


def write(path: Path, row: Row, pin: Pin) -> None:
    """Set one row's pin; the other rows' are kept, and another run may do the same at the same time."""
    with paths.locked("lock-file"):
        pins = read(path)
        if pins.get(row.name) != pin:
            with paths.published(path) as fresh:
                fresh.write_text(dump(pins | {row.name: pin}))


def _bad(path: Path, message: str) -> ConfigError:
    return ConfigError(f"{path}: {message}", hint="remove the file to resolve every row anew")


def _pin(entry: Any, path: Path, name: str) -> Pin:
    if not isinstance(entry, dict) or not isinstance(entry.get("packages"), list):
        raise _bad(path, f"{name}: not an entry")
    wanted, release = entry.get("wanted"), entry.get("release")
    if not isinstance(wanted, str) or not isinstance(release, str) or not _NAME.fullmatch(release):
        raise _bad(path, f"{name}: wanted or release is wrong")
    packages = tuple(_package(one, path, name) for one in entry["packages"])
    if not packages:
        raise _bad(path, f"{name}: no packages")
    return Pin(wanted, release, packages)


def _package(one: Any, path: Path, name: str) -> Package:
    if not isinstance(one, dict):
        raise _bad(path, f"{name}: a package must be an object")
    for key, kind in _FIELDS.items():
        if not isinstance(one.get(key), kind) or isinstance(one[key], bool):
            raise _bad(path, f"{name}: {key} of a package is missing or wrong")
    package = Package(**{key: one[key] for key in _FIELDS})
    sound = _NAME.fullmatch(package.name) and _NAME.fullmatch(package.version) and _SHA256.fullmatch(package.sha256)
    if not (sound and inside(package.path) and package.size > 0 and package.installed >= 0):
        raise _bad(path, f"{name}: {package.name!r} is no sound package")
    return package
