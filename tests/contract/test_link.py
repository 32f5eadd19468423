"""The link and the real agent, over the backend that needs no VM; what VMs add is in test_backend.py."""

import os
import select
import signal
import sys
import tarfile
import threading
import time
from functools import partial
from pathlib import Path

import pexpect
import pytest

from kmt import backends, config
from kmt.backends.base import Machine
from kmt.deadline import Deadline
from kmt.errors import AgentError, VmLostError, VmTimedOutError
from kmt.guest.port import HEARTBEAT_SECONDS
from kmt.guest.wire import Kind
from kmt.matrix import Row
from kmt.run.link import CancelledError, Link
from kmt.run.shared import fetch
from kmt.run.tree import survey, write_tar

pytestmark = pytest.mark.host_only


@pytest.fixture
def guest(tmp_path):
    """A link to an agent that has said hello, the VM behind it, and the event that cancels."""
    settings = config.load(tmp_path)
    backend = backends.get("host", config=settings)
    kernel = fetch(Row("host"), backend, settings, lambda *_: None)
    room = tmp_path / "run"
    room.mkdir()
    cancel = threading.Event()
    with backend.launch(kernel, Machine(), room, Deadline(60)) as vm:
        link = Link(vm, Deadline(60), factor=1.0, cancel=cancel)
        assert link.hello()["release"] == os.uname().release
        yield link, vm, cancel


def output(frames):
    """Standard output, standard error and the exit status of a command."""
    said = {1: b"", 2: b""}
    for frame in frames:
        if frame.kind is Kind.EXIT:
            return said[1], said[2], frame.body["status"]
        said[frame.raw[0]] += frame.raw[1:]
    raise AssertionError("no EXIT")


def test_a_commands_output_and_status_come_back(guest):
    link, *_ = guest
    assert output(link.start(["sh", "-c", "echo out; echo err >&2; exit 3"])) == (b"out\n", b"err\n", 3)
    assert output(link.start(["sh", "-c", "kill -9 $$"]))[2] == -9
    out, err, status = output(link.start(["no-such-command"]))
    assert (out, status) == (b"", 127)
    assert b"no-such-command" in err


def test_environment_and_directory(guest, tmp_path):
    link, *_ = guest
    assert output(link.start(["sh", "-c", "echo $X; pwd"], cwd=str(tmp_path), env={"X": "y z"}))[0] == (
        f"y z\n{tmp_path}\n".encode()
    )


def test_a_terminal_is_one_and_has_a_size(guest):
    link, *_ = guest
    out, _, status = output(link.start(["sh", "-c", "test -t 0 && stty size"], tty=True, size=(30, 100)))
    assert (out.strip(), status) == (b"30 100", 0)


def test_input_reaches_the_command_until_its_end(guest):
    link, *_ = guest
    frames = link.start(["cat"])
    link.send(Kind.INPUT, raw=b"")
    assert output(frames) == (b"", b"", 0)
    frames = link.start(["sh", "-c", "read x; echo got $x"])
    sent = threading.Timer(0.2, lambda: link.send(Kind.INPUT, raw=b"word\n"))
    sent.start()
    assert output(frames)[0] == b"got word\n"


def test_an_echo_of_much_more_than_a_pipe_holds_does_not_deadlock(guest):
    link, *_ = guest
    sent = os.urandom(3_000_000)
    frames = link.start(["cat"])
    for start in range(0, len(sent), 60_000):
        link.send(Kind.INPUT, raw=sent[start : start + 60_000])
    link.send(Kind.INPUT, raw=b"")
    assert output(frames) == (sent, b"", 0)


def test_a_terminal_takes_input_and_echoes(guest):
    link, *_ = guest
    frames = link.start(["sh", "-c", "read x; echo got $x"], tty=True)
    link.send(Kind.INPUT, raw=b"word\n")
    assert output(frames)[0].replace(b"\r", b"").endswith(b"got word\n")


def test_a_flood_of_output_loses_nothing(guest):
    link, *_ = guest
    out, _, _ = output(link.start(["sh", "-c", "yes 0123456789abcde | head -c 8000000"]))
    assert len(out) == 8_000_000
    assert out == b"0123456789abcde\n" * 500_000


def test_cancelled_commands_leave_no_process(guest):
    link, *_ = guest
    frames = link.start(["sh", "-c", "sleep 1000 & echo $!; wait"])
    pid = int(next(frames).raw[1:])
    link.send(Kind.CANCEL)
    assert output(frames)[2] == -signal.SIGKILL
    end = Deadline(5)
    while _alive(pid) and not end.passed():
        time.sleep(0.01)
    assert not _alive(pid)


def _alive(pid):
    try:
        with Path(f"/proc/{pid}/stat").open() as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_daemon_that_holds_the_pipes_does_not_hold_the_request(guest):
    link, *_ = guest
    out, _, status = output(link.start(["sh", "-c", "setsid sleep 5 & echo on"]))
    assert (out, status) == (b"on\n", 0)


