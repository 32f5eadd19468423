"""Putting the tracers into a kernel: what fits it, what is refused, what stays after a failure, which of both it is."""

import dataclasses
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from waiting import wait_for

from fixtures.workloads import tcp, udp
from harness.ebpf import core, kprobes, release
from harness.ebpf.btf import ResultCode
from harness.ebpf.fallback import Stage
from harness.ebpf.kprobes import KprobeEvent
from harness.ebpf.libbpf import BpfObject
from harness.errors import AssetError, BpfError, NotSupportedError, SettingsError, SignatureError
from harness.kernel_api import Feature, LoadOptions
from harness.tracer import kprobe, probes
from harness.tracer.fentry import load_tracer
from harness.tracer.kprobes import PLACES
from harness.tracer.select import new_tracer
from harness.tracer.settings import TracerSettings

pytestmark = pytest.mark.thorough

TRAMPOLINE = pytest.mark.requires("btf", "fentry")


@TRAMPOLINE
def test_a_wrong_signature_is_refused_before_loading(kernel, bpf_dir):
    """The kernel would load one with too few arguments, and it would read garbage."""
    image = (bpf_dir / "co-re/tracer-fentry.o").read_bytes()
    actual = kernel.api.signatures(probes.functions())
    changed = [hook for hook in probes.HOOKS if len({probe.program for probe in hook}) > 1]
    wrong = [probe for hook in changed for probe in hook if actual[probe.function] != probe.signature]
    assert len(wrong) == 4, "three hooks' functions changed over time: of seven variants three fit"
    for probe in wrong:
        options = LoadOptions(
            programs=[probe.program],
            map_edits=TracerSettings(max_tracked_connections=1).map_edits(),
            signatures={probe.program: (probe.function, probe.signature)},
        )
        with pytest.raises(SignatureError, match=probe.function):
            kernel.api.load("tracer-fentry", image, options)


@TRAMPOLINE
def test_a_program_without_a_signature_is_refused(kernel, bpf_dir):
    image = (bpf_dir / "co-re/tracer-fentry.o").read_bytes()
    other = {"tcp_close": ("tcp_connect", kernel.api.signatures(["tcp_connect"])["tcp_connect"])}
    for signatures in ({}, other):
        with pytest.raises(SettingsError, match="no signature of tcp_close was given"):
            kernel.api.load("tracer-fentry", image, LoadOptions(programs=["tcp_close"], signatures=signatures))


@TRAMPOLINE
def test_the_result_code_is_stored(live, settings):
    with load_tracer(live, settings, fargate=lambda: True):
        pass
    assert core.result_codes()["tracer-fentry"] is ResultCode.DEFAULT_BTF


@TRAMPOLINE
def test_nothing_stays_when_attaching_fails(live, settings, monkeypatch):
    """The half that was attached is taken off again; the fixture of this directory looks."""
    attach = BpfObject.attach

    def failing(self, program):
        if program == "tcp_close":
            raise OSError("no more")
        attach(self, program)

    monkeypatch.setattr(BpfObject, "attach", failing)
    with pytest.raises(OSError, match="no more"):
        load_tracer(live, settings, fargate=lambda: True)
    assert core.result_codes()["tracer-fentry"] is ResultCode.LOADER_ERROR


@TRAMPOLINE
def test_the_kernel_says_what_it_has(kernel):
    assert kernel.api.probe(Feature.BTF) is True
    assert kernel.api.probe(Feature.FENTRY) is True


def traced():
    """Kernel functions that programs are attached to."""
    lines = Path("/sys/kernel/tracing/enabled_functions").read_text().splitlines()
    return {line.split()[0] for line in lines} & probes.functions()


@TRAMPOLINE
def test_who_does_not_wait_leaves_programs_that_do_nothing(live, settings, loaded, monkeypatch, caplog):
    """The kernel takes them off by itself, while the next tracer comes and sees what is its own. Where it cannot be
    left to the kernel they are off when ``stop`` returns."""
    before, some = loaded(), TracerSettings(collect_udp_v4=False, collect_udp_v6=False)
    with load_tracer(live, settings, some, fargate=lambda: True) as ended:
        tcp.exchange(3, 4)
        with caplog.at_level("DEBUG", "harness.ebpf.release"):
            ended.stop(wait=False)
        assert not caplog.text, "the kernel has them"
        tcp.exchange(5, 6)
        assert sizes(ended.closed(0)) == [(3, 4), (4, 3)]
        assert ended.counters().tcp_closed == 2
    its_own = {item for item in loaded() - before if item[0] == "prog"}
    with load_tracer(live, settings, some, fargate=lambda: True) as following:
        tcp.exchange(7, 8)
        assert sizes(following.closed(0)) == [(7, 8), (8, 7)]
        wait_for(lambda: not its_own & loaded())
        assert "tcp_close" in traced()
        monkeypatch.setattr(release, "_file_system", refused)
        with caplog.at_level("DEBUG", "harness.ebpf.release"):
            following.stop(wait=False)
        assert traced() == set()
    assert "programs are taken off one by one: no right" in caplog.text


def sizes(conns):
    return sorted((conn.sent_bytes, conn.recv_bytes) for conn in conns if conn.pid == os.getpid())


def refused():
    raise PermissionError("no right")


def events_of_ours():
    """Kprobe events that this process has in tracefs."""
    return [line for line in Path("/sys/kernel/tracing/kprobe_events").read_text().splitlines() if ":harness_" in line]


