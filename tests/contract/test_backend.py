"""What every backend must do; a new one is a line in ``BACKENDS`` and nothing else here.

``host`` is the twin of all of them: the same agent in a process beside us, over a pair of sockets, without a machine.
"""

import hashlib
import platform
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from machines import ROWS, SMALL, backend, gone, guest, kernel_of, output, wait_for

from kmt import backends
from kmt.deadline import Deadline
from kmt.errors import ConfigError, VmLostError, VmPanickedError, VmTimedOutError
from kmt.guest.wire import VERSION, Kind
from kmt.run.link import Link
from kmt.run.tree import Tree, write_tar

pytestmark = pytest.mark.host_only

BACKENDS = {"qemu": {"own kernel"}, "host": set(), "ssh": set(), "vagrant": {"own kernel"}}
"""What each can do that not all can. ``own kernel``: its guests can crash, and ours goes on."""
MARKS = {"vagrant": pytest.mark.vagrant}
MEGABYTES = 10


@pytest.fixture
def name(request):
    """A backend that can be launched; the machine over SSH is made here."""
    if request.param == "ssh":
        ROWS["ssh"] = request.getfixturevalue("sshd").row()
    return request.param


def pytest_generate_tests(metafunc):
    """Every backend, or those that can do what the test's marker asks for."""
    if "name" in metafunc.fixturenames:
        asked = {word for marker in metafunc.definition.iter_markers("needs") for word in marker.args}
        able = [pytest.param(n, marks=MARKS.get(n, ())) for n, able in BACKENDS.items() if asked <= able]
        metafunc.parametrize("name", able, indirect=True)


def test_the_registry_knows_exactly_these():
    # What is simulated is no machine: ``test_simulated.py`` says what it keeps to.
    assert set(backends.names()) == {*BACKENDS, "simulated"}


def test_the_first_frame_says_hello(name, tmp_path):
    made = backend(name)
    kernel = kernel_of(made)
    made.prepare(kernel, SMALL)
    deadline = Deadline(60 * made.deadline_factor)
    with made.launch(kernel, SMALL, tmp_path, deadline) as vm:
        link = Link(vm, deadline, factor=made.deadline_factor, cancel=threading.Event())
        hello = link.hello()
        assert hello["version"] == VERSION
        assert hello["release"] == kernel.release
        assert (kernel.release != platform.release()) == ("own kernel" in BACKENDS[name])
        assert vm.death() is None
        wait_for(lambda: vm.phase == "ready")
        assert vm.accelerator in ("kvm", "tcg", "none", "simulated")


def test_ten_megabytes_cross_both_ways_unharmed(name, tmp_path):
    # Every byte value, and no period that a lost or repeated chunk could hide in.
    data = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(MEGABYTES * 32768))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "data").write_bytes(data)
    there = str(tmp_path / "there")
    with guest(tmp_path, name=name) as (_, link):
        link.send_tar(there, partial(write_tar, Tree(tmp_path / "here", ("data",), ())))
        back, status = output(link, "cat", f"{there}/data")
        # And as artefacts, by the agent itself.
        output(link, "sh", "-c", f"cp {there}/data ${{KMT_ARTIFACTS:-/run/kmt/artifacts}}/")
        (file,), left = link.artifacts(tmp_path / "came")
    assert (status, left) == (0, [])
    assert file.read_bytes() == data
    assert len(back) == len(data)
    assert back == data


def test_a_hundred_megabytes_of_output_lose_nothing(name, tmp_path):
    line, count = b"0123456789abcde\n", 6_250_000
    wanted, seen = hashlib.sha256(), hashlib.sha256()
    for _ in range(100):
        wanted.update(line * (count // 100))
    with guest(tmp_path, name=name) as (_, link):
        *_, end = (
            frame if frame.kind is Kind.EXIT else seen.update(frame.raw[1:])
            for frame in link.start(["sh", "-c", f"yes 0123456789abcde | head -n {count}"])
        )
    assert end.body["status"] == 0
    assert seen.digest() == wanted.digest()


def test_input_of_every_byte_and_its_end_reach_a_command(name, tmp_path):
    sent = bytes(range(256)) * 4096
    with guest(tmp_path, name=name) as (_, link):
        frames = link.start(["sha256sum"])
        for start in range(0, len(sent), 60_000):
            link.send(Kind.INPUT, raw=sent[start : start + 60_000])
        link.send(Kind.INPUT)
        *said, end = frames
    assert end.body["status"] == 0
    assert b"".join(frame.raw[1:] for frame in said).split()[0].decode() == hashlib.sha256(sent).hexdigest()


def test_both_outputs_and_every_kind_of_end_come_back(name, tmp_path):
    with guest(tmp_path, name=name) as (_, link):
        said = {1: b"", 2: b""}
        for frame in link.start(["sh", "-c", "echo out; echo err >&2; exit 3"]):
            if frame.kind is Kind.EXIT:
                assert frame.body["status"] == 3
            else:
                said[frame.raw[0]] += frame.raw[1:]
        assert said == {1: b"out\n", 2: b"err\n"}
        assert output(link, "sh", "-c", "kill -9 $$")[1] == -signal.SIGKILL
        assert output(link, "no-such-command")[1] == 127


def test_a_command_that_is_cancelled_ends_with_all_that_it_started(name, tmp_path):
    with guest(tmp_path, name=name) as (_, link):
        frames = link.start(["sh", "-c", "sleep 1000 & echo $!; wait"])
        sleeper = int(next(frames).raw[1:])
        link.send(Kind.CANCEL)
        assert [frame.body["status"] for frame in frames] == [-signal.SIGKILL]
        wait_for(lambda: output(link, "sh", "-c", f"grep -vq ') Z' /proc/{sleeper}/stat")[1] != 0)


@pytest.mark.needs("own kernel")
def test_a_panic_is_told_from_a_loss(name, tmp_path):
    with guest(tmp_path, name=name) as (vm, link), pytest.raises(VmPanickedError, match="sysrq"):
        output(link, "sh", "-c", "echo c > /proc/sysrq-trigger")
    assert vm.phase in ("panic", "oops")


def test_who_has_no_kernel_to_spare_says_that_none_is_untouched(name):
    assert (backend(name).pristine is not None) == ("own kernel" in BACKENDS[name])


def test_an_agent_that_hangs_is_given_up(name, tmp_path):
    with guest(tmp_path, name=name) as (_, link):
        link._silence = 5.0  # its heart beats every two
        link.send(Kind.EXEC, {"argv": ["sh", "-c", "kill -STOP $PPID"], "cwd": "/", "env": {}})
        with pytest.raises(VmTimedOutError, match="silent for 5 s"):
            link.receive(Kind.DONE)


def test_after_a_loss_there_is_another(name, tmp_path):
    with guest(tmp_path, name=name) as (first, _):
        psutil.Process(first.pid).kill()
        wait_for(first.death)
    with guest(tmp_path, name=name) as (second, link):
        assert output(link, "echo", "again") == (b"again\n", 0)
    assert first.console != second.console


OWNER = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}]
from machines import ROWS, guest, output
from kmt.matrix import Row
from pathlib import PosixPath
ROWS["ssh"] = {row!r}
with guest(Path(sys.argv[1]), name={name!r}) as (vm, link):
    agent = output(link, "sh", "-c", "echo $PPID")[0].decode().strip()
    print(vm.pid, agent, flush=True)
    for frame in link.start(["sh", "-c", "sleep 1000"]): pass
