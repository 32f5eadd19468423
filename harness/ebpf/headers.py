"""Where the headers of a kernel are, and whether they are that kernel's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_RELEASE = re.compile(r'^#define UTS_RELEASE "([^"]*)"', re.MULTILINE)


@dataclass(frozen=True)
class Headers:
    """The two halves (Debian splits them; elsewhere both are one directory), and the release that stands in them."""

    own: Path
    common: Path
    release: str | None


def find_headers(release: str, *, root: Path = Path("/")) -> Headers | None:
    """The unpacked headers that are installed for that release, whatever release they say they are of."""
    source = root / "usr/src"
    candidates = [root / f"lib/modules/{release}/build", source / f"linux-headers-{release}"]
    own = next((p.resolve() for p in candidates if (p / "include").is_dir()), None)
    if own is None:
        return None
    # The half that all flavours share is named after the release without its flavour (one word or two).
    words = release.split("-")
    stems = ["-".join(words[:n]) for n in range(len(words) - 1, 0, -1)]
    shared = (source / f"linux-headers-{stem}-common" for stem in stems)
    common = next((p for p in shared if (p / "include").is_dir()), own)
    return Headers(own, common, _release(own))


def _release(own: Path) -> str | None:
    try:
        found = _RELEASE.search((own / "include/generated/utsrelease.h").read_text(errors="replace"))
    except OSError:
        return None
    return found[1] if found else None
