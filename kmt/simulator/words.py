"""(pure) What is said of a name that is not there, as the harness says it of a real kernel's objects."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from harness.errors import SettingsError


def unknown(where: str, kind: str, name: str, known: Iterable[str]) -> SettingsError:
    """The error for it, with the nearest name that is there."""
    near = difflib.get_close_matches(name, known, 1)
    return SettingsError(f"object {where} has no {kind} {name!r}", hint=f"did you mean {near[0]!r}?" if near else "")
