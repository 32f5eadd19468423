"""Which archives this machine fetches from, read from its own apt configuration. No host is named in our tree.

``KMT_MIRROR`` (and ``KMT_MIRROR_SECURITY``, ``KMT_KEYRING``) overrule it. Ways in order for the rest: the indexes
that apt already has, where Debian's are known by their origin; then what apt would fetch, for a machine whose lists
were never updated, where a suite's name is all that can be told.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kmt import proc
from kmt.errors import ConfigError, MirrorError
from kmt.matrix import Source

KEYRINGS = (
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",  # the name from trixie's debian-archive-keyring on
)
_FORMAT = "$(ORIGIN)|$(RELEASE)|$(REPO_URI)"
_PLANNED = re.compile(r"^'(?P<uri>[^']+)/dists/(?P<suite>[^/']+)/InRelease'", re.MULTILINE)
_DEBIAN_SUITE = re.compile(
    r"(bullseye|bookworm|trixie|forky|duke|sid|stable|oldstable|oldoldstable|testing|unstable)([-/].*)?"
)


@dataclass(frozen=True)
class Mirror:
    """The URIs of Debian's two archives, without a slash at the end."""

    main: str
    security: str

    def of(self, suite: str) -> str:
        """The archive that a suite lives in."""
        return self.security if suite.endswith("-security") else self.main


def known(present: str, planned: str) -> Mirror | None:
    """(pure) The mirror from apt's words: lines ``ORIGIN|SUITE|URI``, and those of ``apt-get update --print-uris``."""
    found: Counter[tuple[bool, str]] = Counter()
    for line in present.splitlines():
        origin, suite, uri = (*line.split("|"), "", "")[:3]
        if origin == "Debian" and uri:
            found[suite.endswith("-security"), uri.rstrip("/")] += 1
    if not any(not security for security, _ in found):
        for match in _PLANNED.finditer(planned):
            if _DEBIAN_SUITE.fullmatch(match["suite"]):
                found[match["suite"].endswith("-security"), match["uri"].rstrip("/")] += 1
    # The archive serves bookworm and bookworm-updates; somebody else's with a suite of that name has only the one.
    main = [uri for (security, uri), _ in found.most_common() if not security]
    guard = [uri for (security, uri), _ in found.most_common() if security]
    if not main:
        return None
    return Mirror(main[0], guard[0] if guard else f"{main[0]}-security")


def mirror() -> Mirror:
    """This machine's Debian mirror. Raises MirrorError when neither the environment nor apt names one."""
    named = os.environ.get("KMT_MIRROR", "").rstrip("/")
    if named:
        return Mirror(named, os.environ.get("KMT_MIRROR_SECURITY", "").rstrip("/") or f"{named}-security")
    found = known(*_apt_says())
    if found is None:
        raise MirrorError("this machine's apt knows no Debian archive", hint="name one: KMT_MIRROR=http://HOST/debian")
    security = os.environ.get("KMT_MIRROR_SECURITY", "").rstrip("/")
    return Mirror(found.main, security or found.security)


@cache
def _apt_says() -> tuple[str, str]:
    present = proc.run(["apt-get", "indextargets", "--format", _FORMAT], check=False, error=MirrorError, timeout=60)
    planned = proc.run(["apt-get", "update", "--print-uris"], check=False, error=MirrorError, timeout=60)
    return present.stdout, planned.stdout


def keyring() -> Path:
    """The keyring that Debian's signatures are checked with."""
    named = os.environ.get("KMT_KEYRING")
    for path in map(Path, [named] if named else KEYRINGS):
        if path.is_file():
            return path.absolute()
    raise ConfigError(
        f"no keyring at {named or KEYRINGS[0]}", hint="install debian-archive-keyring, or set KMT_KEYRING to a file"
    )


def source(suite: str, archive: Source | None = None) -> Source:
    """Where a suite comes from: the row's own archive, else the machine's."""
    if archive is not None:
        if not archive.keyring.is_file():
            raise ConfigError(f"no keyring at {archive.keyring}", hint="it belongs to archive.keyring of the row")
        return Source(archive.uri.rstrip("/"), archive.keyring.absolute(), archive.components)
    return Source(mirror().of(suite), keyring())


def sources(suites: Sequence[str]) -> list[str]:
    """One-line sources for suites of the machine's own archive, as mmdebstrap and sources.list take them."""
    return [line(source(suite), suite) for suite in suites]


def line(where: Source, suite: str, *, options: str = "") -> str:
    """(pure) A line of sources.list."""
    given = f"signed-by={where.keyring} {options}".strip()
    return f"deb [{given}] {where.uri} {suite} {' '.join(where.components)}"
