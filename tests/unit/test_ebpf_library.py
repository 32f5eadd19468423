"""A machine without libbpf, or with one that is too old."""

from pathlib import Path

import pytest

from harness.ebpf import abi
from harness.ebpf.live import LiveKernel, proc_root, running_kernel
from harness.errors import LibraryError
from harness.kernel_api import Feature


@pytest.fixture(autouse=True)
def _forget():
    abi.library.cache_clear()
    yield
    abi.library.cache_clear()


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(abi, "SONAME", "libnothing.so.1")
    with pytest.raises(LibraryError, match=r"libnothing\.so\.1 cannot be used.*libbpf1"):
        abi.library()
    assert LiveKernel().probe(Feature.RINGBUF) is None, "no answer is not No"


def test_another_library_is_not_taken_for_it(monkeypatch):
    monkeypatch.setattr(abi, "SONAME", "libc.so.6")
    with pytest.raises(LibraryError, match="libbpf_major_version"):
        abi.library()


def test_an_old_library_is_refused(monkeypatch):
    monkeypatch.setattr(abi, "OLDEST", (99, 0))
    with pytest.raises(LibraryError):
        abi.library()


def test_where_the_hosts_processes_are(tmp_path, monkeypatch):
    plain, none = Path("/proc"), tmp_path / "none"
    assert proc_root({}, tmp_path) == proc_root({"HOST_PROC": "", "DOCKER_DD_AGENT": ""}, tmp_path) == plain
    assert proc_root({"DOCKER_DD_AGENT": "1"}, none) == plain
    assert proc_root({"DOCKER_DD_AGENT": "1"}, tmp_path) == tmp_path / "proc"
    assert proc_root({"DOCKER_DD_AGENT": "1", "HOST_PROC": "/elsewhere"}, tmp_path) == Path("/elsewhere")
    monkeypatch.setenv("HOST_PROC", str(tmp_path))
    assert running_kernel().proc_root == tmp_path
