"""The embedded BTF collection: BTF of many kernels in one archive, and which of it is this kernel's.

``minimized-btfs.tar.xz`` holds ``<platform>/[<version>/]<release>.btf.tar.xz``; each of these holds either
``<release>.btf`` (cut to what the programs need) or ``vmlinux`` and a file a module. What was extracted stays on disk
for the next start. Laws: the choice depends on platform, version, release and the set of candidates, never on their
order, and is always one of them; nothing is written outside the directory of the collection; a member is taken only
if it is a regular file.
"""

from __future__ import annotations

import logging
import lzma
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from harness.errors import BtfError

COLLECTION = "minimized-btfs.tar.xz"
LIMIT = 256 << 20
"""Bytes that one archive may unpack to: a kernel with all its modules has a tenth of that."""
PLATFORMS = {
    "amzn": "amzn", "amazon": "amzn", "sles": "sles", "suse": "sles", "opensuse-leap": "opensuse-leap",
    "rhel": "rhel", "redhat": "rhel", "ol": "ol", "oracle": "ol",
    "ubuntu": "ubuntu", "centos": "centos", "debian": "debian", "fedora": "fedora",
}  # fmt: skip
"""What os-release calls a distribution, and what the collection does."""
_KNOWN = frozenset(PLATFORMS.values())
_RED_HAT = frozenset({"rhel", "centos", "ol"})
PATTERNS = (
    (re.compile(r"\.amzn[12]\."), frozenset({"amzn"})),
    (re.compile(r"\.el7\."), _RED_HAT),
    (re.compile(r"\.el8(_\d+)?\."), _RED_HAT),
    (re.compile(r"\.el[78]uek\."), frozenset({"ol"})),
    (re.compile(r"\.deb10\."), frozenset({"debian"})),
    (re.compile(r"\.fc\d{2}\."), frozenset({"fedora"})),
    (re.compile(r"-lp15\d\."), frozenset({"opensuse-leap"})),
    (re.compile(r"-150300\."), frozenset({"opensuse-leap"})),
)
"""What a kernel's name says of where it may come from; the first that matches counts."""
_ADVICE = "in a container, mount the host's /etc/os-release at /host/etc/os-release"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Platform:
    """The distribution in the collection's words, and its version (``22.04``)."""

    name: str
    version: str = ""

    @property
    def own(self) -> str:
        """Where the collection keeps this platform's kernels."""
        return f"{self.name}/{self.version}" if self.name == "ubuntu" else self.name


def platform(root: Path = Path("/")) -> Platform:
    """This machine's, from os-release (the host's first). BtfError for one that the collection does not know."""
    said = os_release(root)
    if said.get("ID") not in PLATFORMS:
        raise BtfError(f"{said.get('ID') or 'a platform without a name'} unsupported", hint=_ADVICE)
    return Platform(PLATFORMS[said["ID"]], said.get("VERSION_ID", ""))


def os_release(root: Path = Path("/")) -> dict[str, str]:
    """What the first os-release says, the host's own where a container shows it (os-release(5)); {} without one."""
    for place in ("host/etc/os-release", "etc/os-release", "usr/lib/os-release"):
        try:
            lines = (root / place).read_text(errors="replace").splitlines()
        except OSError:
            continue
        return {key: value.strip().strip("\"'") for key, _, value in (line.partition("=") for line in lines)}
    return {}


def choose(host: Platform, release: str, candidates: Collection[str]) -> str:
    """(pure) The member for this machine: its path in the collection. BtfError where none, or not one, is meant."""
    if not candidates:
        raise BtfError(f"no BTF file in embedded collection matching kernel version {release}")
    expected = f"{host.own}/{release}.btf.tar.xz"
    if expected in candidates:
        return expected
    if len(candidates) == 1:
        (only,) = candidates
        log.warning("BTF of %s is taken from %s, though this is %s", release, PurePosixPath(only).parent, host.own)
        return only
    left = set(candidates)
    for pattern, platforms in PATTERNS:
        if pattern.search(release):
            left = {path for path in left if PurePosixPath(path).parts[0] in platforms}
            break
    if len(left) == 1:
        return left.pop()
    of = sorted({str(PurePosixPath(path).parent) for path in left})
    if of and host.name == "ubuntu" and all(place.startswith("ubuntu/") for place in of):
        raise BtfError(f"ubuntu platform version incorrectly detected as {host.version}: {', '.join(of)}", hint=_ADVICE)
    likely = f", likely one of {', '.join(of)}" if of else ""
    raise BtfError(f"BTF platform incorrectly detected as {host.own}{likely}", hint=_ADVICE)


