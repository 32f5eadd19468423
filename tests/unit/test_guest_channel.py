"""The guest's end of the channel, where threads of one session wait for different frames."""

import base64
import socket
import threading
import time

import pytest

from kmt.guest.runner import Channel
from kmt.guest.wire import Decoder, Kind, pack


@pytest.fixture
def ends():
    """The agent's end, and the channel of its child."""
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    theirs.settimeout(30)
    with ours, theirs:
        yield ours, Channel(theirs)


def examples(*values):
    return pack(Kind.EXAMPLES, {"values": [base64.b64encode(value).decode() for value in values]})


def started(call, *words):
    """A thread that makes a call; what came of it."""
    came = []
    thread = threading.Thread(target=lambda: came.append(call(*words)), daemon=True)
    thread.start()
    return thread, came


@pytest.mark.parametrize("together", [True, False], ids=["in one read", "in two"])
def test_a_thread_that_waits_for_one_kind_takes_no_frame_of_another(ends, together):
    ours, channel = ends
    asking, answer = started(channel.ask, {"call": "fetch"})
    assert next(Decoder().feed(ours.recv(65536))).kind is Kind.DATABASE
    time.sleep(0.05)  # so that it reads for both
    main, heard = started(channel.wait, Kind.HEARD)
    time.sleep(0.05)
    frames = [pack(Kind.HEARD), examples(b"one")]
    for data in [b"".join(frames)] if together else frames:
        ours.sendall(data)
    for thread in (main, asking):
        thread.join(10)
    assert [frame.kind for frame in heard] == [Kind.HEARD]
    assert answer == [[b"one"]]


def test_frames_that_came_too_soon_are_there_in_their_order(ends):
    ours, channel = ends
    ours.sendall(examples(b"1") + pack(Kind.RUN, {"ids": ["a"]}) + pack(Kind.HEARD) + pack(Kind.RUN, {"ids": ["b"]}))
    assert channel.wait(Kind.HEARD).kind is Kind.HEARD
    assert [channel.wait(Kind.RUN).body["ids"] for _ in range(2)] == [["a"], ["b"]]
    assert channel.wait(Kind.EXAMPLES).body["values"]


def test_the_answer_to_a_question_that_was_given_up_is_not_the_next_ones(ends, monkeypatch):
    ours, channel = ends

    def ended(kind):
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(channel, "wait", ended)
        with pytest.raises(TimeoutError):
            channel.ask({"call": "fetch"})
    ours.sendall(examples(b"late") + examples(b"mine"))
    assert channel.ask({"call": "fetch"}) == [b"mine"]


def test_all_that_wait_hear_that_the_agent_is_gone(ends):
    ours, channel = ends
    said = []

    def wait(kind):
        with pytest.raises(ConnectionError):
            channel.wait(kind)
        said.append(kind)

    waiting = [started(wait, kind)[0] for kind in (Kind.HEARD, Kind.EXAMPLES, Kind.RUN)]
    ours.shutdown(socket.SHUT_WR)
    for thread in waiting:
        thread.join(10)
    assert sorted(said) == [Kind.EXAMPLES, Kind.RUN, Kind.HEARD]


def test_frames_of_many_threads_go_whole(ends):
    ours, channel = ends
    size, each = 300_000, 5
    senders = [
        started(lambda: [channel.send(Kind.REPORT, {"report": "x" * size}) for _ in range(each)])[0] for _ in range(4)
    ]
    decoder, frames = Decoder(), []
    while len(frames) < 4 * each:
        frames += decoder.feed(ours.recv(1 << 20))
    for thread in senders:
        thread.join(10)
    assert {len(frame.body["report"]) for frame in frames} == {size}
