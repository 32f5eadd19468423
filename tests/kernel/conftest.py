"""For tests on a real kernel: the built programs, and the law that nothing of a test stays in the kernel.

They run in guests, as root (``pytest --kernel 6.1``), or on this machine's own kernel (``--kernel host``); without
``--kernel`` they are deselected.
"""

import ctypes
import dataclasses
import errno
import os
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.ebpf import abi, core
from harness.ebpf.live import LiveKernel
from harness.ebpf.settings import BpfSettings
from harness.tracer import fentry, kprobe
from harness.tracer.settings import TracerSettings

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config, items):
    if "KMT_GUEST" in os.environ or config.getoption("--kernel", default=[]):
        return
    mine = [item for item in items if HERE in item.path.parents]
    if mine:
        config.hook.pytest_deselected(items=mine)
        items[:] = [item for item in items if HERE not in item.path.parents]


def pytest_kmt_probe(feature):
    """What these tests need besides the general features."""
    if feature == "mptcp":
        try:
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
        except OSError as error:
            if error.errno in (errno.EPROTONOSUPPORT, errno.ENOPROTOOPT, errno.EINVAL):
                return False
            raise
        return True
    if feature == "module_btf":
        subprocess.run(["modprobe", "dummy", "numdummies=0"], check=False, capture_output=True)
        return Path("/sys/kernel/btf/dummy").exists()
    if feature == "lockdown":
        security = Path("/sys/kernel/security")
        if not (security / "lockdown").exists():
            subprocess.run(["mount", "-t", "securityfs", "none", security], check=False, capture_output=True)
        return (security / "lockdown").exists()
    if feature == "netem":
        return subprocess.run(["modprobe", "sch_netem"], check=False, capture_output=True).returncode == 0
    return None


@pytest.fixture(scope="session")
def bpf_dir():
    """The built programs."""
    named = os.environ.get("KMT_BPF_DIR")
    assert named, "KMT_BPF_DIR names the built programs; pytest --kernel sets it"
    return Path(named)


@pytest.fixture(scope="session")
def settings(bpf_dir):
    return BpfSettings(bpf_dir)


@pytest.fixture(scope="session")
def live():
    """The running kernel, as the harness sees it; where it is simulated, what takes this does not run.

    (The fixture ``kernel`` says what it is, and its ``api`` is the kernel, real or simulated.)
    """
    return LiveKernel()


TRACERS = {
    "fentry": lambda live, settings, wanted: fentry.load_tracer(live, settings, wanted, fargate=lambda: True),
    "kprobe": kprobe.load_tracer,
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("fentry", marks=pytest.mark.requires("btf", "fentry")),
        pytest.param("kprobe", marks=pytest.mark.thorough),
    ],
)
def load(request, live, settings):
    """Loads a tracer, of either kind; settings of both sorts by name."""

    def loaded(**changed):
        core.reset()
        bpf = {name: changed.pop(name) for name in list(changed) if name.startswith("enable_")}
        return TRACERS[request.param](live, dataclasses.replace(settings, **bpf), TracerSettings(**changed))

    return loaded


@pytest.fixture(scope="module")
def tracer(load):
    """A tracer with all that it can do."""
    with load() as tracer:
        yield tracer


@pytest.fixture(autouse=True)
def _fresh_loader():
    core.reset()
    yield
    core.reset()


def in_kernel():
    """The ids of all programs, maps and links, and this process's descriptors of them."""
    lib = ctypes.CDLL(abi.SONAME, use_errno=True)
    found = set()
    for kind in ("prog", "map", "link"):
        step = getattr(lib, f"bpf_{kind}_get_next_id")
        step.argtypes = [ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32)]
        following = ctypes.c_uint32(0)
        while step(following.value, ctypes.byref(following)) == 0:
            found.add((kind, following.value))
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = str(fd.readlink())
        except OSError:  # the one that reads the directory
            continue
        if "bpf" in target or "perf_event" in target:
            found.add((target, fd.name))
    return found


@contextmanager
def nothing_stays():
    """The kernel frees programs and maps some time after their last user has gone: wait for it, not for long."""
    before = in_kernel()
    yield
    end = time.monotonic() + 60
    while (left := in_kernel() - before) and time.monotonic() < end:
        time.sleep(0.02)
    assert not left, "left behind in the kernel"


@pytest.fixture(scope="session")
def loaded():
    """``loaded()`` is what is in the kernel now: see ``in_kernel``."""
    return in_kernel


@pytest.fixture(scope="session")
def left_behind():
    """``with left_behind():`` holds that what was loaded in it has gone at its end."""
    return nothing_stays


@pytest.fixture(autouse=True)
def _nothing_left(request):
    # Not as an argument: by that, each test here would take the fixture, and run on simulated kernels.
    kernel = request.getfixturevalue("kernel")
    if kernel.simulated:
        before = kernel.api.objects
        yield
        assert kernel.api.objects == before, "left behind in the kernel"
        return
    with nothing_stays():
        yield
