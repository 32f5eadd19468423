"""Some of these need a real kernel beside what they test: like ``tests/kernel`` they are deselected without one.

Others take the fixture ``kernel``, by ``simulated``: on a simulated kernel they have its ``/proc`` and its buffers.
"""

import os

import pytest

from kmt.simulator.facts import Fact, Sort

REAL = ("test_differential.py",)


def pytest_collection_modifyitems(config, items):
    if "KMT_GUEST" in os.environ or config.getoption("--kernel", default=[]):
        return
    mine = [item for item in items if item.path.name in REAL]
    if mine:
        config.hook.pytest_deselected(items=mine)
        items[:] = [item for item in items if item.path.name not in REAL]


def pytest_kmt_probe_simulated(feature, kernel):
    """Whether it has the helper that the watcher's program cannot do without (Linux 5.5)."""
    if feature == "probe_read_user_str":
        return kernel.api.told.ask(Fact(Sort.HELPER, f"bpf_{feature}")).value is True
    return None


@pytest.fixture
def simulated(kernel):
    """The simulated kernel, where this runs on one; None on a real one, of which events cannot be made up."""
    return kernel.api if kernel.simulated else None
