"""The process monitor over a source that a test drives: users, queue, ends of processes, overruns."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proc_world import ProcWorld
from waiting import wait_for
from watcher_rig import KernelScript, Script

from harness.processes.errors import OverrunError, ProcessSourceError
from harness.processes.events import Kind
from harness.processes.monitor import ProcessMonitor
from harness.telemetry import Registry
from kmt.simulator.kernel import SimulatedKernel

pytestmark = pytest.mark.thorough


@pytest.fixture
def script(simulated: SimulatedKernel | None) -> Script:
    """By way of the simulated kernel's programs, where this runs on one."""
    return KernelScript(simulated) if simulated else Script()


@pytest.fixture
def world(simulated: SimulatedKernel | None) -> Iterator[ProcWorld]:
    with ProcWorld(simulated.proc_root if simulated else None) as world:
        world.end(world.own)  # nobody is to be told of it
        yield world


def monitor_of(script: Script, world: ProcWorld, **more: int) -> ProcessMonitor:
    return ProcessMonitor(script.open, proc_root=str(world.root), metrics=Registry(), **more)


doings = st.lists(st.sampled_from(["acquire", "start", "stop"]), max_size=30)


@settings(max_examples=30)
@given(doings)
def test_users_are_counted_and_the_last_stop_ends_it(words: list[str]) -> None:
    script, threads = Script(), set(threading.enumerate())
    with ProcWorld() as world:
        monitor = monitor_of(script, world)
        users, running, openings = 0, False, 0
        for word in words:
            if word == "acquire":
                assert monitor.acquire() is monitor
                users += 1
            elif word == "start":
                monitor.start()
                openings += not running
                running = True
            else:
                monitor.stop()
                users = max(0, users - 1)
                running = running and users > 0
            assert monitor.users == users
            assert (monitor.source == "script") is running
            assert script.opened == openings
            assert script.closed == openings - running
        for _ in range(users + 1):
            monitor.stop()
        assert (monitor.users, monitor.source, script.closed) == (0, "", script.opened)
    assert not [t for t in set(threading.enumerate()) - threads if t.name.startswith("process-")]


def test_subscribers_are_told_until_they_unsubscribe(script: Script, world: ProcWorld) -> None:
    monitor = monitor_of(script, world).acquire()
    began: list[int] = []
    ended: list[int] = []
    no_more = monitor.subscribe_exec(began.append)
    monitor.subscribe_exit(ended.append)
    monitor.start()
    script.exec(1, 2)
    script.exit(3)
    wait_for(lambda: sorted(began) == [1, 2] and ended == [3])
    no_more()
    no_more()
    script.exec(4)
    script.exit(5)
    wait_for(lambda: ended == [3, 5])
    monitor.stop()
    assert sorted(began) == [1, 2]
    assert (monitor.seen[Kind.EXEC].value, monitor.seen[Kind.EXIT].value, monitor.events.value) == (3, 2, 5)
    assert monitor.executed.value == 4
    # Subscriptions end with the last user.
    monitor.acquire().start()
    script.exit(6)
    wait_for(lambda: monitor.events.value == 6)
    monitor.stop()
    assert ended == [3, 5]


def test_running_processes_are_told_to_those_who_came_before_the_start(script: Script, world: ProcWorld) -> None:
    for pid in range(1, 2001):
        (world.root / str(pid)).mkdir()
    monitor = monitor_of(script, world, queue=5).acquire()
    before: list[int] = []
    after: list[int] = []
    monitor.subscribe_exec(before.append)
    monitor.start()
    monitor.subscribe_exec(after.append)
    wait_for(lambda: len(before) == 2000)
    monitor.stop()
    assert sorted(before) == list(range(1, 2001))
    assert after == []
    assert monitor.losses == 0


def test_a_proc_root_that_cannot_be_listed(script: Script, world: ProcWorld) -> None:
    monitor = ProcessMonitor(script.open, proc_root=f"{world.root}/none", metrics=Registry()).acquire()
    told: list[int] = []
    monitor.subscribe_exec(told.append)
    monitor.start()
    assert monitor.scan_failed.value == 1
    script.exec(7)
    wait_for(lambda: told == [7])
    monitor.stop()


