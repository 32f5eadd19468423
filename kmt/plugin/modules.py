"""Which sources of the project the host's collection has loaded: what guests will load too."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pytest


def loaded(root: Path, tests: Iterable[str], others: Iterable[str], config: pytest.Config) -> dict[str, bool]:
    """Path relative to ``root``, and whether pytest rewrites its assertions.

    ``tests`` are the files with tests that guests will run, ``others`` those that were collected besides. What else
    the host's pytest rewrites (all of a distribution that has plugins, for one) a guest's need not.
    """
    rewriting = config.getoption("assertmode", default="rewrite") == "rewrite"
    # With this hook pytest compiles assertions otherwise, and the files that it keeps do not tell.
    if config.getini("enable_assertion_pass_hook"):
        return {}
    found = {name: rewriting for name in tests if name.endswith(".py")}
    left_out = frozenset(others) - frozenset(found)
    for module in list(sys.modules.values()):
        name = _name(module, root)
        if name is not None and name not in left_out:
            found.setdefault(name, rewriting and Path(name).name == "conftest.py")
    return found


def _name(module: ModuleType, root: Path) -> str | None:
    """The source of a module of the project; None for any other, and for what is ours."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or not file.endswith(".py") or module.__name__.partition(".")[0] == "kmt":
        return None
    path = Path(file)
    if not path.is_relative_to(root) or "site-packages" in path.parts:
        return None
    return path.relative_to(root).as_posix()
