"""Threads for callbacks, where the system has no more of them."""

import threading

import pytest

from harness.workers import Workers


@pytest.fixture
def scarce(monkeypatch):
    """Whether threads are to be had now."""
    start, there = threading.Thread.start, {"threads": False}

    def may_start(thread):
        if not there["threads"]:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", may_start)
    return there


def test_without_a_thread_a_job_is_refused_and_nothing_waits_for_it(scarce):
    workers, done = Workers("callbacks", 2), []
    assert not workers.submit(lambda: done.append(1))
    scarce["threads"] = True
    assert workers.submit(lambda: done.append(2))
    assert workers.stop(60)
    assert done == [2], "what was refused is the giver's to run"


def test_the_threads_that_there_are_take_what_another_was_wanted_for(scarce):
    workers, done, go = Workers("callbacks", 2), [], threading.Event()
    scarce["threads"] = True
    assert workers.submit(lambda: (go.wait(60), done.append(1)))
    scarce["threads"] = False
    assert workers.submit(lambda: done.append(2))
    go.set()
    assert workers.stop(60)
    assert done == [1, 2]
