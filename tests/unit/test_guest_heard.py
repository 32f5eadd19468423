"""A test may end the machine it runs on, so it begins only when all that was said before it is with the host."""

import os
import select
import socket
import threading

import pytest

from kmt.guest.children import relay, start_function
from kmt.guest.port import Port
from kmt.guest.reporter import GuestReporter
from kmt.guest.runner import Channel
from kmt.guest.wire import Decoder, Kind

REQUEST = {"ids": [], "collect_only": False, "accelerator": "tcg"}


@pytest.fixture
def host(monkeypatch):
    """The host's end of an agent's channel, and that agent's own."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setenv("KMT_CHANNEL_FD", str(theirs.fileno()))
        yield ours, Port()


def test_a_test_begins_when_the_host_has_what_was_said(host):
    ours, port = host
    began, tells = os.pipe()
    size = 1 << 20  # more than lies between two sockets

    def session(stream):
        channel = Channel(stream)
        channel.send(Kind.REPORT, {"report": "x" * size})
        GuestReporter(REQUEST, channel).pytest_runtest_logstart("a.py::test_ends_it")
        os.write(tells, b"!")
        return 0

    agent = threading.Thread(target=relay, args=(port, start_function(session)))
    agent.start()
    assert not select.select([began], [], [], 0.3)[0], "the report is still here"
    frames, decoder = [], Decoder()
    while Kind.EXIT not in [frame.kind for frame in frames]:
        frames += decoder.feed(ours.recv(65536))
    agent.join()
    assert os.read(began, 10) == b"!"
    os.close(began)
    os.close(tells)
    assert [frame.kind for frame in frames if frame.kind is not Kind.PING] == [Kind.REPORT, Kind.STARTED, Kind.EXIT]
    assert len(frames[0].body["report"]) == size