def test_kprobe_events_go_with_their_tracer(live, settings):
    with kprobe.load_tracer(live, settings) as tracer:
        assert len(events_of_ours()) == len([p for p in tracer.programs if PLACES[p].function])
        assert [line for line in events_of_ours() if line.startswith("r512:") and line.endswith(" inet_csk_accept")]
        assert tracer.missed() == 0
    assert events_of_ours() == []


def test_kprobe_events_go_when_attaching_fails(live, settings, monkeypatch):
    def failing(self, program, descriptor):
        os.close(descriptor)  # it is the program's from then on
        raise BpfError(f"attaching {program}", 1)

    monkeypatch.setattr(BpfObject, "attach_event", failing)
    with pytest.raises(BpfError, match="attaching kprobe__tcp_connect"):
        kprobe.load_tracer(live, settings)
    assert events_of_ours() == []


def test_events_of_the_dead_are_swept(live, settings):
    dead = subprocess.Popen(["true"])
    dead.wait()
    table = Path("/sys/kernel/tracing/kprobe_events")
    KprobeEvent(table.parent, f"harness_{dead.pid}", "p_tcp_close_0")._write(
        f"p:harness_{dead.pid}/p_tcp_close_0 tcp_close", "probing"
    )
    assert f"harness_{dead.pid}/" in table.read_text()
    with kprobe.load_tracer(live, settings):
        assert not any(f"harness_{dead.pid}/" in line for line in events_of_ours())


def test_a_function_that_cannot_be_probed_is_named():
    with pytest.raises(BpfError, match=r"probing no_such_function: (ENOENT|EINVAL)"):
        KprobeEvent.make("no_such_function", at_end=False, max_active=1)


def test_without_tracefs_it_says_so(live, settings, tmp_path):
    with pytest.raises(NotSupportedError, match=r"has no kprobe_events .*mount tracefs"):
        kprobes.KprobeEvent.make("tcp_close", at_end=False, max_active=1, tracing=tmp_path)


def test_return_probes_that_are_too_few_are_counted():
    """With one instance, a sleeping receive hides those after it; the kernel says how many."""
    event = KprobeEvent.make("tcp_recvmsg", at_end=True, max_active=1)
    descriptor = event.open()
    try:
        sleeper, other = tcp.connected()
        with sleeper, other:
            sleeper.settimeout(None)  # else it waits in poll
            thread = threading.Thread(target=sleeper.recv, args=(1,))
            thread.start()
            while "tcp_recvmsg" not in Path(f"/proc/self/task/{thread.native_id}/stack").read_text():
                time.sleep(0.001)
            before = event.missed()
            for number in range(3):
                tcp.exchange(1, 0, number=number + 1)
            assert event.missed() - before >= 3
            other.send(b"x")
            thread.join()
    finally:
        os.close(descriptor)
        event.remove()


@TRAMPOLINE
def test_on_fargate_it_is_the_fentry_tracer(live, settings):
    with new_tracer(live, settings, fargate=lambda: True) as tracer:
        assert tracer.kind == "fentry"


def test_elsewhere_it_is_the_kprobe_tracer(live, settings, record_property):
    with new_tracer(live, settings, fargate=lambda: False) as tracer:
        assert tracer.kind == "kprobe"
        tcp.exchange(3, 4)
        assert {(c.sent_bytes, c.recv_bytes) for c in tracer.closed(0)} == {(3, 4), (4, 3)}
        record_property("kmt.tracer", str(tracer))


def test_no_other_error_leads_to_the_kprobe_tracer(live, settings, tmp_path):
    (tmp_path / "co-re").mkdir()
    with pytest.raises(AssetError, match=r"error reading tracer-fentry\.o"):
        new_tracer(live, dataclasses.replace(settings, bpf_dir=tmp_path), fargate=lambda: True)


ONLY = {
    Stage.CORE: {"allow_runtime_compiled_fallback": False, "allow_prebuilt_fallback": False},
    Stage.RUNTIME: {"enable_co_re": False, "enable_runtime_compiler": True, "allow_prebuilt_fallback": False},
    Stage.PREBUILT: {"enable_co_re": False},
}


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(Stage.CORE, marks=pytest.mark.requires("btf")),
        pytest.param(Stage.RUNTIME, marks=pytest.mark.requires("headers")),
        Stage.PREBUILT,
    ],
    ids=lambda stage: stage.name.lower(),
)
def test_every_build_of_the_kprobe_tracer(live, settings, stage):
    """One source, three builds: each hears of the same."""
    with kprobe.load_tracer(live, dataclasses.replace(settings, **ONLY[stage])) as tracer:
        assert tracer.stage is stage
        done = tcp.exchange(70_000, 5, peek=True, target="::1")
        conns = [conn for conn in tracer.closed(0) if conn.pid == os.getpid()]
        assert {(c.tuple.source, c.sport, c.sent_bytes, c.recv_bytes) for c in conns} == {
            (*done.client, 70_000, 5),
            (*done.server, 5, 70_000),
        }
        with udp.bound(socket.AF_INET, "127.0.0.1") as client, udp.bound(socket.AF_INET, "127.0.0.1") as server:
            udp.send(client, udp.name(server), [4, 0])
            udp.receive(server, [4, 0], peek=True)
        flows = [conn for conn in tracer.closed(0) if conn.pid == os.getpid()]
        assert sorted((c.sent_bytes, c.sent_packets, c.recv_bytes, c.recv_packets) for c in flows) == [
            (0, 0, 4, 2),
            (4, 2, 0, 0),
        ]
        assert tracer.missed() == 0