def test_no_source_is_an_error_and_nothing_runs(script: Script, world: ProcWorld) -> None:
    script.refusals = 1
    monitor = monitor_of(script, world).acquire()
    with pytest.raises(ProcessSourceError, match="not now"):
        monitor.start()
    assert monitor.source == ""
    monitor.start()
    assert monitor.source == "script"
    monitor.stop()


def test_a_full_queue_loses_callbacks_but_blocks_nobody(script: Script, world: ProcWorld) -> None:
    monitor = monitor_of(script, world, queue=3, threads=1).acquire()
    hangs, go_on = threading.Event(), threading.Event()
    told: list[int] = []

    def slow(pid: int) -> None:
        hangs.set()
        go_on.wait(60)
        told.append(pid)

    monitor.subscribe_exec(slow)
    monitor.start()
    script.exec(0)
    assert hangs.wait(60)
    script.exec(*range(1, 11))
    wait_for(lambda: monitor.events.value == 11)
    assert monitor.full[Kind.EXEC].value == monitor.losses == 7
    assert monitor.full[Kind.EXIT].value == 0
    go_on.set()
    wait_for(lambda: told == [0, 1, 2, 3])
    monitor.stop()
    assert monitor.executed.value == 4


def test_a_callback_that_raises_is_counted_and_ends_nothing(script: Script, world: ProcWorld) -> None:
    monitor = monitor_of(script, world, threads=1).acquire()
    told: list[int] = []

    def bad(pid: int) -> None:
        told.append(pid)
        raise ValueError(pid)

    monitor.subscribe_exec(bad)
    monitor.start()
    script.exec(1, 2)
    wait_for(lambda: told == [1, 2])
    monitor.stop()
    assert monitor.callback_failed.value == 2


def test_a_callback_may_stop_the_monitor(script: Script, world: ProcWorld) -> None:
    monitor = monitor_of(script, world).acquire()
    stopped = threading.Event()

    def stop(_: int) -> None:
        monitor.stop()
        stopped.set()

    monitor.subscribe_exec(stop)
    monitor.start()
    script.exec(1)
    assert stopped.wait(60)
    assert monitor.source == ""


def test_an_exit_is_told_when_the_last_thread_has_gone(script: Script, world: ProcWorld) -> None:
    monitor = monitor_of(script, world).acquire()
    ended: list[int] = []
    monitor.subscribe_exit(ended.append)
    monitor.start()
    for pid in (1, 2, 3):
        world.begin(pid)
    world.be(1, "Z", threads=2)
    script.exit(1, 2, 3)
    wait_for(lambda: monitor.events.value == 3)
    world.be(2, "Z")
    wait_for(lambda: ended == [2])
    world.begin(3)
    wait_for(lambda: ended == [2, 3])
    world.be(1, "Z")
    wait_for(lambda: ended == [2, 3, 1])
    monitor.stop()


def test_a_process_without_a_root_is_over(script: Script, world: ProcWorld) -> None:
    """So it is between the end of its last thread and its becoming a zombie."""
    monitor = monitor_of(script, world).acquire()
    ended: list[int] = []
    monitor.subscribe_exit(ended.append)
    monitor.start()
    world.begin(1)
    (world.root / "1" / "root").unlink()
    script.exit(1)
    wait_for(lambda: ended == [1])
    monitor.stop()


@pytest.mark.parametrize("error", [OverrunError("script", 9), OSError("broken")])
def test_after_an_overrun_it_is_opened_again_however_often_it_takes(
    script: Script, world: ProcWorld, error: Exception
) -> None:
    monitor = monitor_of(script, world).acquire()
    told: list[int] = []
    monitor.subscribe_exec(told.append)
    monitor.start()
    script.exec(1)
    wait_for(lambda: told == [1])
    script.refusals = 2
    script.events.put(error)
    wait_for(lambda: script.opened == 2)
    script.exec(2)
    wait_for(lambda: told == [1, 2])
    assert (monitor.restarts.value, monitor.reinit_failed.value) == (1, 2)
    assert monitor.losses > 0
    assert script.closed == 1
    monitor.stop()
    assert script.closed == 2


def test_a_stop_while_it_cannot_be_opened_again(script: Script, world: ProcWorld) -> None:
    monitor = monitor_of(script, world).acquire()
    monitor.start()
    script.refusals = 1000
    script.events.put(OverrunError("script", 1))
    wait_for(lambda: monitor.reinit_failed.value)
    monitor.stop()
    assert (monitor.source, script.opened) == ("", 1)
