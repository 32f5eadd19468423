"""A machine that is to take its state and says nothing more: the time it has is its caller's, not the guest's."""

import json
import socket
import threading

import pytest

from kmt.backends.qmp import Monitor, MonitorError
from kmt.deadline import Deadline
from kmt.snapshot.freezing import thaw


def answering(theirs, *events):
    """Answer every command as QEMU does, and tell ``events`` behind the first answer."""
    theirs.sendall(b'{"QMP": {}}\r\n')
    with theirs.makefile("rb") as commands:
        for _ in commands:
            theirs.sendall(b'{"return": {}}\r\n' + b"".join(json.dumps(e).encode() + b"\r\n" for e in events))


@pytest.fixture
def ends():
    """A monitor whose guest has a while; its other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Monitor(ours, Deadline(10)), theirs
        ours.shutdown(socket.SHUT_RDWR)


def other_end(theirs, *events):
    threading.Thread(target=answering, args=(theirs, *events), daemon=True).start()


def test_a_machine_that_never_resumes_is_waited_for_as_long_as_was_said(ends):
    monitor, theirs = ends
    other_end(theirs)
    with pytest.raises(MonitorError, match="did not answer in time"):
        thaw(monitor, b"state", Deadline(0.2))
    assert not monitor.deadline.passed(), "it took the guest's time"


def test_one_that_resumes_has_the_guests_time_again(ends):
    monitor, theirs = ends
    other_end(theirs, {"event": "RESUME"})
    guests = monitor.deadline
    thaw(monitor, b"state", Deadline(60))
    assert monitor.deadline is guests
