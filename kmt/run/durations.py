"""How long a project's tests took in guests, kept in the cache for the next run to spread them by.

Laws: what is read is only a hint: a file that is missing, torn or nonsense is an empty one; it is replaced whole;
it holds at most ``TESTS`` tests, those seen last, and there are at most ``PROJECTS`` files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from kmt.paths import cache, published
from kmt.results import KernelResult

TESTS = 20_000
PROJECTS = 100


def load(root: Path) -> dict[str, float]:
    """Test id (without a kernel) to seconds, for the project at ``root``."""
    try:
        document = json.loads(_file(root).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return dict(_sound(document)) if isinstance(document, Mapping) else {}


def _sound(document: Mapping[str, object]) -> Iterable[tuple[str, float]]:
    for nodeid, seconds in document.items():
        if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < 1e9:
            yield nodeid, float(seconds)


def record(root: Path, results: Iterable[KernelResult]) -> None:
    """Remember what the tests of this run took, on the kernel where they took longest. Never fails a run."""
    seen: dict[str, float] = {}
    for result in results:
        for test in () if result.simulated else result.tests:
            if not test.lost and test.outcome != "skipped" and math.isfinite(test.seconds):
                seen[test.id] = round(max(test.seconds, seen.get(test.id, 0.0)), 3)
    if not seen:
        return
    older = {nodeid: seconds for nodeid, seconds in load(root).items() if nodeid not in seen}
    kept = list({**older, **seen}.items())[-TESTS:]
    with suppress(OSError):
        file = _file(root)
        with published(file) as work:
            work.write_text(json.dumps(dict(kept)))
        for stale in sorted(file.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-PROJECTS]:
            stale.unlink(missing_ok=True)


def _file(root: Path) -> Path:
    return cache("durations") / f"{hashlib.sha256(str(root).encode()).hexdigest()[:32]}.json"
