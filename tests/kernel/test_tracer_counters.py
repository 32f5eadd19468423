"""What the tracers' programs count, each counter provoked; and the debug objects, which say what they do."""

import os
import socket
import struct
from pathlib import Path

import pytest

from fixtures.workloads import tcp, udp
from harness.ebpf.settings import BpfSettings
from harness.tracer import kprobe
from harness.tracer.fentry import load_tracer
from harness.watcher import program

pytestmark = pytest.mark.thorough

BUSY = struct.pack("<Q", 1)
IDLE = bytes(8)


@pytest.fixture
def counted(tracer):
    """What has been counted since the test began, without the zeros."""
    tracer.closed(0)
    before = tracer.counters()

    def since():
        now = tracer.counters()
        return {name: now[n] - before[n] for n, name in enumerate(now._fields) if now[n] != before[n]}

    return since


def mine(conns):
    return [conn for conn in conns if conn.pid == os.getpid()]


def test_ends_are_counted(tracer, counted):
    tcp.exchange(1, 2)
    assert counted() == {"tcp_closed": 2}
    with udp.bound(socket.AF_INET, "127.0.0.1") as client, udp.bound(socket.AF_INET, "127.0.0.1") as server:
        udp.send(client, udp.name(server), [5])
        udp.receive(server, [5])
    assert counted() == {"tcp_closed": 2, "udp_closed": 2}
    udp.bound(socket.AF_INET, "127.0.0.1").close()
    assert counted() == {"tcp_closed": 2, "udp_closed": 2, "udp_dropped_conns": 1}


def test_who_finds_the_batch_in_use_is_told_alone(tracer, counted):
    """As a program does that has interrupted another one at work on the CPU's batch."""
    cpus = tracer._kernel.cpus
    tracer._maps["conn_close_busy"].put(bytes(4), BUSY * cpus)
    try:
        tcp.exchange(1, 2)
        with udp.bound(socket.AF_INET6, "::1") as client, udp.bound(socket.AF_INET6, "::1") as server:
            udp.send(client, udp.name(server), [5])
            udp.receive(server, [5])
    finally:
        tracer._maps["conn_close_busy"].put(bytes(4), IDLE * cpus)
    assert len(mine(tracer.closed(0))) == 4
    assert counted() == {"tcp_closed": 2, "unbatched_tcp_close": 2, "udp_closed": 2, "unbatched_udp_close": 2}


def test_a_connect_that_is_not_remembered_counts_from_its_first_use(tracer, counted):
    ongoing = tracer._maps["tcp_ongoing_connect_pid"]
    keys = [struct.pack("<Q", n) for n in range(1, 1025)]
    for key in keys:
        ongoing.put(key, bytes(8))
    refused = tracer.errors.maps().get("tcp_ongoing_connect_pid", {}).get("E2BIG", 0)
    try:
        tcp.exchange(10, 20)
    finally:
        for key in keys:
            ongoing.delete(key)
    assert counted() == {"connects_lost": 1, "tcp_closed": 2}
    assert tracer.errors.maps()["tcp_ongoing_connect_pid"] == {"E2BIG": refused + 1}
    assert sorted((c.sent_bytes, c.recv_bytes) for c in mine(tracer.closed(0))) == [(10, 20), (20, 10)]


DEBUG = {
    "fentry": pytest.param(
        lambda live, settings: load_tracer(live, settings, fargate=lambda: True),
        "closed",
        marks=pytest.mark.requires("btf", "fentry"),
    ),
    "kprobe": pytest.param(kprobe.load_tracer, "closed"),
    "libraries": pytest.param(program.start, "opened a library"),
}


@pytest.mark.parametrize("debug", [True, False], ids=["debug", "quiet"])
@pytest.mark.parametrize(("load", "word"), DEBUG.values(), ids=DEBUG)
def test_debug_objects_say_what_they_do(live, bpf_dir, tmp_path, load, word, debug):
    path = tmp_path / "libssl.so"
    path.touch()
    with Path("/sys/kernel/tracing/trace_pipe").open("rb", buffering=0) as pipe:
        os.set_blocking(pipe.fileno(), False)
        said(pipe)
        with load(live, BpfSettings(bpf_dir, bpf_debug=debug)):
            tcp.exchange(1, 2)
            path.open().close()
            lines = [line for line in said(pipe) if f"process {os.getpid()} " in line and word in line]
    assert bool(lines) is debug


def said(pipe):
    """What trace_pipe has by now."""
    text = b""
    while piece := pipe.read(1 << 16):
        text += piece
    return text.decode().splitlines()
