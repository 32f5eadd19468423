"""(pure) Debian's package index as values: the paragraphs that describe kernels, and nothing else of them.

An index of a whole suite is 60 MB of text, so it is cut by plain search first and parsed only where it matters.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

_KERNEL_PACKAGE = re.compile(r"linux-(image|binary|modules|base|headers)-")
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Package:
    """One exact package of an archive. ``path`` is relative to the archive's URI, ``installed`` is in KiB."""

    name: str
    version: str
    arch: str
    suite: str
    path: str
    size: int
    sha256: str
    installed: int = 0
    depends: tuple[str, ...] = ()
    """Names only; every alternative of every dependency."""

    @property
    def file_name(self) -> str:
        """Its name in our cache: two archives that call different contents alike do not meet in it."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.sha256[:12]}.deb"


def parse(index: str, suite: str, names: Collection[str] | None = None) -> list[Package]:
    """The packages of an index with these names; with None all kernel packages but debug symbols.

    A paragraph without a digest, or with a path that leaves the archive, is no package to us.
    """
    return [p for text in _paragraphs(index, names) if (p := _package(text, suite)) is not None]


def _paragraphs(index: str, names: Collection[str] | None) -> Iterator[str]:
    for match in re.finditer(r"^Package: (\S+)$", index, re.MULTILINE):
        name = match[1]
        wanted = name in names if names is not None else _KERNEL_PACKAGE.match(name) and not name.endswith("-dbg")
        if wanted:
            start = index.rfind("\n\n", 0, match.start()) + 1
            end = index.find("\n\n", match.end())
            yield index[start : end if end >= 0 else len(index)].strip()


def _package(text: str, suite: str) -> Package | None:
    from debian.deb822 import Packages  # runs whose kernels are locked need not wait for it

    fields = Packages(text)
    size, sha256, path = fields.get("Size", ""), fields.get("SHA256", ""), fields.get("Filename", "")
    if not (size.isdecimal() and _SHA256.fullmatch(sha256) and inside(path)):
        return None
    depends = f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}"
    words = (part.split() for part in re.split(r"[,|]", depends))
    installed = fields.get("Installed-Size", "")
    return Package(
        name=fields["Package"],
        version=fields.get("Version", ""),
        arch=fields.get("Architecture", ""),
        suite=suite,
        path=path,
        size=int(size),
        sha256=sha256,
        installed=int(installed) if installed.isdecimal() else 0,
        depends=tuple(w[0].partition(":")[0] for w in words if w),
    )


def inside(path: str) -> bool:
    """True for a relative path that stays below where it starts."""
    parts = path.split("/")
    return path != "" and not path.startswith("/") and ".." not in parts and "\0" not in path