def test_a_tree_arrives_whole(guest, tmp_path):
    link, *_ = guest
    source, dest = tmp_path / "from here", tmp_path / "to there"
    (source / "a b").mkdir(parents=True)
    (source / "a b" / "big").write_bytes(os.urandom(5 << 20))
    (source / "link").symlink_to("a b")
    assert link.send_tar(str(dest), partial(write_tar, survey(source, 10))) == 2
    assert (dest / "a b" / "big").read_bytes() == (source / "a b" / "big").read_bytes()
    assert (dest / "link").readlink() == Path("a b")


def test_a_tree_is_the_agents_whoever_has_it_here(guest, tmp_path):
    link, *_ = guest
    member = tarfile.TarInfo("of nobody")
    member.uid, member.gid, member.uname, member.gname = 1, 1, "nobody", "nogroup"

    def write(stream):
        with tarfile.open(fileobj=stream, mode="w|") as tar:
            tar.addfile(member)

    assert link.send_tar(str(tmp_path / "there"), write) == 1
    found = (tmp_path / "there" / "of nobody").stat()
    assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())


def test_a_tree_that_cannot_be_unpacked_is_an_error_and_the_link_goes_on(guest, tmp_path):
    link, *_ = guest
    (tmp_path / "file").touch()
    with pytest.raises(AgentError, match="could not do it"):
        link.send_tar(str(tmp_path / "file" / "below"), lambda stream: None)
    assert output(link.start(["true"]))[2] == 0


def test_artifacts_come_back(guest, tmp_path):
    link, vm, _ = guest
    room = vm.console.parent / "guest"
    (room / "deep").mkdir()
    (room / "deep" / "core.1").write_bytes(b"x" * 3_000_000)
    (found,), left = link.artifacts(tmp_path / "got")
    assert left == []
    assert found.relative_to(tmp_path / "got").as_posix() == "deep/core.1"
    assert found.stat().st_size == 3_000_000


def test_artifacts_cannot_leave_their_directory(guest, tmp_path, monkeypatch):
    link, vm, _ = guest
    room = vm.console.parent / "guest"
    (room / "link").symlink_to("/etc/passwd")
    (room / "fine").touch()
    before = tarfile.TarInfo.frombuf

    def hostile(buf, encoding, errors):
        member = before(buf, encoding, errors)
        if member.name.endswith("fine"):
            member.name = "../../escaped"
        return member

    monkeypatch.setattr(tarfile.TarInfo, "frombuf", staticmethod(hostile))
    files, left = link.artifacts(tmp_path / "a" / "b")
    assert files == []
    assert not (tmp_path / "escaped").exists()
    assert ["symbolic link" in words for words in sorted(left)] == [False, True]


def test_a_file_of_two_names_comes_back_twice(guest, tmp_path):
    link, vm, _ = guest
    room = vm.console.parent / "guest"
    (room / "deep").mkdir()
    (room / "deep" / "one").write_text("said once")
    (room / "two").hardlink_to(room / "deep" / "one")
    files, left = link.artifacts(tmp_path / "got")
    assert [(f.relative_to(tmp_path / "got").as_posix(), f.read_text()) for f in files] == [
        ("deep/one", "said once"),
        ("two", "said once"),
    ]
    assert left == []


def test_a_second_name_for_a_file_of_this_machine_is_not_taken(guest, tmp_path, monkeypatch):
    link, vm, _ = guest
    room = vm.console.parent / "guest"
    (room / "one").write_text("x")
    (room / "two").hardlink_to(room / "one")
    before = tarfile.TarInfo.frombuf
    (tmp_path / "secret").write_text("not yours")

    def hostile(buf, encoding, errors):
        member = before(buf, encoding, errors)
        if member.islnk():
            member.linkname = str(tmp_path / "secret")
        return member

    monkeypatch.setattr(tarfile.TarInfo, "frombuf", staticmethod(hostile))
    (file,), left = link.artifacts(tmp_path / "got")
    assert file.read_text() == "x"
    assert "stays in the guest" in left[0]


def test_an_agent_that_dies_is_lost(guest):
    link, vm, _ = guest
    os.kill(vm.pid, signal.SIGKILL)
    with pytest.raises(VmLostError, match="signal 9"):
        output(link.start(["sleep", "100"]))


def test_an_agent_that_falls_silent_hangs(guest):
    link, vm, _ = guest
    link._silence = 1.0
    os.kill(vm.pid, signal.SIGSTOP)
    with pytest.raises(VmTimedOutError, match="silent"):
        output(link.start(["true"]))


def test_heartbeats_keep_a_quiet_guest_alive(guest):
    link, *_ = guest
    link._silence = 2.5
    assert output(link.start(["sleep", "4"]))[2] == 0


