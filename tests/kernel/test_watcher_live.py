"""The whole watcher on a real kernel: its program, the process monitor, real processes and real libraries."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from held_source import SmallThenLarge
from waiting import wait_for

from fixtures.workloads import libraries
from fixtures.workloads.namespaces import as_nobody
from fixtures.workloads.processes import between_open_and_map, holding, loading, running, static_program
from harness.ebpf import event_program
from harness.ebpf.events import LibraryCounters
from harness.ebpf.fallback import Stage
from harness.ebpf.settings import BpfSettings
from harness.processes.monitor import ProcessMonitor
from harness.processes.source import opener
from harness.telemetry import Registry
from harness.watcher import program
from harness.watcher.errors import NoRuleMatchedError, PidNotRegisteredError
from harness.watcher.identity import PathIdentifier
from harness.watcher.watcher import Watcher

pytestmark = pytest.mark.thorough

PROCESSES = int(os.environ.get("KMT_PROCESSES", "0"))
"""How many in a row (default: 10,000, and a few hundred where the processor is emulated; `kmt.soak` says 10,000)."""
TLS = r"lib(ssl|crypto|gnutls)[^/]*\.so"


class Log:
    """Callbacks that write down what they were given."""

    def __init__(self):
        self.activated, self.deactivated = [], []

    def rule(self, pattern):
        return pattern, self.activate, self.deactivate

    def activate(self, file):
        self.activated.append(file.id)
        # Whatever it is known by, an uprobe could open it there now (unless its process has ended meanwhile).
        assert PathIdentifier.of_file(file.host_path) == file.id

    def deactivate(self, file):
        self.deactivated.append(file.id)

    def epochs(self, path):
        """How often the file has been activated, and deactivated."""
        id = PathIdentifier.of_file(path)
        return self.activated.count(id), self.deactivated.count(id)


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def metrics():
    return Registry()


@pytest.fixture
def monitor(live, bpf_dir, metrics):
    return ProcessMonitor(opener(live, BpfSettings(bpf_dir)), metrics=metrics)


@pytest.fixture
def watcher_of(live, bpf_dir, monitor, metrics):
    """Makes a watcher of given rules, with a monitor and metrics of its own."""

    def make(*rules, **more):
        settings = more.pop("settings", BpfSettings(bpf_dir))
        return Watcher(live, settings, rules, **{"monitor": monitor, "metrics": metrics} | more)

    return make


@pytest.fixture
def watch(watcher_of, monitor):
    """The same, started; and what must hold of each after its end."""

    @contextmanager
    def make(*rules, **more):
        with watcher_of(*rules, **more) as watcher:
            yield watcher
        assert watcher.registry.traced() == []
        assert watcher.registry.in_flight == 0
        assert monitor.users == 0

    return make


@pytest.fixture
def room(tmp_path):
    """A directory for libraries; whoever else runs here holds others of the same names."""
    (tmp_path / "lib").mkdir()
    return tmp_path / "lib"


def traced(watcher):
    """What is registered: paths by the processes that hold them."""
    return {file.path: set(file.pids) for file in watcher.registry.traced()}


def pids(watcher, path):
    """Who holds the file that this names, under whatever name."""
    id = PathIdentifier.of_file(path)
    return next((set(file.pids) for file in watcher.registry.traced() if file.id == id), set())


def counted(metrics):
    return {metric.name.rpartition(".")[2]: metric.value for metric in metrics.metrics()}


def seen_or_left_out(watcher, metrics, number):
    """Every one of so many opens is handled, but for those that the kernel says it left out (7.3 does, in bursts)."""
    wait_for(lambda: counted(metrics)["matches"] + watcher.program.counters().missed >= number, seconds=600)
    assert counted(metrics)["matches"] <= number


def test_libraries_of_running_processes_and_of_later_ones(watch, log, room, metrics):
    path = libraries.library(room, "libssl.so.3")
    with holding(path) as first, watch(log.rule(TLS)) as watcher:
        wait_for(lambda: pids(watcher, path) == {first.pid})
        with holding(path) as second:
            wait_for(lambda: pids(watcher, path) == {first.pid, second.pid})
        wait_for(lambda: pids(watcher, path) == {first.pid})
        first.kill()
        wait_for(lambda: log.epochs(path) == (1, 1))
    assert sorted(log.activated) == sorted(log.deactivated)
    assert counted(metrics)["lost"] == counted(metrics)["unread"] == 0


def test_its_own_opens_are_none_of_its_business(watch, log, room):
    path = libraries.library(room, "libssl.so.3")
    libraries.load(path)
    other = libraries.library(room, "libssl.so.4")
    with watch(log.rule(TLS)) as watcher:
        libraries.open_(os.fsencode(other))
        with holding(other) as process:
            wait_for(lambda: pids(watcher, other) == {process.pid})
        assert os.getpid() not in watcher.registry.registered_processes()
        assert pids(watcher, path) == set()


@pytest.mark.parametrize("delay", [0, 0.2])
def test_a_library_opened_at_any_moment_of_the_start_is_registered(watch, log, room, delay):
    paths = [libraries.library(room, f"libssl.so.{n}") for n in range(40)]
    with loading(*paths) as process:
        time.sleep(delay)
        with watch(log.rule(TLS)) as watcher:
            process.says("done")
            wait_for(lambda: all(pids(watcher, path) == {process.pid} for path in paths))


def test_a_library_opened_before_the_start_and_mapped_after_it_is_registered(watch, log, room):
    path = libraries.library(room, "libssl.so.3")
    with between_open_and_map(path) as process, watch(log.rule(TLS)) as watcher:
        process.go_on()
        process.says("done")
        wait_for(lambda: pids(watcher, path) == {process.pid})


def test_processes_that_end_during_the_start_leave_nothing(watch, log, room):
    path = libraries.library(room, "libssl.so.3")
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            subprocess.run(["cat", path, path], stdout=subprocess.DEVNULL, check=True)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(2):
            # No sweep here: it would mend what this looks for.
            with watch(log.rule(TLS), sweep=10_000) as watcher:
                wait_for(lambda: watcher.program.counters().emitted > 3)
    finally:
        stop.set()
        thread.join()
    with watch(log.rule(TLS), sweep=10_000) as watcher:
        subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)
        wait_for(lambda: not pids(watcher, path) and watcher.registry.in_flight == 0)
    begun, ended = log.epochs(path)
    assert begun == ended


@pytest.mark.real
def test_processes_in_a_row_leave_nothing_and_exact_counts(watch, log, room, metrics, kernel):
    """Each opens a library and ends at once. No sweep, so that every end has to be heard."""
    number = PROCESSES or (10_000 if kernel.accelerator != "tcg" else 300)
    path = libraries.library(room, "libssl.so.3")
    pattern = re.escape(f"{path}")
    with watch(log.rule(pattern), sweep=10_000) as watcher:
        before = counted(metrics)["exit"]
        script = 'n=0; while [ $n -lt "$1" ]; do (: < "$0"); n=$((n + 1)); done'
        subprocess.run(["sh", "-c", script, path, str(number)], check=True)
        seen_or_left_out(watcher, metrics, number)
        wait_for(lambda: counted(metrics)["exit"] - before >= number, seconds=600)
        wait_for(lambda: not watcher.registry.registered_processes() and watcher.registry.in_flight == 0)
        assert watcher.registry.traced() == []
    now = counted(metrics)
    assert now["lost"] == now["unread"] == now["unregister_failed_cb"] == now["hook_failed"] == 0
    assert now["process_exit_channel_is_full"] == now["restart"] == now["swept"] == 0
    begun, ended = log.epochs(path)
    assert now["registered"] == now["unregistered"] <= begun == ended
    assert (now["total_files"], now["total_pids"]) == (0, 0)


def test_an_end_that_nobody_heard_is_seen_by_the_sweep(watch, log, room, live, bpf_dir, metrics):
    class Deaf:
        name = "deaf"

        def read(self, seconds):
            time.sleep(min(seconds, 0.01))
            return []

        def close(self):
            pass

    path = libraries.library(room, "libssl.so.3")
    monitor = ProcessMonitor(Deaf, metrics=metrics)
    with watch(log.rule(TLS), monitor=monitor, sweep=0.2) as watcher:
        with holding(path) as process:
            wait_for(lambda: pids(watcher, path) == {process.pid})
        wait_for(lambda: log.epochs(path) == (1, 1))
        assert counted(metrics)["swept"] >= 1


def test_ends_that_a_full_socket_swallowed_are_looked_for(watch, log, room, metrics):
    """The kernel drops what finds no room: then the monitor loses, and the watcher looks who is still there."""
    path = libraries.library(room, "libssl.so.3")
    source = SmallThenLarge()
    monitor = ProcessMonitor(source, metrics=metrics)
    try:
        with watch(log.rule(TLS), monitor=monitor, sweep=10_000) as watcher:
            with holding(path) as stays:
                with holding(path) as ends:
                    wait_for(lambda: pids(watcher, path) == {stays.pid, ends.pid})
                    subprocess.run(["sh", "-c", "for i in $(seq 30); do (:); done"], check=True)
                assert pids(watcher, path) == {stays.pid, ends.pid}
                source.gate.set()
                wait_for(lambda: pids(watcher, path) == {stays.pid})
                wait_for(lambda: monitor.losses == 2)
            wait_for(lambda: log.epochs(path) == (1, 1))
            assert counted(metrics)["swept"] == counted(metrics)["restart"] == 1
    finally:
        source.gate.set()


def test_a_library_replaced_while_it_is_in_use(watch, log, room):
    """Two files of one name: each lives as long as its own users."""
    path = libraries.library(room, "libssl.so.3")
    old = PathIdentifier.of_file(path)
    with watch(log.rule(TLS)) as watcher, holding(path) as first:
        wait_for(lambda: pids(watcher, path) == {first.pid})
        libraries.library(room, "fresh").replace(path)
        assert PathIdentifier.of_file(path) != old
        with holding(path) as second:
            wait_for(lambda: pids(watcher, path) == {second.pid})
            assert {file.id: file.pids for file in watcher.registry.traced()}[old] == (first.pid,)
        wait_for(lambda: log.epochs(path) == (1, 1))
        assert log.deactivated.count(old) == 0
        first.kill()
        wait_for(lambda: log.deactivated.count(old) == 1)


def container(room, path):
    """Words that start a program in a mount namespace and chroot of its own, where ``path`` is /libssl.so.7 too."""
    inner = room / "container"
    (inner / "usr").mkdir(parents=True, exist_ok=True)
    (inner / "libssl.so.7").touch()
    needs = {"/usr", "/lib", "/lib64", "/bin", os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix)}
    binds = [f"mount --bind '{path}' '{inner}/libssl.so.7'"]
    for place in sorted(place for place in needs if Path(place).is_dir()):
        binds.append(f"mkdir -p '{inner}{place}' && mount --bind '{place}' '{inner}{place}'")
    script = " && ".join([*binds, f"exec chroot '{inner}' \"$@\""])
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


@pytest.mark.parametrize("when", ["before the start", "after it"])
def test_all_ways_to_a_file_meet_in_one_registration(watch, log, room, when):
    """Its path, a hard link, a symbolic link, a relative path, and a bind mount in a container's chroot."""
    path = libraries.library(room, "libssl.so.3")
    (room / "libssl.so.4").hardlink_to(path)
    (room / "libssl.so.5").symlink_to(path)
    relative = ["sh", "-c", f"cd '{room}' && exec \"$@\"", "sh"]
    ways = [
        ((path,), ()),
        ((room / "libssl.so.4",), ()),
        ((room / "libssl.so.5",), ()),
        (("./libssl.so.3",), relative),
        (("/libssl.so.7",), container(room, path)),
        (("/libssl.so.7",), ["unshare", "--pid", "--fork", "--kill-child", *container(room, path)]),
    ]
    with ExitStack() as stack:
        if when == "after it":
            watcher = stack.enter_context(watch(log.rule(TLS)))
        for paths, before in ways:
            stack.enter_context(holding(*paths, before=before))
        if when == "before the start":
            watcher = stack.enter_context(watch(log.rule(TLS)))
        wait_for(lambda: len(pids(watcher, path)) == len(ways))
        assert log.epochs(path) == (1, 0)
    assert log.epochs(path) == (1, 1)


