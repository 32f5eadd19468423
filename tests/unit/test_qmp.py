"""QEMU's monitor against a scripted other end: answers, events, refusals, silence, nonsense."""

import json
import os
import socket
import threading

import pytest

from kmt.backends.qmp import KEPT, Monitor, MonitorError
from kmt.deadline import Deadline

GREETING = {"QMP": {"version": {}}}
OK = {"return": {}}


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Monitor(ours, Deadline(5)), theirs


def say(theirs, *lines):
    theirs.sendall(b"".join(json.dumps(line).encode() + b"\r\n" for line in lines))


def heard(theirs):
    return [json.loads(line) for line in theirs.recv(65536).splitlines()]


def test_a_command_is_greeted_once_and_gives_its_answer(ends):
    monitor, theirs = ends
    say(theirs, GREETING, OK, {"return": {"status": "running"}}, {"return": [1]})
    assert monitor("query-status") == {"status": "running"}
    assert monitor("x", a=1) == [1]
    assert heard(theirs) == [
        {"execute": "qmp_capabilities"},
        {"execute": "query-status"},
        {"execute": "x", "arguments": {"a": 1}},
    ]


def test_events_between_answers_are_kept(ends):
    monitor, theirs = ends
    say(theirs, GREETING, {"event": "STOP"}, OK, {"event": "RESUME", "n": 1}, OK, {"event": "STOP", "n": 2})
    monitor("x")
    assert monitor.wait_for("RESUME")["n"] == 1
    assert monitor.wait_for("STOP")["n"] == 2


def test_events_that_nobody_wants_do_not_pile_up(ends):
    monitor, theirs = ends
    say(theirs, GREETING, OK, *({"event": "E", "n": n} for n in range(KEPT * 3)), OK)
    monitor("x")
    assert len(monitor._events) == KEPT


def test_a_refusal_is_said(ends):
    monitor, theirs = ends
    say(theirs, GREETING, OK, {"error": {"class": "GenericError", "desc": "no such thing"}})
    with pytest.raises(MonitorError, match="QEMU refused x: no such thing"):
        monitor("x")


def test_one_that_closes(ends):
    monitor, theirs = ends
    say(theirs, GREETING)
    theirs.close()
    with pytest.raises(MonitorError, match="monitor is gone"):
        monitor("x")


def test_one_that_is_silent(ends):
    monitor, _ = ends
    monitor.deadline = Deadline(0.05)
    with pytest.raises(MonitorError, match="did not answer in time"):
        monitor("x")


@pytest.mark.parametrize(("line", "what"), [(b"hello\n", "does not speak JSON"), (b"[1]\n", "sent no object")])
def test_nonsense(ends, line, what):
    monitor, theirs = ends
    theirs.sendall(line)
    with pytest.raises(MonitorError, match=what):
        monitor("x")


def test_a_descriptor_travels(ends, tmp_path):
    monitor, theirs = ends
    say(theirs, GREETING, OK, OK, OK)
    monitor("x")
    (tmp_path / "file").write_text("content")
    with (tmp_path / "file").open() as file:
        monitor.pass_fd("name", file.fileno())
    data, descriptors, *_ = socket.recv_fds(theirs, 65536, 4)
    while b"getfd" not in data:
        more, found, *_ = socket.recv_fds(theirs, 65536, 4)
        data, descriptors = data + more, [*descriptors, *found]
    assert os.read(descriptors[0], 100) == b"content"
    os.close(descriptors[0])


def test_a_line_in_pieces(ends):
    monitor, theirs = ends

    def slowly():
        for byte in b'{"QMP": 1}\r\n{"return": 1}\r\n{"return": 2}\r\n':
            theirs.send(bytes([byte]))

    threading.Thread(target=slowly).start()
    assert monitor("x") == 2