@dataclass(frozen=True)
class Extracted:
    """BTF on disk; ``modules`` is the directory with a file a module, None where it is minimised."""

    path: Path
    modules: Path | None


class Embedded:
    """The collection in ``directory``. ``root`` stands for ``/`` when the platform is asked for."""

    def __init__(self, directory: Path, release: str, *, root: Path = Path("/")) -> None:
        self._dir = directory
        self._release = release
        self._root = root

    @cached_property
    def _platform(self) -> Platform | BtfError:
        try:
            return platform(self._root)
        except BtfError as error:
            return error

    def find(self) -> Extracted:
        """This kernel's BTF, extracted if need be. Raises BtfError."""
        if isinstance(self._platform, BtfError):
            raise self._platform
        member = choose(self._platform, self._release, self.candidates())
        target = self._dir / PurePosixPath(member).parent / self._release
        if (there := self._extracted(target)) is not None:
            return there
        packed = self._dir / member
        if not packed.exists():
            with _reading("extract kernel BTF tarball from collection"):
                _extract(self._dir / COLLECTION, packed.parent, only=member)
        with _reading("extract kernel BTF from tarball"):
            _extract(packed, target)
        if (there := self._extracted(target)) is not None:
            return there
        raise BtfError(f"embedded BTF not found at {target}")

    def candidates(self) -> frozenset[str]:
        """Members for this release, of whatever platform. A collection that cannot be read has none."""
        wanted = f"{self._release}.btf.tar.xz"
        try:
            return frozenset(
                path
                for path, _ in _members(self._dir / COLLECTION)
                if PurePosixPath(path).name == wanted and PurePosixPath(path).parts[0] in _KNOWN
            )
        except (OSError, tarfile.TarError, lzma.LZMAError, EOFError):
            return frozenset()

    def _extracted(self, target: Path) -> Extracted | None:
        minimised, full = target / f"{self._release}.btf", target / "vmlinux"
        if minimised.is_file():
            return Extracted(minimised, None)
        return Extracted(full, target) if full.is_file() else None


def _members(archive: Path) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The regular files of a tar in xz, by their normalised paths."""
    with tarfile.open(archive, "r:xz") as tar:
        for member in tar:
            if member.isreg():
                yield _inside(member.name), member


def _inside(name: str) -> str:
    """The name as a path below some directory, whatever it says: ``/a``, ``./a`` and ``../../a`` are ``a``."""
    kept: list[str] = []
    for part in name.split("/"):
        if part == "..":
            kept = kept[:-1]
        elif part not in ("", "."):
            kept.append(part)
    return "/".join(kept)


def _extract(archive: Path, target: Path, *, only: str | None = None) -> None:
    """Put the regular files of the archive, or only that one without its folders, into ``target``; each by rename."""
    target.mkdir(mode=0o755, parents=True, exist_ok=True)
    budget = LIMIT
    with tarfile.open(archive, "r:xz") as tar:
        for member in tar:
            place = _inside(member.name)
            if not member.isreg() or not place or (only is not None and place != only):
                continue
            budget -= member.size
            source = tar.extractfile(member)
            if source is None or budget < 0:
                raise BtfError(f"{archive} unpacks to more than {LIMIT >> 20} MiB")
            path = target / (PurePosixPath(place).name if only else place)
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(prefix=".btf-", dir=path.parent, delete=False) as work:
                try:
                    shutil.copyfileobj(source, work)
                    os.fchmod(work.fileno(), member.mode & 0o777)
                    Path(work.name).replace(path)
                except BaseException:
                    Path(work.name).unlink()
                    raise


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise BtfError(f"{what}: {error}") from error