def test_a_process_that_changes_its_root_after_it_has_loaded(watch, log, room):
    """A daemon that locks itself up: what it has mapped has no path in its root any more."""
    path = libraries.library(room, "libssl.so.3")
    (room / "empty").mkdir()
    script = (
        "import ctypes, os, sys; ctypes.CDLL(sys.argv[1]); os.chroot(sys.argv[2]); os.chdir('/')\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with running(sys.executable, "-I", "-S", "-c", script, path, room / "empty") as process:
        process.says("ready")
        with watch(log.rule(TLS)) as watcher:
            wait_for(lambda: pids(watcher, path) == {process.pid})


@pytest.mark.parametrize(
    ("program", "library"),
    [
        (["import ssl"], r"/libssl\.so\.3"),
        (["import ssl"], r"/libcrypto\.so\.3"),
        (["import ctypes; ctypes.CDLL('libgnutls.so.30')"], r"/libgnutls\.so\.30"),
    ],
    ids=["OpenSSL's libssl", "OpenSSL's libcrypto", "GnuTLS"],
)
def test_real_libraries(watch, log, program, library):
    script = f"{program[0]}\nprint('ready', flush=True)\nimport sys; sys.stdin.read()"
    with watch(log.rule(library)) as watcher, running(sys.executable, "-c", script) as process:
        process.says("ready")
        wait_for(lambda: process.pid in watcher.registry.registered_processes())
        assert all(re.search(library, path) for path in traced(watcher))


NSS = """
import ctypes, sys
nss = ctypes.CDLL("libnss3.so"), ctypes.CDLL("libssl3.so")
assert nss[0].NSS_NoDB_Init(None) == 0
digest = ctypes.create_string_buffer(32)
assert nss[0].PK11_HashBuf(191, digest, b"abc", 3) == 0
assert digest.raw.hex().startswith("ba7816bf")
print("ready", flush=True)
sys.stdin.read()
"""
"""A process that uses NSS: SHA-256 (SEC_OID_SHA256) by the module that the library loads by itself."""


def test_nss_is_none_of_the_programs_libraries_but_is_found_among_the_mapped(watch, log):
    """The kernel's filter knows libssl, libcrypto and libgnutls; a rule for another library holds for what it sees:
    processes that run at the start, and those that are attached."""
    used = {"libnss3.so", "libssl3.so", "libnspr4.so", "libsoftokn3.so"}

    def found(watcher, pid):
        return {path.rpartition("/")[2] for path, those in traced(watcher).items() if pid in those}

    with running(sys.executable, "-c", NSS) as first:
        first.says("ready")
        with watch(log.rule(r"/lib(nss3|ssl3|nspr4|softokn3)\.so")) as watcher:
            wait_for(lambda: found(watcher, first.pid) == used)
            with running(sys.executable, "-c", NSS) as second:
                second.says("ready")
                assert found(watcher, second.pid) == set()
                watcher.attach_pid(second.pid)
                assert found(watcher, second.pid) == used
            wait_for(lambda: not found(watcher, second.pid))
            assert found(watcher, first.pid) == used


@pytest.mark.parametrize(
    ("client", "library"),
    [(["curl", "-s"], r"/libssl\.so\.3"), (["wget", "-q"], r"/libgnutls\.so\.30")],
    ids=["curl and OpenSSL", "wget and GnuTLS"],
)
def test_a_real_client_and_a_static_program(watch, log, room, client, library):
    with socket.create_server(("127.0.0.1", 0)) as server, watch(log.rule(library)) as watcher:
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        with running(*client, url) as process, running(static_program(room / "static")) as static:
            wait_for(lambda: process.pid in watcher.registry.registered_processes())
            assert all(re.search(library, path) for path in traced(watcher))
            with pytest.raises(NoRuleMatchedError):
                watcher.attach_pid(static.pid)
            assert static.pid not in watcher.registry.registered_processes()
            process.kill()
            wait_for(lambda: process.pid not in watcher.registry.registered_processes())


def test_where_no_program_can_be_loaded_running_processes_and_ends_are_seen(watch, log, room, tmp_path, caplog):
    path = libraries.library(room, "libssl.so.3")
    with holding(path) as process, watch(log.rule(TLS), settings=BpfSettings(tmp_path)) as watcher:
        assert watcher.program is None
        assert "opens are not seen" in caplog.text
        wait_for(lambda: pids(watcher, path) == {process.pid})
        with holding(path) as second:
            watcher.attach_pid(second.pid)
            assert pids(watcher, path) == {process.pid, second.pid}
        process.kill()
        wait_for(lambda: log.epochs(path) == (1, 1))


def test_rules_are_replaced_while_it_runs(watch, log, room):
    one, two = libraries.library(room, "libssl.so.1"), libraries.library(room, "libcrypto.so.2")
    other = Log()
    with watch(log.rule(r"/libssl\.so")) as watcher, holding(one, two) as process:
        wait_for(lambda: pids(watcher, one) == {process.pid})
        watcher.set_rules([log.rule(r"/libssl\.so"), other.rule(r"/libcrypto\.so")])
        wait_for(lambda: other.epochs(two) == (1, 0))
        assert log.epochs(one) == (1, 0)
        watcher.set_rules([other.rule(TLS)])
        wait_for(lambda: other.epochs(one) == (1, 0))
        assert (log.epochs(one), other.epochs(two)) == ((1, 1), (1, 0))
        with holding(one) as second:
            wait_for(lambda: pids(watcher, one) == {process.pid, second.pid})


@pytest.mark.real
def test_a_burst_is_counted_whole(watch, log, room, metrics, kernel):
    """Thousands of opens by another process; a hundred thousand are a benchmark."""
    path = libraries.library(room, "libssl.so.3")
    number = 2000 if kernel.accelerator == "tcg" else 20_000
    script = "import os, sys\nfor _ in range(int(sys.argv[2])): os.close(os.open(sys.argv[1], os.O_RDONLY))"
    with watch(log.rule(re.escape(str(path)))) as watcher:
        subprocess.run([sys.executable, "-I", "-S", "-c", script, path, str(number)], check=True)
        seen_or_left_out(watcher, metrics, number)
        assert watcher.program.counters().lost == 0
        wait_for(lambda: not pids(watcher, path))


@pytest.mark.parametrize("ringbuf", [pytest.param(True, marks=pytest.mark.requires("ringbuf")), False])
def test_what_the_kernel_lost_is_counted_and_looked_for(watch, log, room, metrics, monkeypatch, bpf_dir, ringbuf):
    monkeypatch.setattr(program, "RING_BYTES", 4096)
    monkeypatch.setattr(program, "PERF_PAGES", 1)
    gate = threading.Event()
    read = event_program.EventProgram.records
    monkeypatch.setattr(
        event_program.EventProgram, "records", lambda self, seconds=0.1: gate.wait(60) and read(self, seconds)
    )
    path = libraries.library(room, "libssl.so.3")
    noise = libraries.library(room, "libssl.so.4")
    settings = BpfSettings(bpf_dir, enable_ringbuffers=ringbuf)
    try:
        with watch(log.rule(TLS), settings=settings) as watcher:
            for _ in range(80):
                libraries.open_(os.fsencode(noise))
            with holding(path) as process:
                wait_for(lambda: pids(watcher, path) == {process.pid})
                gate.set()
                assert counted(metrics)["lost"] > 0
    finally:
        gate.set()


def test_a_path_with_a_newline(watch, log, room):
    path = libraries.library(room, "libssl.so.\n3")
    with holding(path) as first, watch(log.rule(TLS)) as watcher:
        wait_for(lambda: pids(watcher, path) == {first.pid})
        with holding(path) as second:
            wait_for(lambda: pids(watcher, path) == {first.pid, second.pid})


def test_a_process_that_may_not_be_looked_at(watch, log, room, metrics):
    path = libraries.library(room, "libssl.so.3")
    with watch(log.rule(TLS), opens=Silence) as watcher, holding(path) as process:
        before = counted(metrics)["unreadable"]
        as_nobody(lambda: watcher.set_rules([log.rule(TLS)]))
        assert counted(metrics)["unreadable"] > before
        assert pids(watcher, path) == set()
        with pytest.raises(PermissionError):
            as_nobody(lambda: watcher.attach_pid(process.pid))
        watcher.attach_pid(process.pid)
        assert pids(watcher, path) == {process.pid}


class Silence:
    """A stream of no opens."""

    def take(self, seconds):
        time.sleep(seconds)
        return []

    def decode(self, record):
        return None

    def counters(self):
        return LibraryCounters(0, 0, 0)

    def close(self):
        pass


def test_numbers_of_no_process_and_of_another_namespace(watch, log, room):
    """A process is known by its number here, wherever it lives; the number that it has there is somebody else's."""
    path = libraries.library(room, "libssl.so.3")
    elsewhere = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with watch(log.rule(TLS)) as watcher, holding(path, before=elsewhere) as unshare:
        wait_for(lambda: pids(watcher, path))
        (pid,) = pids(watcher, path)
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(rf"NSpid:\t{pid}\t1\n", status)
        assert pid != unshare.pid
        watcher.detach_pid(pid)
        watcher.attach_pid(pid)
        for number in (0, -1, 1 << 31, 1 << 70):
            with pytest.raises(FileNotFoundError):
                watcher.attach_pid(number)
            with pytest.raises(PidNotRegisteredError):
                watcher.detach_pid(number)


def test_a_callback_that_hangs_holds_up_neither_others_nor_the_end(watch, watcher_of, log, room, monkeypatch):
    monkeypatch.setattr("harness.watcher.watcher._PATIENCE", 0.2)
    hangs, go_on, left = threading.Event(), threading.Event(), []

    def hang(file):
        hangs.set()
        go_on.wait(60)

    slow, quick = libraries.library(room, "libssl.so.1"), libraries.library(room, "libcrypto.so.1")
    watcher = watcher_of((re.escape(str(slow)), hang, left.append), log.rule(re.escape(str(quick))))
    with holding(slow, quick) as process:
        watcher.start()
        assert hangs.wait(60)
        wait_for(lambda: pids(watcher, quick) == {process.pid})
        watcher.stop()
        assert log.epochs(quick) == (1, 1)
        assert left == []
        go_on.set()
        wait_for(lambda: len(left) == 1 and watcher.registry.in_flight == 0)


def test_a_callback_may_end_the_watcher(watcher_of, monitor, room):
    path = libraries.library(room, "libssl.so.3")
    ended, left = threading.Event(), []

    def end(file):
        watcher.stop()
        ended.set()

    watcher = watcher_of((re.escape(str(path)), end, left.append))
    with holding(path):
        watcher.start()
        assert ended.wait(60)
    wait_for(lambda: len(left) == 1 and watcher.registry.in_flight == 0)
    assert monitor.users == 0


def test_stop_without_start_and_start_after_stop(watcher_of, monitor):
    watcher = watcher_of()
    watcher.stop()
    watcher.stop()
    assert monitor.users == 0
    with pytest.raises(Exception, match="stopped"):
        watcher.start()


def test_a_signal_does_not_disturb_the_load(live, bpf_dir):
    """The verifier gives up when one is pending, as SIGCHLD is while another thread starts processes."""
    stop = threading.Event()

    def signals():
        # Not for this thread: a signal from outside goes to one that takes it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        while not stop.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.0001)

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    thread = threading.Thread(target=signals)
    thread.start()
    try:
        for _ in range(2):
            with program.start(live, BpfSettings(bpf_dir)) as opens:
                assert opens.stage is Stage.CORE
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
