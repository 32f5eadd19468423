"""The hook by which a project teaches ``requires(...)`` a feature; known on the host and in guests."""

from __future__ import annotations

import pytest


@pytest.hookspec(firstresult=True)
def pytest_kmt_probe(feature: str) -> bool | None:
    """Say whether the kernel under this process has ``feature``: True, False, or None for "could not tell".

    Called when a test says ``requires(feature)``, in the kernel that runs the test. The first plugin that answers
    True or False wins; a conftest is asked before ``kmt``'s own general probes.
    """
