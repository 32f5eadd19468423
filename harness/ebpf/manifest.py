"""(pure) ``runtime/manifest.json``: what every program is made of, and with which flags it is compiled.

The build writes it: ``files`` (SHA-256 by place under ``runtime/``) and ``flags`` (with ``{here}``, ``{own}`` and
``{common}`` for the sources and the two halves of a kernel's headers). Laws: any bytes either parse or raise
FormatError; the name of an output changes with the kernel, with any file that goes into it, and with any flag.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import FormatError

FILE = "manifest.json"
SOURCE = ".bpf.c"
_PLACE = re.compile(r"[A-Za-z0-9_][\w.+-]*(/[A-Za-z0-9_][\w.+-]*)*", re.ASCII)
_OPEN = re.compile(r"\{(here|own|common)\}")


@dataclass(frozen=True)
class Manifest:
    """Digests by place, and flags."""

    files: Mapping[str, str]
    flags: tuple[str, ...]

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Read the file's bytes."""
        try:
            document = json.loads(data)
            files, flags = document["files"], document["flags"]
            whole = isinstance(files, dict) and isinstance(flags, list)
            good = whole and all(isinstance(word, str) for word in [*files.values(), *flags])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"the manifest of the sources cannot be read: {error}") from None
        if not good:
            raise FormatError("the manifest of the sources must hold digests by place and a list of flags")
        odd = next((place for place in files if not _PLACE.fullmatch(place)), None)
        if odd is not None:
            raise FormatError(f"the manifest of the sources names a file outside: {odd!r}")
        return cls(files, tuple(flags))

    def inputs(self, module: str) -> dict[str, str]:
        """What goes into that program: its source and every header. Empty where it has no source."""
        if f"{module}{SOURCE}" not in self.files:
            return {}
        return {p: d for p, d in self.files.items() if p == f"{module}{SOURCE}" or not p.endswith(SOURCE)}

    def output_name(self, module: str, kernel: Sequence[str]) -> str:
        """``NAME-<kernel>-<inputs>-<flags>.o``; ``kernel`` is what uname says: release, version, machine."""
        files = "\0".join(f"{digest} {place}" for place, digest in sorted(self.inputs(module).items()))
        parts = ("\0".join(kernel), files, "\0".join(self.flags))
        return "-".join([module, *(hashlib.sha256(part.encode()).hexdigest()[:16] for part in parts)]) + ".o"

    def placed(self, places: Mapping[str, str], exists: Callable[[str], bool]) -> list[str]:
        """The flags with their places filled in, without those whose file or directory is not there."""
        found = []
        for flag in self.flags:
            words = _OPEN.sub(lambda match: places[match[1]], flag)
            if words == flag or exists(words[words.index("/") :]):
                found.append(words)
        return found