def test_the_deadline_ends_what_takes_too_long(guest):
    link, *_ = guest
    link._deadline = Deadline(0.5)
    with pytest.raises(VmTimedOutError, match="--kernel-timeout"):
        output(link.start(["sleep", "100"]))


def test_cancel_ends_a_wait(guest):
    link, _, cancel = guest
    threading.Timer(0.3, cancel.set).start()
    with pytest.raises(CancelledError):
        output(link.start(["sleep", "100"]))


def test_a_request_that_no_guest_takes_is_answered(guest):
    link, *_ = guest
    link.send(Kind.REPORT, {})
    with pytest.raises(AgentError, match="does not take REPORT"):
        link.receive(Kind.DONE)


def paused(tmp_path, **more):
    """A PYTEST request for a project of three tests that waits after collecting."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "test_a.py").write_text(
        "import random\nprint('collecting', random.random())\n"
        "def test_one(): print(random.random())\ndef test_two(): pass\ndef test_three(): assert 0\n"
    )
    return {
        **{"root": str(project), "inifile": "", "files": ["test_a.py"], "ids": ["test_a.py::test_two"], "options": []},
        **{"env": {"KMT_ARTIFACTS": str(tmp_path), "KMT_KERNEL": "host"}, "kernel": {"name": "host"}},
        **{"accelerator": "none", "collect_only": False, "strict_skips": False, "pause": True, **more},
    }


def reports(link):
    """What a session that was told to go on reports: (id, outcome) of each call, then its status."""
    done = []
    while True:
        frame = link.receive(Kind.STARTED, Kind.REPORT, Kind.OUTPUT, Kind.DATABASE, Kind.EXIT)
        if frame.kind is Kind.EXIT:
            return done, frame.body["status"]
        if frame.kind is Kind.REPORT and frame.body["report"]["when"] == "call":
            done.append((frame.body["report"]["nodeid"], frame.body["report"]["outcome"]))


def test_a_paused_session_is_still_and_then_runs_what_it_is_told(guest, tmp_path):
    link, vm, _ = guest
    link.send(Kind.PYTEST, paused(tmp_path))
    collected = link.receive(Kind.COLLECTED)
    assert collected.body["paused"] is True
    assert [item["id"].rpartition("_")[2] for item in collected.body["items"]] == ["one", "two", "three"]
    # Twice the heartbeat: not a byte may be on its way when the machine is frozen.
    readable, _, _ = select.select([vm.channel], [], [], 2 * HEARTBEAT_SECONDS)
    assert not readable
    assert not link._frames
    link.send(Kind.RUN, {"ids": ["test_a.py::test_three", "test_a.py::test_one"]})
    assert reports(link) == ([("test_a.py::test_three", "failed"), ("test_a.py::test_one", "passed")], 1)
    assert output(link.start(["echo", "alive"])) == (b"alive\n", b"", 0)


def test_a_paused_session_can_be_cancelled(guest, tmp_path):
    link, *_ = guest
    link.send(Kind.PYTEST, paused(tmp_path))
    link.receive(Kind.COLLECTED)
    link.send(Kind.CANCEL)
    assert link.receive(Kind.EXIT).body["status"] == -signal.SIGKILL


def test_without_pause_nothing_waits(guest, tmp_path):
    link, *_ = guest
    link.send(Kind.PYTEST, paused(tmp_path, pause=False))
    assert link.receive(Kind.COLLECTED).body["paused"] is False
    assert reports(link) == ([("test_a.py::test_two", "passed")], 0)


ATTACH = """
import sys, threading
from pathlib import Path
from kmt import backends, config
from kmt.backends.base import Machine
from kmt.commands import terminal
from kmt.deadline import Deadline
from kmt.matrix import Row
from kmt.run.link import Link
from kmt.run.shared import fetch

room = Path(sys.argv[1])
settings = config.load(room)
backend = backends.get("host", config=settings)
kernel = fetch(Row("host"), backend, settings, lambda *_: None)
with backend.launch(kernel, Machine(), room, Deadline(60)) as vm:
    link = Link(vm, Deadline(60), factor=1.0, cancel=threading.Event())
    link.hello()
    status = terminal.attach(link, sys.argv[2:], cwd="/", env={})
print("it ended with", status, flush=True)
"""


@pytest.mark.parametrize(
    ("command", "typed", "status"),
    [("echo up; sleep 60", "\x1d", 0), ("echo up; exit 3", "", 3), ("echo up; kill -9 $$", "", 137)],
)
def test_leaving_a_command_on_a_terminal_is_no_failure_and_its_own_status_is_a_shells(tmp_path, command, typed, status):
    child = pexpect.spawn(sys.executable, ["-c", ATTACH, str(tmp_path), "sh", "-c", command], timeout=60)
    child.expect_exact("up")
    child.send(typed)
    child.expect(r"it ended with (-?\d+)")
    assert int(child.match[1]) == status
    child.close()
