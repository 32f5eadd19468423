"""The hooks that ``kmt`` adds to pytest: feature probes for projects, progress and results for reports.

``pytest_plugin.py`` registers this module with ``pytest_addhooks``. A conftest answers ``pytest_kmt_probe``;
``kmt/report/live.py`` listens to the other two. Nothing here runs anything.
"""

from __future__ import annotations

import pytest

from kmt.results import KernelResult

PHASES = ("waiting", "fetching", "image", "building", "starting", "booting", "ready", "testing", "done")
"""A kernel's phases in their order; how each ended is its ``KernelResult.outcome``."""


@pytest.hookspec(firstresult=True)
def pytest_kmt_probe(feature: str) -> bool | None:
    """Say whether the kernel under this process has ``feature``: True, False, or None for "could not tell".

    Called in the guest (or on the host for ``--kernel host``) when a test says ``requires(feature)``. The first
    plugin that answers True or False wins; a conftest is asked before ``kmt``'s own general probes.
    """


@pytest.hookspec
def pytest_kmt_progress(kernel: str, phase: str, detail: str) -> None:
    """A kernel entered ``phase`` (one of ``PHASES``) or got further in it; ``detail`` is a few words for people.

    Called in the main thread of the host. In the phase ``testing`` the tests themselves come as ordinary reports
    (``pytest_runtest_logreport``), so ``detail`` is their number: ``"12 tests"``.
    """


@pytest.hookspec
def pytest_kmt_finished(results: list[KernelResult]) -> None:
    """All kernels are done (or given up): called once, before pytest's terminal summary."""