"""


def test_nothing_outlives_an_owner_that_is_killed(name, tmp_path):
    text = OWNER.format(tests=str(Path(__file__).parents[1]), row=ROWS.get("ssh"), name=name)
    with subprocess.Popen([sys.executable, "-c", text, tmp_path], stdout=subprocess.PIPE, text=True) as owner:
        machine, agent = map(int, owner.stdout.readline().split())
        # An agent in a machine of its own has a number that means something else here.
        pids = [machine] if "own kernel" in BACKENDS[name] else [machine, agent]
        assert not any(gone(pid) for pid in pids)
        owner.kill()
    wait_for(lambda: all(gone(pid) for pid in pids), seconds=15)


def test_what_it_prints_is_in_the_console_log(name, tmp_path):
    with guest(tmp_path, name=name) as (vm, link):
        # 1 is the agent's own standard output: the machine's console.
        said, status = output(link, "sh", "-c", "echo spoken-$((6*7)) > /proc/$PPID/fd/1")
        assert (said, status) == (b"", 0)
        wait_for(lambda: b"spoken-42" in vm.console.read_bytes())
    assert vm.console.parent == tmp_path


def test_leaving_stops_everything(name, tmp_path):
    made = backend(name)
    with guest(tmp_path, name=name) as (vm, link):
        link.send(Kind.EXEC, {"argv": ["sleep", "1000"], "cwd": "/", "env": {}})
        machine = psutil.Process(vm.pid)
        # A machine keeps its processes inside itself; where there is none they are this machine's.
        wait_for(lambda: machine.children() or not made.shares_files)
        family = [vm.pid, *(child.pid for child in machine.children(recursive=True))]
        begin = time.monotonic()
    assert time.monotonic() - begin < 5
    assert vm.channel.fileno() == -1
    wait_for(lambda: all(gone(pid) for pid in family), seconds=5)
    assert isinstance(vm.death(), VmLostError)


def test_a_goodbye_ends_the_machine(name, tmp_path):
    with guest(tmp_path, name=name) as (vm, link):
        link.goodbye()
        death = wait_for(vm.death, seconds=30)
        assert isinstance(death, VmLostError)
        assert vm.phase == "ended"


def test_a_machine_that_is_killed_is_noticed(name, tmp_path):
    with guest(tmp_path, name=name) as (vm, link):
        psutil.Process(vm.pid).kill()
        with pytest.raises(VmLostError, match=r"SIGKILL|signal 9"):
            link.receive(Kind.DONE)


def test_two_at_once_do_not_meet(name, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    with guest(one, name=name) as (first, link), guest(other, name=name) as (second, other_link):
        assert first.pid != second.pid
        assert output(link, "sh", "-c", "echo one") == (b"one\n", 0)
        assert output(other_link, "sh", "-c", "echo other") == (b"other\n", 0)
        assert first.console != second.console


def test_guests_of_one_directory_keep_all_logs(name, tmp_path):
    with guest(tmp_path, name=name) as (first, _):
        pass
    with guest(tmp_path, name=name) as (second, _):
        pass
    assert first.console.is_file()
    assert second.console.is_file()
    assert first.console != second.console


def test_the_command_line_is_words_and_starts_nothing(name, tmp_path):
    made = backend(name)
    words = made.command_line(kernel_of(made), SMALL, tmp_path)
    assert words
    assert all(isinstance(word, str) for word in words)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_backend_names_the_known_ones():
    with pytest.raises(
        ConfigError,
        match=r"no backend 'qemo' \(did you mean 'qemu'\? known: qemu, host, ssh, vagrant, simulated, auto\)",
    ):
        backends.get("qemo", config=None)
