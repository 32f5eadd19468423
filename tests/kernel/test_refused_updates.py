"""What maps and helpers of every program refused, by name, where it is provoked. Of TLS: ``test_tls.py``."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from fixtures.workloads import libraries
from harness.ebpf import core, error_telemetry, event_program
from harness.ebpf.event_program import EventModule
from harness.ebpf.settings import BpfSettings
from harness.processes.tracepoints import PROGRAMS as PROCESS_PROGRAMS
from harness.telemetry import DEFAULT
from harness.watcher import program

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def opens(live, bpf_dir):
    """Loads the shared-libraries programs with room for so many events."""

    def start(pages, ring_bytes, **settings):
        core.reset()
        names = program.hooks(False, os.uname().machine)
        module = EventModule(program.MODULE, names, "shared_libraries", pages, ring_bytes)
        return event_program.start(live, BpfSettings(bpf_dir, **settings), module)

    return start


def metric(kind, module, **tags):
    """The value of a counter as whoever scrapes it sees it."""
    wanted = {f"{key}:{value}" for key, value in {"module": module, **tags}.items()}
    found = [m.value for m in DEFAULT.metrics() if m.name == f"ebpf.{kind}.errors" and set(m.tags) == wanted]
    return sum(found)


@pytest.mark.parametrize("ringbuf", [pytest.param(True, marks=pytest.mark.requires("ringbuf")), False])
def test_events_without_room(opens, tmp_path, ringbuf):
    helper, error = ("ringbuf_output", "EAGAIN") if ringbuf else ("perf_event_output", "ENOSPC")
    before = metric("helpers", program.MODULE, helper=helper, error=error)
    path = os.fsencode(tmp_path / "libssl.so")
    Path(os.fsdecode(path)).touch()
    with opens(1, 4096, enable_ringbuffers=ringbuf) as running:
        assert running.errors.helpers().get(helper, {}) == {}
        for _ in range(80):
            libraries.open_(path, "openat")
        emitted, lost, _ = (int.from_bytes(running.counted()[n : n + 8], "little") for n in (0, 8, 16))
        assert emitted + lost == 80
        assert running.errors.helpers()[helper] == {error: lost}
        assert running.errors.maps() == {}
        assert metric("helpers", program.MODULE, helper=helper, error=error) - before == lost > 0
    # What was counted stays when the programs have gone.
    assert metric("helpers", program.MODULE, helper=helper, error=error) - before == lost


def test_a_path_that_cannot_be_read(opens):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.openat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
    with opens(1, 4096) as running:
        for _ in range(3):
            assert libc.openat(-100, None, os.O_RDONLY) == -1
        assert running.errors.helpers() == {"probe_read_user_str": {"EFAULT": 3}}


def test_processes_without_room(live, bpf_dir):
    module = EventModule("processes", PROCESS_PROGRAMS, "process_events", 1, 4096)
    with event_program.start(live, BpfSettings(bpf_dir, enable_ringbuffers=False), module) as running:
        subprocess.run(["sh", "-c", "for i in $(seq 400); do (:); done"], check=True)
        lost = int.from_bytes(running.counted()[8:16], "little")
        assert running.errors.helpers() == {"perf_event_output": {"ENOSPC": lost}}
        assert lost > 0


def test_an_object_counts_for_every_map_that_it_updates(bpf_dir):
    """By the object's own constants: a map whose updates are not counted would have key 0, and nobody would know."""
    counted = {name: error_telemetry.counted((bpf_dir / f"co-re/{name}.o").read_bytes()) for name in MAPS}
    assert {name: set(maps) for name, maps in counted.items()} == MAPS


SHARED = {
    *("conn_stats", "tcp_stats", "tcp_retransmits", "tracked_sockets", "port_bindings", "udp_port_bindings"),
    *("tcp_listeners", "tcp_ongoing_connect_pid", "udp_send_skb_args", "udp_sendpage_args", "conn_close_batch"),
}
MAPS = {
    "tracer-fentry": SHARED,
    "tracer": SHARED | {"call_args"},
    "shared-libraries": {"open_at_args"},
    "tls": {"tls_calls", "tls_traffic"},
    "processes": set(),
}
