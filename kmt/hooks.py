"""The hooks that ``kmt`` adds to pytest on the host: progress and results for reports.

``pytest_plugin.py`` registers this module with ``pytest_addhooks``; ``kmt/report/live.py`` listens. The hook for
feature probes is known in guests too, so it is in ``guest/hookspecs.py``. Nothing here runs anything.
"""

from __future__ import annotations

import pytest

from kmt.results import KernelResult

PHASES = ("waiting", "fetching", "image", "building", "starting", "booting", "ready", "testing", "done", "kept")
"""A kernel's phases in their order (``kept``: by ``kmt/keeper``); how each ended is its ``KernelResult.outcome``."""


@pytest.hookspec
def pytest_kmt_progress(kernel: str, phase: str, detail: str) -> None:
    """A kernel entered ``phase`` (one of ``PHASES``) or got further in it; ``detail`` is a few words for people.

    Called in the main thread of the host. In the phase ``testing`` the tests themselves come by
    ``pytest_kmt_report``, so ``detail`` is their number: ``"12 tests"``.
    """


@pytest.hookspec
def pytest_kmt_report(kernel: str, report: pytest.TestReport) -> None:
    """A phase of a test has ended on ``kernel``: called as it happens, in whatever order.

    ``pytest_runtest_logreport`` follows for the same report when its turn has come in pytest's own order of things.
    """


@pytest.hookspec
def pytest_kmt_finished(results: list[KernelResult]) -> None:
    """All kernels are done (or given up): called once, before pytest's terminal summary."""
