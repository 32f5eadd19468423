"""How words of a command line are meant: paths from where the user stands, everything behind ``--`` as it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path


def behind_dashes(argv: Sequence[str] | None = None) -> list[str]:
    """The words behind the first ``--``, unchanged. (invoke's own ``remainder`` joins them into one string.)"""
    words = list(sys.argv if argv is None else argv)
    return words[words.index("--") + 1 :] if "--" in words else []


def user_path(word: str) -> Path:
    """A path as the user meant it: relative to where ``inv`` was called, which changes directory."""
    return Path(os.environ.get("KMT_CWD") or Path.cwd(), Path(word).expanduser())


def kernel_patterns(words: Sequence[str]) -> list[str]:
    """Patterns of kernels: comma lists taken apart, those that are paths made absolute."""
    found = [word.strip() for each in words for word in each.split(",") if word.strip()]
    return [str(user_path(word)) if "/" in word else word for word in found]
