"""Which of the host's pytest options act in guests too, as the command line that says them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


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
    for warning in getattr(option, "pythonwarnings", None) or ():
        yield from ("-W", warning)
    if getattr(option, "log_level", None):
        yield f"--log-level={option.log_level}"
    if getattr(option, "hypothesis_seed", None) is not None:
        yield f"--hypothesis-seed={option.hypothesis_seed}"
    for pair in getattr(option, "override_ini", None) or ():
        if not pair.startswith("addopts="):
            yield from ("-o", pair)
