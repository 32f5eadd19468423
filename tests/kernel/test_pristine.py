"""Each of these tests leaves all it can in the kernel, and none finds what another left."""

import ctypes
import os
import signal
from pathlib import Path

import pytest

from harness.ebpf import abi

pytestmark = pytest.mark.pristine

PINNED = Path("/sys/fs/bpf/left")
SYSCTL = Path("/proc/sys/net/ipv4/ip_default_ttl")
_RETURN_0 = bytes.fromhex("b7000000000000009500000000000000")
_SOCKET_FILTER, _ARRAY = 1, 2


@pytest.fixture(autouse=True)
def _nothing_left():
    """Everything is left: the law of the other kernel tests does not hold here."""


@pytest.fixture
def lib():
    return ctypes.CDLL(abi.SONAME, use_errno=True)


def ids(lib, kind):
    step = getattr(lib, f"bpf_{kind}_get_next_id")
    following, found = ctypes.c_uint32(0), []
    while step(following, ctypes.byref(following)) == 0:
        found.append(following.value)
    return found


def leave_everything(lib):
    program = lib.bpf_prog_load(_SOCKET_FILTER, b"left", b"GPL", _RETURN_0, 2, None)
    table = lib.bpf_map_create(_ARRAY, b"left", 4, 4, 1, None)
    assert min(program, table) >= 0, os.strerror(ctypes.get_errno())
    PINNED.mkdir()
    for name, fd in ("program", program), ("table", table):
        assert lib.bpf_obj_pin(fd, str(PINNED / name).encode()) == 0
    SYSCTL.write_text("42")
    Path("/tmp/left").touch()
    Path("/root/left").touch()
    Path(__file__).with_name("left").touch()
    if os.fork() == 0:  # a daemon, in a session of its own
        os.setsid()
        Path("/proc/self/comm").write_text("left")
        while True:
            signal.pause()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_nothing_of_the_tests_before_is_there(lib, number):
    assert ids(lib, "prog") == []
    assert ids(lib, "map") == []
    assert not PINNED.exists()
    assert SYSCTL.read_text().strip() == "64"
    for directory in (Path("/tmp"), Path("/root"), Path(__file__).parent):
        assert not (directory / "left").exists()
    names = {path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm")}
    assert "left" not in names
    leave_everything(lib)
