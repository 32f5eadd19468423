"""The hooks by which a project teaches ``requires(...)`` a feature, and says by what tests reach the kernel; known on
the host and in guests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .plugin import KernelInfo


@pytest.hookspec(firstresult=True)
def pytest_kmt_probe(feature: str) -> bool | None:
    """Say whether the kernel under this process has ``feature``: True, False, or None for "could not tell".

    Called when a test says ``requires(feature)``, in the kernel that runs the test. The first plugin that answers
    True or False wins; a conftest is asked before ``kmt``'s own general probes.
    """


@pytest.hookspec(firstresult=True)
def pytest_kmt_kernel_api(kernel: KernelInfo) -> Any:
    """Give what tests reach a real kernel by: ``kernel.api``, made when it is first asked for.

    On a simulated kernel it is ``kmt``'s to give (a ``harness.kernel_api.KernelApi``), and no project is asked.
    """


@pytest.hookspec(firstresult=True)
def pytest_kmt_probe_simulated(feature: str, kernel: KernelInfo) -> bool | None:
    """As ``pytest_kmt_probe``, of a simulated kernel: look at ``kernel``, never at the machine under this process."""
