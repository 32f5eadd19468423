"""``kmt.flare``: a support bundle."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from kmt.commands.words import user_path
from kmt.errors import ConfigError
from kmt.flare import gather


def flare(root: Path, output: str = "") -> list[str]:
    """Write it, by default beside where the user stands; what is in it, a line each. ConfigError: it cannot be."""
    target = user_path(output or f"kmt-flare-{datetime.now(UTC):%Y%m%d-%H%M%S}.tar.gz")
    if not target.name.endswith(".tar.gz"):
        raise ConfigError(f"{target.name}: the bundle is a .tar.gz", hint="name it so")
    return [*gather.write(root, target), f"{target}: look through it before you send it"]
