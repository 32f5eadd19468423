"""What every backend must do; a new one is a line in ``BACKENDS`` and nothing else here."""

import hashlib
import threading
import time
from functools import partial

import psutil
import pytest
from machines import SMALL, backend, gone, guest, kernel, output, wait_for

from kmt import backends
from kmt.deadline import Deadline
from kmt.errors import ConfigError, VmLostError
from kmt.guest.wire import VERSION, Kind
from kmt.run.link import Link
from kmt.run.tree import Tree, write_tar

pytestmark = pytest.mark.host_only

BACKENDS = ("qemu", "host")
MEGABYTES = 10


@pytest.fixture(params=BACKENDS)
def name(request):
    return request.param


def test_the_registry_knows_exactly_these():
    assert set(backends.names()) == set(BACKENDS)


def test_the_first_frame_says_hello(name, tmp_path):
    made = backend(name)
    made.prepare(kernel(), SMALL)
    deadline = Deadline(60 * made.deadline_factor)
    with made.launch(kernel(), SMALL, tmp_path, deadline) as vm:
        link = Link(vm, deadline, factor=made.deadline_factor, cancel=threading.Event())
        hello = link.hello()
        assert hello["version"] == VERSION
        if not made.shares_files:
            assert hello["release"] == kernel().release
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
    assert status == 0
    assert len(back) == len(data)
    assert back == data


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
    words = backend(name).command_line(kernel(), SMALL, tmp_path)
    assert words
    assert all(isinstance(word, str) for word in words)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_backend_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"no backend 'qemo' \(did you mean 'qemu'\? known: qemu, host\)"):
        backends.get("qemo", config=None)
