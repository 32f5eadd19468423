"""What goes into a support bundle, each piece bounded and without secrets, as one ``.tar.gz``.

Laws: a piece that cannot be had is a line in it that says why, never the end of the bundle; nothing of the project's
own files goes in but what configures kmt; of a large file the end; the archive is written whole or not at all, for
its owner's eyes only.
"""

from __future__ import annotations

import getpass
import importlib.metadata
import io
import json
import os
import platform
import socket
import tarfile
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from kmt import config, doctor, proc, runs
from kmt.archive.lock import location
from kmt.errors import ConfigError, KmtError
from kmt.flare import redact
from kmt.matrix import CATALOGUE
from kmt.paths import published
from kmt.text import visible

MOST_BYTES = 512 << 10
"""Of one piece."""
LOOKED_AT = 4 * MOST_BYTES
"""The end of a file in which secrets are looked for: one that the cut to ``MOST_BYTES`` goes through is out by then."""
MOST_TOTAL = 16 << 20
RUNS = 3
PROGRAMS = ("qemu-system-x86_64", "mmdebstrap", "git", "clang", "bpftool")
NOTE = """What a bug report about kmt needs: versions, configuration, and what the last runs left.

Secrets, names and all but a few environment variables were taken out, yet look through it before you send it:
consoles and results hold what your tests printed.
"""

Piece = tuple[str, str]
"""Its name in the archive, and its text."""


def write(root: Path, target: Path) -> list[str]:
    """Write the bundle; the names of its pieces, then what is not in it. ConfigError when it cannot be written."""
    names = _names()
    held: list[str] = []
    left: list[str] = []
    total = 0
    try:
        with published(target) as work:
            work.touch(mode=0o600)
            with tarfile.open(work, "w:gz") as archive:
                for name, said in pieces(root):
                    data = redact.text(said, names)[-MOST_BYTES:].encode(errors="replace")
                    if total + len(data) > MOST_TOTAL:
                        left.append(name)
                        continue
                    total += len(data)
                    member = tarfile.TarInfo(f"{target.name.removesuffix('.tar.gz')}/{name}")
                    member.size, member.mode = len(data), 0o600
                    archive.addfile(member, io.BytesIO(data))
                    held.append(name)
    except OSError as error:
        raise ConfigError(f"{target}: {error.strerror}", hint="name another file for the bundle") from None
    return [*held, *([f"left out, for {MOST_TOTAL >> 20} MiB are full: {', '.join(left)}"] if left else [])]


def pieces(root: Path) -> Iterator[Piece]:
    """All of it, the most telling first, before secrets are taken out."""
    yield "README", NOTE
    yield "versions.txt", _or_why(_versions)
    yield "environment.txt", "".join(f"{k}={v}\n" for k, v in redact.environment(os.environ).items())
    yield "doctor.txt", _or_why(lambda: doctor.examine(root)[0])
    yield "configuration.json", _or_why(lambda: _configuration(root))
    yield "kernels.toml", _or_why(lambda: _tail(_catalogue(root)))
    yield "kernels.lock.json", _or_why(lambda: _tail(location(config.load(root))))
    for run in reversed(runs.seen()[-RUNS:]):
        for file in sorted(path for path in run.dir.rglob("*") if _tells(path)):
            yield f"runs/{run.record.id}/{visible(str(file.relative_to(run.dir)))}", _or_why(partial(_tail, file))


def _tells(path: Path) -> bool:
    return path.suffix in (".log", ".json") and path.is_file() and not path.is_symlink()


def _or_why(make: Callable[[], str]) -> str:
    try:
        return make()
    except (KmtError, OSError, ValueError) as error:
        return f"not to be had: {type(error).__name__}: {error}\n"


def _versions() -> str:
    said = [f"kernel {platform.release()} {platform.machine()}", f"python {platform.python_version()}"]
    said += [f"{name} {importlib.metadata.version(name)}" for name in ("kernel-matrix", "pytest")]
    for program in PROGRAMS:
        try:
            done = proc.run([program, "--version"], check=False, timeout=10)
            said.append(f"{program}: {(done.stdout or done.stderr).strip().splitlines()[0]}")
        except (KmtError, IndexError):
            said.append(f"{program}: not there")
    release = Path("/etc/os-release")
    return "\n".join([*said, "", release.read_text() if release.is_file() else ""])


def _configuration(root: Path) -> str:
    file = root / "pyproject.toml"
    table = tomllib.loads(file.read_text()).get("tool", {}).get("kmt", {}) if file.is_file() else {}
    return json.dumps(table, indent=1, default=str) + "\n"


def _catalogue(root: Path) -> Path:
    named = config.load(root).catalogue
    return root / named if named else CATALOGUE


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOOKED_AT))
        return file.read(LOOKED_AT).decode(errors="replace")


def _names() -> dict[str, str]:
    """What stands for the user's home and name, and for this machine."""
    found = {str(Path.home()): "~", socket.gethostname(): "[machine]"}
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = ""
    return {**found, **({user: "[user]"} if user and user != "root" else {})}
