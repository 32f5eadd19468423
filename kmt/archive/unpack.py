"""From kernel packages to one directory that holds a kernel: no package is installed, none of its scripts runs.

Taken are only the image, its configuration, the modules and the headers; regular files, directories, and links that
stay inside. The links ``lib/modules/<release>/build`` and ``source`` are left out: what they should mean is the
guest's affair. Packages carry no modules.dep (their scripts make it), so depmod runs here.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from kmt import paths, proc
from kmt.archive import apt, bzimage
from kmt.errors import ArchiveError

LIMIT = 4 << 30
"""Bytes a kernel may unpack to: the largest generic one, with headers, takes 0.6 GB."""
_STAMP = "kernel.json"


@dataclass(frozen=True)
class Tree:
    """A kernel unpacked: its directory and what is where in it."""

    root: Path
    release: str

    @property
    def vmlinuz(self) -> Path:
        """The image."""
        return self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def config(self) -> Path | None:
        """The configuration it was built with, where the archive has it."""
        path = self.root / "boot" / f"config-{self.release}"
        return path if path.is_file() else None

    @property
    def modules(self) -> Path:
        """What is ``/lib/modules/<release>`` on a machine."""
        return self.root / "lib" / "modules" / self.release

    @property
    def headers(self) -> tuple[Path, ...]:
        """The ``usr/src/linux-headers-*`` directories, the release's own first."""
        found = (self.root / "usr" / "src").glob("linux-headers-*")
        return tuple(sorted(found, key=lambda p: (p.name != f"linux-headers-{self.release}", p.name)))

    def whole(self) -> bool:
        """True when it was unpacked to the end and its image is still what it was."""
        try:
            stamp = json.loads((self.root / _STAMP).read_text())
            return apt.intact(self.vmlinuz, stamp["size"], stamp["sha256"]) and self.modules.is_dir()
        except (OSError, ValueError, KeyError, TypeError):
            return False


def unpack(packages: Iterable[Path], release: str, target: Path, arch: str) -> Tree:
    """Unpack verified packages of one release to ``target``, which appears whole or not at all."""
    with paths.published(target) as work:
        work.mkdir()
        budget = LIMIT
        for package in packages:
            budget = _unpack_one(package, release, work, budget)
        tree = Tree(work, release)
        if not tree.vmlinuz.is_file() or not tree.modules.is_dir():
            raise ArchiveError(f"the packages of {release} hold no image or no modules of that name")
        bzimage.read(tree.vmlinuz, arch=arch)
        # No configuration of this machine's (/etc/depmod.d): it would prefer directories that the guest has not.
        proc.run(["depmod", "-C", "/dev/null", "-b", work, release], error=ArchiveError)
        stamp = {"size": tree.vmlinuz.stat().st_size, "sha256": apt.digest_of(tree.vmlinuz)}
        (work / _STAMP).write_text(json.dumps(stamp))
    return Tree(target, release)


def _unpack_one(package: Path, release: str, work: Path, budget: int) -> int:
    safe: set[Path] = set()
    child = proc.spawn(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    stream = cast("IO[bytes]", child.stdout)
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                name = wanted(member.name, release)
                if name is None:
                    continue
                budget -= member.size
                if budget < 0:
                    raise ArchiveError(f"{package.name} unpacks to more than {apt.megabytes(LIMIT)}")
                _place(tar, member, work, name, safe)
        while stream.read(1 << 20):
            pass
        if child.wait() != 0:
            raise ArchiveError(f"{package.name} cannot be unpacked: dpkg-deb ended with {child.returncode}")
    except (tarfile.TarError, EOFError) as error:
        raise ArchiveError(f"{package.name} cannot be unpacked: {error}") from None
    finally:
        child.kill()
        child.wait()
        stream.close()
    return budget


def wanted(member: str, release: str) -> str | None:
    """(pure) Where a package's member goes, relative to the kernel's directory; None: it is left out.

    Newer packages have ``usr/lib/modules`` for ``lib/modules``; those from 6.19 on keep image and configuration there.
    """
    name = re.sub(r"^usr/lib/modules/", "lib/modules/", posixpath.normpath(member))
    modules = f"lib/modules/{release}/"
    if name in (modules + "vmlinuz", modules + "config"):
        name = f"boot/{posixpath.basename(name)}-{release}"
    if name in (modules + "build", modules + "source"):
        return None
    # normalised, so that what starts with one of these is below it
    kept = name in (f"boot/vmlinuz-{release}", f"boot/config-{release}")
    return name if kept or name.startswith((modules, "usr/src/linux-headers-")) else None


def _place(tar: tarfile.TarFile, member: tarfile.TarInfo, work: Path, name: str, safe: set[Path]) -> None:
    target = work / name
    if target.parent not in safe:
        if not target.parent.resolve().is_relative_to(work.resolve()):
            raise ArchiveError(f"{member.name} leads out of its package")
        target.parent.mkdir(parents=True, exist_ok=True)
        safe.add(target.parent)
    if member.isdir():
        target.mkdir(exist_ok=True)
    elif member.isreg():
        source = tar.extractfile(member)
        assert source is not None
        with target.open("xb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        target.chmod(0o755 if member.mode & 0o100 else 0o644)
    elif member.issym() and stays(name, member.linkname):
        target.symlink_to(member.linkname)


def stays(name: str, link: str) -> bool:
    """(pure) True when a link at ``name`` with that text leads to a place inside the kernel's directory."""
    return not link.startswith("/") and not posixpath.normpath(
        posixpath.join(posixpath.dirname(name), link)
    ).startswith("..")
