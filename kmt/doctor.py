"""What this machine has, what it lacks, and the command that mends it.

Laws: it changes nothing and boots nothing; every finding that is bad comes with what to do; the words for packages
are those of ``vms/packages.txt``, which ``inv`` installs from.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.table import Table
from rich.text import Text

from kmt import config, proc
from kmt.archive import mirror
from kmt.backends import qemu_program
from kmt.boot import accel
from kmt.commands.cleaning import contents
from kmt.commands.shown import shown
from kmt.errors import KmtError
from kmt.hints import task
from kmt.paths import PACKAGE, cache, cache_base, older_layouts

PACKAGES = PACKAGE / "vms" / "packages.txt"
FOR_VAGRANT = PACKAGE / "vms" / "packages-vagrant.txt"
SPACE_MB = 6000
"""What five kernels, the image, the compiler and a run's leftovers take, with air."""
MEMORY_MB = 1800
"""One guest and its QEMU."""


@dataclass(frozen=True)
class Finding:
    """``ok`` is None for what is worth knowing and stops nothing."""

    what: str
    ok: bool | None
    said: str
    mend: str = ""


@dataclass(frozen=True)
class Package:
    """A line of ``packages.txt``."""

    name: str
    shown_by: str
    why: str

    def present(self) -> bool:
        """Whether its command or file is there."""
        if self.shown_by == "newuidmap" and os.getuid() == 0:
            return True
        if self.shown_by.startswith("/"):
            return any(Path("/").glob(self.shown_by[1:]))
        return proc.which(self.shown_by) is not None


def packages(text: str) -> list[Package]:
    """(pure) The packages of a ``packages.txt``."""
    lines = [line.split(maxsplit=2) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [Package(*line) for line in lines]


def examine(root: Path) -> tuple[str, int]:
    """The report, and 0 or 1."""
    found = list(findings(root))
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in found:
        word, colour = {True: ("ok", "green"), False: ("NO", "red"), None: ("--", "yellow")}[finding.ok]
        said = Text(finding.said)
        if finding.mend:
            said.append(f"\n→ {finding.mend}")
        table.add_row(Text(word, style=colour), finding.what, said)
    return shown(table), int(any(finding.ok is False for finding in found))


def findings(root: Path) -> Iterator[Finding]:
    """All findings; a check that cannot be made is a finding of its own."""
    checks: Sequence[tuple[str, Callable[[], Finding]]] = (
        ("python", _python),
        ("packages", _packages),
        ("qemu", _qemu),
        ("acceleration", _acceleration),
        ("user namespaces", _namespaces),
        ("mirror", _mirror),
        ("memory", _memory),
        ("disk", _disk),
        ("cache", _cache),
        ("vagrant", lambda: _vagrant(root)),
        ("project", lambda: _project(root)),
    )
    for what, check in checks:
        try:
            yield check()
        except KmtError as error:
            yield Finding(what, False, error.message, error.hint)
        except OSError as error:
            yield Finding(what, False, str(error))


def _python() -> Finding:
    return Finding("python", True, f"{sys.version.split()[0]} in {sys.prefix}")


def _packages() -> Finding:
    missing = [package for package in packages(PACKAGES.read_text()) if not package.present()]
    if not missing:
        return Finding("packages", True, "all that is needed")
    names = " ".join(package.name for package in missing)
    said = "missing: " + "; ".join(f"{package.name} ({package.why})" for package in missing)
    return Finding("packages", False, said, _as_root(f"apt-get install {names}"))


def _vagrant(root: Path) -> Finding:
    """What that backend needs; it is wanted, and what is missing bad, where the project's backend is it."""
    wanted = config.load(root).backend == "vagrant"
    missing = [package.name for package in packages(FOR_VAGRANT.read_text()) if not package.present()]
    if missing:
        said = f"missing: {' '.join(missing)}" + ("" if wanted else "; only the backend vagrant needs it")
        mend = f"apt-get install --no-install-recommends {' '.join(missing)}"
        return Finding("vagrant", False if wanted else None, said, _as_root(mend))
    made = list(cache("vagrant", "boxes").glob("*.box"))
    size = sum(path.stat().st_size for path in made) // 10**6
    said = f"box {size} MB" if made else f"no box yet; {task('box')}, or the first run, makes it"
    return Finding("vagrant", True, f"all that is needed; {said}")


def _qemu() -> Finding:
    path = qemu_program.find()
    return Finding("qemu", True, f"{path} {'.'.join(map(str, qemu_program.version(path)))}")


def _acceleration() -> Finding:
    verdict = accel.known(qemu_program.find())
    if verdict is None:
        said = f"{accel.DEVICE} opens; whether a guest boots with it, the first run will find out"
        return Finding("acceleration", None, said)
    if verdict.works:
        return Finding("acceleration", True, "kvm boots guests")
    mend = "guests run all the same, by emulation; deadlines are scaled"
    if accel.DEVICE.exists() and not os.access(accel.DEVICE, os.R_OK | os.W_OK):
        mend = _as_root(f"usermod --append --groups {accel.DEVICE.group()} USER") + ", then log in again"
    return Finding("acceleration", None, f"kvm does not: {verdict.reason}", mend)


def _namespaces() -> Finding:
    what = "user namespaces"
    if os.getuid() == 0:
        return Finding(what, True, "not needed by root")
    switches = {
        "/proc/sys/user/max_user_namespaces": ("0", "user.max_user_namespaces=10000"),
        "/proc/sys/kernel/unprivileged_userns_clone": ("0", "kernel.unprivileged_userns_clone=1"),
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    }
    for path, (bad, setting) in switches.items():
        if Path(path).exists() and Path(path).read_text().strip() == bad:
            return Finding(what, False, f"{path} is {bad}", _as_root(f"sysctl -w {setting}"))
    user = psutil.Process().username()
    for path in ("/etc/subuid", "/etc/subgid"):
        lines = Path(path).read_text().splitlines() if Path(path).exists() else []
        if not any(line.startswith((f"{user}:", f"{os.getuid()}:")) for line in lines):
            mend = _as_root(f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}")
            return Finding(what, False, f"{path} has no ids for {user}", mend)
    return Finding(what, True, "allowed")


def _mirror() -> Finding:
    found = mirror.mirror()
    return Finding("mirror", True, f"{found.main}, keyring {mirror.keyring()}")


def _memory() -> Finding:
    free = psutil.virtual_memory().available // 2**20
    said = f"{free} MB available, {MEMORY_MB} MB a guest"
    return Finding("memory", free >= MEMORY_MB, said, "" if free >= MEMORY_MB else "smaller guests: [tool.kmt] memory")


def _disk() -> Finding:
    room = cache()
    free = shutil.disk_usage(room).free // 10**6
    used = sum(size for _, size in contents()) // 10**6
    ok = free + used >= SPACE_MB
    mend = "" if ok else f"another disk: KMT_CACHE=/path; or {task('clean --all')}"
    return Finding("disk", ok, f"{free} MB free, {used} MB used in {room}", mend)


def _cache() -> Finding:
    old = older_layouts()
    if old:
        names = ", ".join(path.name for path in old)
        return Finding("cache", None, f"{cache_base()} has rooms of older versions: {names}", task("clean"))
    rooms = ", ".join(f"{name} {size // 10**6} MB" for name, size in contents())
    return Finding("cache", True, rooms or "empty")


def _project(root: Path) -> Finding:
    settings = config.load(root)
    return Finding("project", True, f"{root}: kernels {', '.join(settings.kernels)}, backend {settings.backend}")


def _as_root(command: str) -> str:
    return command if os.getuid() == 0 else f"sudo {command}"
