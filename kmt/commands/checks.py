"""``lint``: ruff and mypy, the same three commands that ``tests/unit/test_lint.py`` runs one by one."""

from __future__ import annotations

import sys
from pathlib import Path

from kmt import proc

COMMANDS = (
    ("ruff", "check"),
    ("ruff", "format", "--check"),
    ("mypy",),
)


def check(root: Path, command: tuple[str, ...]) -> proc.Completed:
    """Run one of ``COMMANDS`` over the project."""
    return proc.run([sys.executable, "-m", *command], cwd=root, check=False)


def lint(root: Path) -> int:
    """Run all, print what they say; 1 when any complains."""
    results = [check(root, command) for command in COMMANDS]
    for result in results:
        print(f"{' '.join(result.argv[2:])}:", (result.stdout + result.stderr).rstrip(), sep="\n", flush=True)
    return int(any(result.status for result in results))
