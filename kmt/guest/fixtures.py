"""The fixture ``kernel``: a function of a module, for pytest 9.2 warns of a session's fixture that is a method."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .plugin import KernelInfo

KNOWN: pytest.StashKey[Callable[[pytest.Config], KernelInfo]] = pytest.StashKey()
"""Who says what it is."""


@pytest.fixture(scope="session")
def kernel(pytestconfig: pytest.Config) -> KernelInfo:
    """The kernel that this test runs on."""
    return pytestconfig.stash[KNOWN](pytestconfig)
