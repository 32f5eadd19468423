"""Both sources of process events, and the monitor on them, with real processes on a real kernel."""

import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
from held_source import SmallThenLarge
from waiting import wait_for

from fixtures.workloads.namespaces import NEWNET, within
from harness.ebpf.settings import BpfSettings
from harness.processes import procfs
from harness.processes.connector import Connector
from harness.processes.errors import OverrunError, ProcessSourceError
from harness.processes.events import Kind, ProcessEvent
from harness.processes.monitor import ProcessMonitor, shared_monitor
from harness.processes.source import opener
from harness.processes.tracepoints import Tracepoints
from harness.telemetry import Registry

SOURCES = ["connector", "tracepoints", pytest.param("tracepoints, perf", marks=pytest.mark.thorough)]


def open_source(name, live, bpf_dir, small=False):
    if name == "connector":
        return Connector(buffer=2048) if small else Connector()
    settings = BpfSettings(bpf_dir, enable_ringbuffers="perf" not in name)
    return Tracepoints(live, settings, **({"pages": 1, "ring_bytes": 4096} if small else {}))


@pytest.fixture(params=SOURCES)
def source(request, live, bpf_dir):
    opened = open_source(request.param, live, bpf_dir)
    yield opened
    opened.close()
    opened.close()


def run(*argv):
    """Run a program to its end; its pid."""
    process = subprocess.Popen(argv)
    assert process.wait() == 0
    return process.pid


def heard(source, until):
    """Events up to the one that the test waits for."""
    events = []
    wait_for(lambda: events.extend(source.read(0.05)) or until in events)
    return events


def test_a_process_begins_and_ends(source):
    pids = [run("true") for _ in range(20)]
    events = heard(source, ProcessEvent(Kind.EXIT, pids[-1]))
    for pid in pids:
        mine = [event.kind for event in events if event.pid == pid]
        assert mine == [Kind.EXEC, Kind.EXIT]


NEITHER = """
import os, threading
tids = []
for _ in range(3):
    thread = threading.Thread(target=lambda: tids.append(threading.get_native_id()))
    thread.start()
    thread.join()
try:
    os.execv("/none", ["none"])
except OSError:
    pass
child = os.fork()
if child:
    os.waitpid(child, 0)
    print(child, *tids)
"""


def test_what_is_neither_begins_nor_ends_is_not_told(source):
    """Forks, ends of threads, programs that cannot be run; a process once, however many threads it has."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", NEITHER], stdout=subprocess.PIPE, text=True) as process:
        child, *threads = map(int, process.stdout.readline().split())
    told = Counter(heard(source, ProcessEvent(Kind.EXIT, process.pid)))
    assert len(threads) == 3
    for pid, exec, exit in [(process.pid, 1, 1), (child, 0, 1), *((tid, 0, 0) for tid in threads)]:
        assert (told[ProcessEvent(Kind.EXEC, pid)], told[ProcessEvent(Kind.EXIT, pid)]) == (exec, exit)


def test_nothing_is_read_after_close(source):
    source.close()
    with pytest.raises(Exception, match=r"closed|descriptor"):
        source.read(0)


@pytest.mark.parametrize("name", SOURCES)
def test_an_overrun_is_told(name, live, bpf_dir):
    """What fits comes first; then the source says that it has lost something, again and again."""
    source = open_source(name, live, bpf_dir, small=True)
    try:
        subprocess.run(["sh", "-c", "for i in $(seq 400); do (:); done"], check=True)
        for _ in range(3):
            with pytest.raises(OverrunError, match=source.name):
                heard(source, until=None)
    finally:
        source.close()


def test_where_there_is_no_connector(live, bpf_dir):
    """In another network namespace: a typed error, and the tracepoints stand in."""

    def elsewhere():
        with pytest.raises(ProcessSourceError, match=r"process connector.*root"):
            Connector()
        return opener(live, BpfSettings(bpf_dir))()

    source = within(NEWNET, elsewhere)
    source.close()
    assert source.name == "process tracepoints"


def test_neither_is_to_be_had(live, tmp_path, monkeypatch):
    monkeypatch.setattr("harness.processes.source.Connector", lambda: (_ for _ in ()).throw(ProcessSourceError("no")))
    with pytest.raises(ProcessSourceError, match=r"no way .* no; .*asset"):
        opener(live, BpfSettings(tmp_path))()


@pytest.fixture
def monitor(live, bpf_dir):
    monitor = ProcessMonitor(opener(live, BpfSettings(bpf_dir)), metrics=Registry()).acquire()
    yield monitor
    while monitor.users:
        monitor.stop()


def test_the_end_is_told_when_nothing_of_the_process_is_left(monitor):
    """A main thread that leaves others behind is not the end; and at the end no file can be seen through it."""
    ended = []
    monitor.subscribe_exit(lambda pid: ended.append((pid, procfs.is_over("/proc", pid))))
    monitor.start()
    script = (
        "import ctypes, os, sys, threading\n"
        "def rest():\n os.write(1, b'x'); os.read(0, 1); os._exit(0)\n"
        "threading.Thread(target=rest).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.read(1) == b"x"
        wait_for(lambda: procfs.status("/proc", process.pid).state == "Z")
        run("true")
        assert process.pid not in dict(ended)
        process.stdin.write(b"x")
        process.stdin.flush()
        wait_for(lambda: process.pid in dict(ended))
        # Not waited for yet: it is a zombie.
    assert set(dict(ended).values()) == {True}


def test_a_killed_process_and_an_orphan_end_too(monitor):
    ended = []
    monitor.subscribe_exit(ended.append)
    monitor.start()
    process = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE)
    orphan = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    wait_for(lambda: process.pid in ended)
    process.wait()
    os.kill(orphan, signal.SIGKILL)
    wait_for(lambda: orphan in ended)
    process.stdout.close()


def test_running_processes_are_told_at_the_start(monitor):
    told = []
    monitor.subscribe_exec(told.append)
    with subprocess.Popen(["sleep", "1000"]) as process:
        monitor.start()
        wait_for(lambda: process.pid in told)
        process.kill()
    assert os.getpid() in told


def test_a_socket_that_ran_over_is_told_and_opened_again(caplog):
    """The real one, too small for what happens while nobody reads it: the kernel drops, and says so (ENOBUFS)."""
    source = SmallThenLarge()
    monitor = ProcessMonitor(source, metrics=Registry()).acquire()
    ended = []
    monitor.subscribe_exit(ended.append)
    try:
        monitor.start()
        run("sh", "-c", "for i in $(seq 30); do (:); done")
        unheard = run("true")
        assert (monitor.restarts.value, monitor.losses, ended) == (0, 0, [])
        source.gate.set()
        wait_for(lambda: monitor.losses == 2)
        assert "process connector: at least 1 events were lost; it is opened again" in caplog.text
        later = [run("true") for _ in range(3)]
        wait_for(lambda: set(later) <= set(ended))
        assert unheard not in ended
        assert (source.opened, monitor.restarts.value, monitor.reinit_failed.value) == (2, 1, 0)
    finally:
        source.gate.set()
        monitor.stop()


def test_the_shared_one_is_one(live, bpf_dir):
    settings = BpfSettings(bpf_dir)
    one, two = shared_monitor(live, settings), shared_monitor(live, settings)
    try:
        assert one is two
        assert one.users == 2
        one.start()
        assert one.source == "process connector"
        one.stop()
        assert one.source == "process connector"
    finally:
        two.stop()
    assert (one.source, one.users) == ("", 0)
