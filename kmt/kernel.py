"""(pure) What a kernel is to us: its version, where it comes from, and, once fetched, its files.

No kernel version is spelled in code outside tests: rows live in ``vms/kernels.toml``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering
from pathlib import Path

_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:[-~]?rc(\d+))?(.*)", re.ASCII)


@total_ordering
@dataclass(frozen=True)
class Version:
    """``6.12.117+deb13-cloud-amd64`` as numbers; release candidates sort before their release."""

    major: int
    minor: int
    patch: int = 0
    candidate: int | None = None
    rest: str = ""

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read ``X.Y``, ``X.Y.Z``, ``vX.Y``, ``X.Y-rcN`` with anything behind. ValueError says what was not one."""
        match = _VERSION.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is no kernel version")
        major, minor, patch, candidate, rest = match.groups()
        return cls(int(major), int(minor), int(patch or 0), int(candidate) if candidate else None, rest)

    @property
    def series(self) -> str:
        """``6.12`` of ``6.12.117+deb13``."""
        return f"{self.major}.{self.minor}"

    def _key(self) -> tuple[object, ...]:
        numbers = tuple(int(n) for n in re.findall(r"\d+", self.rest))
        final = self.candidate is None
        return (self.major, self.minor, self.patch, final, self.candidate or 0, numbers, self.rest)

    def __lt__(self, other: Version) -> bool:
        return self._key() < other._key()


@dataclass(frozen=True)
class Kernel:
    """A kernel whose files are here, ready to boot.

    ``modules`` is the directory that is ``/lib/modules/<release>`` in the guest (None: nothing but the image);
    ``headers`` are the unpacked ``usr/src/linux-headers-*`` directories, ``()`` where the archive has none;
    ``btf`` is raw BTF for an image without its own; ``digest`` is the identity of all of it (hex);
    ``origin`` says in words where it came from.
    """

    name: str
    release: str
    vmlinuz: Path
    modules: Path | None
    config: Path | None
    headers: tuple[Path, ...]
    btf: Path | None
    digest: str
    origin: str

    @property
    def version(self) -> Version:
        """The release as numbers."""
        return Version.parse(self.release)
