"""The watcher and bad input: it is counted, and the watcher goes on. Also many threads that use it at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from interleave import at_every_line
from proc_world import ProcWorld
from waiting import wait_for
from watcher_rig import Whole

from harness.ebpf.events import LibraryCounters
from harness.errors import BpfError
from harness.processes.errors import OverrunError
from harness.telemetry import Registry
from harness.watcher import watcher as module
from harness.watcher.errors import AlreadyStoppedError, RuleError, WatcherError
from harness.watcher.identity import FilePath, PathIdentifier
from harness.watcher.registry import FileRegistry
from harness.watcher.rules import Rule

pytestmark = pytest.mark.thorough

Callback = Callable[[FilePath], None]


def nothing(_: FilePath) -> None:
    """A callback that works."""


@pytest.fixture
def world() -> Iterator[ProcWorld]:
    with ProcWorld() as world:
        for name in ("libssl.so.1", "libssl.so.2"):
            (world.files / name).touch()
        yield world


def whole_of(world: ProcWorld, activate: Callback = nothing, deactivate: Callback = nothing) -> Whole:
    metrics = Registry()
    registry = FileRegistry("test", proc_root=str(world.root), metrics=metrics)
    return Whole(world, registry, (Rule.of(r"/libssl\.so", activate, deactivate),), metrics)


def goes_on(whole: Whole, world: ProcWorld) -> None:
    """It still registers what a process opens, and forgets it."""
    world.begin(50)
    whole.opened((50, "/libssl.so.2"))
    wait_for(lambda: 50 in whole.registry.registered_processes() and whole.registry.in_flight == 0)
    world.end(50)
    whole.ended(50)
    wait_for(lambda: 50 not in whole.registry.registered_processes())


def test_rules_that_are_none_change_nothing(world: ProcWorld) -> None:
    whole = whole_of(world)
    before = whole.watcher.rules
    with whole.watcher:
        with pytest.raises(RuleError, match="no regular expression"):
            whole.watcher.set_rules([("fine", nothing, nothing), ("(", nothing, nothing)])
        assert whole.watcher.rules == before
        goes_on(whole, world)


@pytest.mark.parametrize(
    ("spoil", "counter"),
    [
        (lambda room: (room / "maps").unlink(), "vanished"),
        (lambda room: (room / "stat").unlink(), "vanished"),
        (lambda room: (room / "stat").write_bytes(b"\xff) no stat"), "vanished"),
        (lambda room: (room / "stat").write_bytes(b""), "vanished"),
        (lambda room: [(room / "maps").unlink(), (room / "maps").mkdir()], "failed"),
        (lambda room: [(room / "maps").unlink(), (room / "maps").symlink_to("maps")], "failed"),
        (lambda room: [(room / "stat").unlink(), (room / "stat").symlink_to("stat")], "failed"),
    ],
    ids=[
        "no maps",
        "no stat",
        "a stat that is none",
        "an empty stat",
        "maps are a directory",
        "maps are a loop",
        "stat is a loop",
    ],
)
def test_a_process_that_cannot_be_looked_at(world: ProcWorld, spoil: Callable[[object], object], counter: str) -> None:
    world.begin(1)
    world.map(1, world.files / "libssl.so.1", "/libssl.so.1")
    spoil(world.root / "1")
    whole = whole_of(world)
    with whole.watcher:
        assert whole.count(counter) == 1
        goes_on(whole, world)


@pytest.mark.parametrize(
    "maps", [b"", b"\0" * 99, b"a b c d 1 /libssl.so", b"x" * 100_000, b"1-2 a b c 5 /libssl.so\n" * 9]
)
def test_maps_that_are_none(world: ProcWorld, maps: bytes) -> None:
    world.begin(1)
    (world.root / "1" / "maps").write_bytes(maps)
    whole = whole_of(world)
    with whole.watcher:
        goes_on(whole, world)


@pytest.mark.parametrize(
    "path",
    ["/libssl.so/is/no/directory", "/gone/libssl.so", "/loop/libssl.so", "/x" * 3000 + "/libssl.so", "/libssl.so.\n1"],
)
def test_paths_that_lead_nowhere(world: ProcWorld, path: str) -> None:
    (world.files / "loop").symlink_to("loop")
    world.begin(1)
    whole = whole_of(world)
    with whole.watcher:
        whole.opened((1, path), (2, "/libssl.so.1"))
        assert whole.count("matches") == 2
        assert whole.registry.traced() == []
        goes_on(whole, world)


def test_a_proc_root_that_is_gone(world: ProcWorld) -> None:
    whole = whole_of(world)
    world.root.rename(world.root.with_name("elsewhere"))
    with whole.watcher:
        assert whole.count("vanished") == 1
        world.root.with_name("elsewhere").rename(world.root)
        goes_on(whole, world)


def test_reading_events_fails_now_and_then(world: ProcWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = whole_of(world)
    read, failures = whole.feed.take, iter([BpfError("read", 5), OSError(5, "broken"), ValueError()])

    def fails(seconds: float) -> list[object]:
        for error in failures:
            raise error
        return read(seconds)  # type: ignore[return-value]

    monkeypatch.setattr(whole.feed, "take", fails)
    with whole.watcher:
        wait_for(lambda: whole.count("errors") == 3)
        goes_on(whole, world)


def test_losses_are_counted_and_looked_for(world: ProcWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_FOR_LOSSES", 0.05)
    whole = whole_of(world)
    with whole.watcher:
        world.begin(1)
        world.map(1, world.files / "libssl.so.1", "/libssl.so.1")
        whole.feed.counted = LibraryCounters(10, 3, 2)
        wait_for(lambda: 1 in whole.registry.registered_processes())
        assert (whole.count("lost"), whole.count("unread")) == (3, 2)
        goes_on(whole, world)


def test_what_was_lost_last_is_counted_at_the_end(world: ProcWorld) -> None:
    whole = whole_of(world)
    with whole.watcher:
        goes_on(whole, world)
        close = whole.feed.close

        def closes() -> None:
            close()
            whole.feed.counted = LibraryCounters(10, 3, 2, missed=4)

        whole.feed.close = closes  # type: ignore[method-assign]
    assert (whole.count("lost"), whole.count("unread"), whole.count("missed")) == (3, 2, 4)


@pytest.mark.parametrize("broken", ["close", "counters"])
def test_a_program_whose_end_fails_ends_nothing_else(
    world: ProcWorld, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """The monitor is let go, and every file deactivated, all the same."""
    world.begin(1)
    world.map(1, world.files / "libssl.so.1", "/libssl.so.1")
    unhooked: list[FilePath] = []
    whole = whole_of(world, deactivate=unhooked.append)
    whole.watcher.start()
    wait_for(lambda: 1 in whole.registry.registered_processes())

    def fails() -> None:
        raise BpfError(broken, 1)

    monkeypatch.setattr(whole.feed, broken, fails)
    if broken == "close":
        with pytest.raises(BpfError, match="close: EPERM"):
            whole.watcher.stop()
    else:
        whole.watcher.stop()
    assert whole.script.closed == whole.script.opened == 1
    assert len(unhooked) == 1
    assert whole.registry.traced() == []


def test_runs_that_the_kernel_left_out_are_counted_and_looked_for_with_the_sweep(
    world: ProcWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_FOR_LOSSES", 0.05)
    whole = whole_of(world)
    with whole.watcher:
        world.begin(1)
        world.map(1, world.files / "libssl.so.1", "/libssl.so.1")
        whole.feed.counted = LibraryCounters(10, 0, 0, missed=4)
        wait_for(lambda: whole.count("missed") == 4)
        assert whole.registry.registered_processes() == set(), "not at once"
        whole.script.events.put(OverrunError("script", 1))  # makes it sweep
        wait_for(lambda: 1 in whole.registry.registered_processes())
        assert (whole.count("lost"), whole.count("unread"), whole.count("missed")) == (0, 0, 4)
        goes_on(whole, world)


def test_more_events_than_there_is_room_for(world: ProcWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_QUEUED", 3)
    monkeypatch.setattr(module, "_LOOK_FOR_LOSSES", 0.05)
    hangs = threading.Event()
    whole = whole_of(world)
    handle = whole.watcher._tracking.opened
    monkeypatch.setattr(whole.watcher._tracking, "opened", lambda *given: hangs.wait(60) and handle(*given))
    with whole.watcher:
        for n in range(10):
            world.begin(n + 1)
            world.map(n + 1, world.files / "libssl.so.1", "/libssl.so.1")
            whole.opened_without_waiting((n + 1, "/libssl.so.1"))
        wait_for(lambda: whole.count("lost") > 0)
        hangs.set()
        wait_for(lambda: whole.registry.registered_processes() >= set(range(1, 11)))


def test_callbacks_that_raise_block_their_file(world: ProcWorld) -> None:
    bad = PathIdentifier.of_file(world.files / "libssl.so.1")

    def act(file: FilePath) -> None:
        if file.id == bad:
            raise ValueError("cannot hook")

    def deact(_: FilePath) -> None:
        raise ValueError("cannot unhook")

    world.begin(1)
    whole = whole_of(world, act, deact)
    with whole.watcher:
        whole.opened((1, "/libssl.so.1"))
        wait_for(lambda: whole.count("hook_failed") == 1 and whole.registry.in_flight == 0)
        whole.opened((1, "/libssl.so.1"))
        assert whole.count("blocked") == 1
        goes_on(whole, world)
    assert whole.count("unregister_failed_cb") == 2


def test_callbacks_that_use_the_watcher(world: ProcWorld) -> None:
    world.begin(1)
    world.map(1, world.files / "libssl.so.1", "/libssl.so.1")
    world.begin(2)
    world.map(2, world.files / "libssl.so.2", "/libssl.so.2")
    done: list[str] = []

    def act(file: FilePath) -> None:
        with suppress(WatcherError, OSError):
            whole.watcher.attach_pid(2)
        with suppress(WatcherError):
            whole.watcher.detach_pid(2)
        whole.watcher.set_rules([*whole.watcher.rules])
        whole.watcher.start()
        done.append(file.host_path)

    def deact(_: FilePath) -> None:
        whole.watcher.stop()

    whole = whole_of(world, act, deact)
    with whole.watcher:
        wait_for(lambda: done)
    wait_for(lambda: whole.registry.in_flight == 0)
    assert whole.registry.traced() == []


def do(
    whole: Whole, world: ProcWorld, lock: threading.Lock, rules: list[object], word: str, pid: int, number: int
) -> None:
    """One step of a thread."""
    watcher, tracking = whole.watcher, whole.watcher._tracking
    if word in ("begin", "end"):
        with lock:
            world.begin(pid) if word == "begin" else world.end(pid)
        tracking.ended(pid)
        return
    steps: dict[str, Callable[[], None]] = {
        "open": lambda: tracking.opened(pid, f"/libssl.so.{number}"),
        "attach": lambda: watcher.attach_pid(pid),
        "detach": lambda: watcher.detach_pid(pid),
        "rules": lambda: watcher.set_rules(rules[number]),  # type: ignore[arg-type]
        "sweep": tracking.sweep,
        "look": tracking.look_at_all,
    }
    steps[word]()


words = st.sampled_from(["open", "open", "open", "end", "begin", "attach", "detach", "rules", "sweep", "look"])
scripts = st.lists(st.tuples(words, st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=15)


@settings(max_examples=max(5, settings().max_examples // 5))
@given(st.lists(scripts, min_size=2, max_size=3))
def test_threads_that_use_it_at_once(parts: list[list[tuple[str, int, int]]]) -> None:
    """Whatever they do, each epoch begins and ends once, and when every process has ended nothing is left."""
    log: dict[PathIdentifier, list[str]] = {}

    def note(word: str) -> Callback:
        def callback(file: FilePath) -> None:
            log.setdefault(file.id, []).append(f"{word} begins")
            threading.Event().wait(0)
            log[file.id].append(f"{word} ends")

        return callback

    with ProcWorld() as world:
        for n in (1, 2):
            (world.files / f"libssl.so.{n}").touch()
        for pid in (1, 2, 3):
            world.begin(pid)
        whole = whole_of(world, note("act"), note("deact"))
        others = [(r"/libssl\.so\.1", note("act"), note("deact"))]
        rules = [whole.watcher.rules, others, [*others, *whole.watcher.rules]]
        lock = threading.Lock()

        def play(script: list[tuple[str, int, int]]) -> None:
            for word, pid, number in script:
                with suppress(WatcherError, OSError):
                    do(whole, world, lock, rules, word, pid, number)

        with at_every_line("harness.watcher", 0.05), whole.watcher:
            with ThreadPoolExecutor(len(parts)) as pool:
                for done in [pool.submit(play, part) for part in parts]:
                    done.result()
            for pid in (1, 2, 3):
                world.end(pid)
            whole.watcher._tracking.sweep()
            whole.quiet()
            assert whole.registry.traced() == []
            assert whole.registry.registered_processes() == set()
        with pytest.raises(AlreadyStoppedError):
            whole.watcher.start()
    for calls in log.values():
        epoch = ["act begins", "act ends", "deact begins", "deact ends"]
        assert calls == epoch * (len(calls) // 4)
