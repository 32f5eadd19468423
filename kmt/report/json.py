"""The results as a JSON file (``--kernel-json``); ``docs/results.md`` and ``docs/results.schema.json`` describe it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from kmt.errors import ConfigError
from kmt.paths import published
from kmt.results import KernelResult, Made, to_json


def write(path: Path, kernels: Sequence[KernelResult], made: Made) -> None:
    """Write the file, whole or not at all. ConfigError when it cannot be written."""
    document = to_json(kernels, made)
    try:
        with published(path) as work:
            work.write_text(json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="name another file for the JSON results") from None
