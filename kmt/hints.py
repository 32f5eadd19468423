"""How hints name our tasks, so that the command works where the user stands.

A checkout of this project has ``inv``; somebody else's project, with a wheel of it, has ``python -m kmt``.
"""

from __future__ import annotations

from pathlib import Path


def task(words: str) -> str:
    """The command for ``doctor``, ``fetch --update``, ... from the current directory."""
    here = Path.cwd()
    return f"./inv kmt.{words}" if (here / "inv").is_file() and (here / "kmt").is_dir() else f"python -m kmt {words}"
