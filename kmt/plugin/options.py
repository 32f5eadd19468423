"""The host's pytest options: over ``[tool.kmt]``, and those that act in guests too, pytest-cov's as values."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kmt.config import Config, check, load


def settings(pytest_config: pytest.Config) -> Config:
    """``[tool.kmt]`` with the command line's words on top."""
    said = load(pytest_config.rootpath)
    keys = ("backend", "jobs", "memory_limit", "spread", "fresh", "timeout", "retries")
    words = {key: pytest_config.getoption(f"--kernel-{key.replace('_', '-')}") for key in keys}
    changes: dict[str, Any] = {key: word for key, word in words.items() if word is not None}
    for key, word in changes.items():
        check(key, word)
    if snapshots := pytest_config.getoption("--kernel-snapshots"):
        changes["snapshots"] = snapshots == "on"
    if pytest_config.getoption("--kernel-dump"):
        changes["dump"] = True
    return replace(said, **changes)


def words_of(asked: Sequence[str]) -> list[str]:
    """The words of all ``--kernel`` options, comma lists taken apart."""
    return [word.strip() for pattern in asked for word in pattern.split(",")]


def travelling_options(config: pytest.Config) -> tuple[str, ...]:
    """Options that change how a test runs or how its failure reads; selection and reports stay the host's."""
    return tuple(_options(config))


def _options(config: pytest.Config) -> Iterator[str]:
    option = config.option
    style = getattr(option, "tbstyle", "auto")
    if style != "auto":
        yield f"--tb={style}"
    if getattr(option, "showlocals", False):
        yield "--showlocals"
    if getattr(option, "capture", "fd") == "no":
        yield "--capture=no"
    mode = getattr(option, "importmode", "prepend")
    if mode != "prepend":
        yield f"--import-mode={mode}"
    for name in getattr(option, "plugins", None) or ():
        if _is_of_project(name, config.rootpath):
            yield from ("-p", name)
    for warning in getattr(option, "pythonwarnings", None) or ():
        yield from ("-W", warning)
    if getattr(option, "log_level", None):
        yield f"--log-level={option.log_level}"
    yield from _outcomes(option)
    for pair in getattr(option, "override_ini", None) or ():
        if not pair.startswith("addopts="):
            yield from ("-o", pair)


def _outcomes(option: Any) -> Iterator[str]:
    """What decides of outcomes where tests run: pytest's word on expected failures, and Hypothesis's."""
    if getattr(option, "runxfail", False):
        yield "--runxfail"
    for name in ("seed", "profile", "verbosity"):
        if (said := getattr(option, f"hypothesis_{name}", None)) is not None:
            yield f"--hypothesis-{name}={said}"


def _is_of_project(plugin: str, root: Path) -> bool:
    """A ``-p`` plugin that lies in the project's own tree, and so travels; our own are for the host."""
    stays = plugin.startswith(("no:", "kmt."))
    try:
        spec = None if stays else importlib.util.find_spec(plugin)
    except (ImportError, ValueError):
        return False
    where = Path(spec.origin) if spec is not None and spec.origin else None
    return where is not None and where.is_relative_to(root) and "site-packages" not in where.parts


def coverage(config: pytest.Config) -> dict[str, Any] | None:
    """How pytest-cov measures on this side; None where it does not."""
    source = getattr(config.option, "cov_source", None)
    if not source or getattr(config.option, "no_cov", False):
        return None
    # ``--cov`` alone is True in that list: everything below the current directory.
    named = [str(s) for s in source if isinstance(s, str)]
    file = config.rootpath / str(getattr(config.option, "cov_config", ".coveragerc"))
    return {
        "source": named or None,
        "branch": getattr(config.option, "cov_branch", None),
        "config": str(file) if file.is_file() else True,
    }


def take_coverage(artifacts: Path, root: Path) -> None:
    """Put a guest's coverage data where pytest-cov combines it when the session ends."""
    for file in sorted(artifacts.rglob(".coverage.kmt-*")):
        # Processes of several guests may have one number, and then lie in directories of their own.
        guest = "".join(f".{part}" for part in file.relative_to(artifacts).parts[:-1])
        shutil.copyfile(file, root / f"{file.name}{guest}")
