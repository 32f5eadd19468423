"""(pure) Which packages make a kernel: the newest release of a series and flavour that is whole.

Three shapes exist. Debian up to 6.18: ``linux-image-<release>`` holds everything. Debian from 6.19: that package is
a shell that depends on ``linux-binary-`` (the image), ``linux-modules-`` and ``linux-base-<release>`` (the
configuration). Ubuntu: ``linux-image-`` holds the image and depends on ``linux-modules-<release>``. So the parts
are read off the dependencies. Without its image or its modules a release is not whole; configuration and headers
may be missing (a superseded source package takes them out of the archive, its signed image stays).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from debian.debian_support import Version as DebianVersion

from kmt.archive.packages import Package
from kmt.kernel import Version

_STEM = re.compile(r"\d+\.\d+(\.\d+)?([~-]?rc\d+)?([+-][0-9][\w.~+]*|[+][\w.~+]*)?", re.ASCII)


@dataclass(frozen=True)
class Resolution:
    """A release and its exact packages, image first; ``headers`` tells whether they are among them."""

    release: str
    packages: tuple[Package, ...]

    @property
    def headers(self) -> bool:
        """True when the release's headers are among the packages."""
        return any(p.name.startswith("linux-headers-") for p in self.packages)


class _Index:
    def __init__(self, packages: Iterable[Package], arch: str) -> None:
        self._by_name: dict[str, list[Package]] = defaultdict(list)
        for package in packages:
            if package.arch in (arch, "all"):
                self._by_name[package.name].append(package)

    def names(self) -> Iterable[str]:
        return self._by_name.keys()

    def get(self, name: str, version: str = "") -> Package | None:
        """The newest of that name, or the one of exactly that version."""
        found = [p for p in self._by_name.get(name, []) if version in ("", p.version)]
        return max(found, key=lambda p: DebianVersion(p.version), default=None)


def releases(packages: Iterable[Package], flavour: str) -> list[str]:
    """Every release of that flavour that has an image package, whole or not, newest first."""
    found = set()
    for package in packages:
        match = re.fullmatch(r"linux-(?:image|binary)-(?:unsigned-)?(\d.*?)(?:-unsigned)?", package.name)
        if match and match[1].endswith(f"-{flavour}") and _STEM.fullmatch(match[1][: -len(flavour) - 1]):
            found.add(match[1])
    return sorted(found, key=Version.parse, reverse=True)


def newest_whole(packages: Iterable[Package], series: str, flavour: str, arch: str) -> Resolution | str:
    """The newest whole release of the series, or the reason why there is none (one line)."""
    everything = list(packages)
    index = _Index(everything, arch)
    mine = [p for p in everything if p.arch == arch]
    missing: list[str] = []
    for release in releases(mine, flavour):
        if Version.parse(release).series != series:
            continue
        found = _whole(index, release)
        if isinstance(found, Resolution):
            return found
        if found:
            missing.append(found)
    if missing:
        return f"no {series} kernel is whole: {missing[0]}"
    present = sorted({Version.parse(r).series for r in releases(mine, flavour)}, key=Version.parse)
    foreign = sorted({p.arch for p in everything} - {arch, "all"})
    if not present and foreign:
        return f"only kernels for {', '.join(foreign)} there, none for {arch}"
    return f"no {series} kernel of flavour {flavour}; there now: {', '.join(present) or 'none at all'}"


def _whole(index: _Index, release: str) -> Resolution | str:
    """The release's packages, or what is missing; "" where the name is a metapackage's and no kernel's."""
    image = index.get(f"linux-image-{release}") or index.get(f"linux-image-{release}-unsigned")
    image = image or index.get(f"linux-image-unsigned-{release}")
    if image is None:
        return f"linux-image-{release} is gone from the archive"
    if any(name.startswith("linux-image-") for name in image.depends):
        return ""
    parts = [image]
    for role in ("binary", "modules"):
        name = f"linux-{role}-{release}"
        if name not in image.depends:
            continue
        part = index.get(name, image.version) or index.get(f"linux-{role}-unsigned-{release}", image.version)
        if part is None:
            return f"{name} is gone from the archive"
        parts.append(part)
    base = index.get(f"linux-base-{release}", image.version)
    parts += [base] if base else []
    return Resolution(release, (*parts, *_headers(index, release, image.version)))


def _headers(index: _Index, release: str, version: str) -> tuple[Package, ...]:
    """The headers of a release with the common part they lean on; nothing when either is gone."""
    own = index.get(f"linux-headers-{release}", version)
    if own is None:
        return ()
    shared = [index.get(name, own.version) for name in own.depends if name.startswith("linux-headers-")]
    found = [p for p in shared if p is not None]
    return (own, *found) if len(found) == len(shared) else ()
