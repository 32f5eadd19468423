"""Where links cannot be left to the kernel: they are closed here then, and nothing is left of the attempt.

On kernels: tests/kernel/test_tracer_loading.py.
"""

import errno
from pathlib import Path

import pytest

from harness.ebpf import release
from harness.errors import BpfError

UNLIKELY = (1 << 31) - 1
"""No descriptor."""


@pytest.fixture(autouse=True)
def _no_descriptor_stays():
    before = sorted(Path("/proc/self/fd").iterdir())
    yield
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_what_the_kernel_refuses_is_closed_here(caplog):
    """Whichever step it is: here perhaps the file system, else the name of what is no link."""
    with caplog.at_level("DEBUG", release.__name__), release.by_the_kernel([UNLIKELY]):
        pass
    assert "programs are taken off one by one: " in caplog.text


def test_where_no_map_can_be_made(monkeypatch, caplog):
    def refused():
        raise BpfError("making a map to wait for programs with", errno.EPERM)

    monkeypatch.setattr(release, "wait_for_programs", refused)
    with caplog.at_level("DEBUG", release.__name__), release.by_the_kernel([]):
        pass
    assert "programs are taken off one by one: making a map to wait for programs with: EPERM" in caplog.text


def test_a_c_library_without_these_calls(monkeypatch, caplog):
    """As musl's, and glibc before 2.36."""
    monkeypatch.setattr(release, "wait_for_programs", lambda: None)
    monkeypatch.setattr(release, "_libc", object())
    with caplog.at_level("DEBUG", release.__name__), release.by_the_kernel([]):
        pass
    assert "Function not implemented: 'fsopen'" in caplog.text


def test_an_error_within_is_not_hidden():
    with pytest.raises(ZeroDivisionError), release.by_the_kernel([]):
        raise ZeroDivisionError
