"""The FileRegistry on real files: links, replaced and deleted files, views through a process's root, threads.

What callbacks in flight can do to it is tested exhaustively in ``test_registry_core``.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from interleave import at_every_line
from proc_world import ProcWorld
from strategies import pids

from harness.telemetry import Registry
from harness.watcher.blocklist import Blocklist
from harness.watcher.errors import (
    AlreadyStoppedError,
    CallbackMissingError,
    InvalidPathError,
    PathBlockedError,
    PidNotRegisteredError,
)
from harness.watcher.identity import FilePath, PathIdentifier
from harness.watcher.registry import FileRegistry, Registration, TracedFile
from kmt.simulator.kernel import SimulatedKernel

names = st.sampled_from(["libssl.so.3", "libcrypto.so", "link.so", "other name"])
few = st.integers(1, 3)
BLOCKED_MOST = 2
FAILURES = {
    "broken": RuntimeError("cannot hook"),
    "gone": FileNotFoundError("no longer there"),
    "deleted": OSError("cannot read"),
    "replaced": OSError("not what it was"),
}
"""What a failing activation raises; for the last two it deletes the file first, or renames another over it."""


def nothing(_: FilePath) -> None:
    """A callback that works."""


class World:
    """A directory with files, and a proc root in which even processes see it through a second way."""

    def __init__(self, simulated: SimulatedKernel | None = None) -> None:
        self.processes = ProcWorld(simulated.proc_root if simulated else None)
        self.files, self.proc = self.processes.files, self.processes.root
        container = self.files.with_name("container")
        container.symlink_to(self.files)
        for pid in range(1, 7):
            self.processes.begin(pid, root=container if pid % 2 else None)

    def replace(self, path: Path) -> None:
        """Rename a new file over whatever has the name."""
        fresh = self.files / "fresh"
        fresh.write_text("content")
        fresh.replace(path)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.processes.__exit__()


class RegistryMachine(RuleBasedStateMachine):
    """The model: the set of holders of each identity, and the callbacks that must have run."""

    make = FileRegistry
    """What is tested (``test_broken_registries`` puts others here)."""
    simulated: SimulatedKernel | None = None
    """The kernel that it is on, if it is a simulated one."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.simulated)
        self.metrics = Registry()
        self.blocklist = Blocklist(BLOCKED_MOST)
        self.real = self.make("test", proc_root=str(self.world.proc), blocklist=self.blocklist, metrics=self.metrics)
        self.calls: list[tuple[str, PathIdentifier]] = []
        self.expected: list[tuple[str, PathIdentifier]] = []
        self.holders: dict[PathIdentifier, set[int]] = {}
        self.seen_as: dict[PathIdentifier, str] = {}
        self.blocked: list[PathIdentifier] = []
        self.broken_exits: set[PathIdentifier] = set()
        """Active files whose deactivation will raise."""
        self.counts: Counter[str] = Counter()
        self.stopped = False
        for name in ("libssl.so.3", "libcrypto.so"):
            self.write(name)

    def teardown(self) -> None:
        with self.world:
            self.clear()
            self.metrics_say_so_too()

    @rule(name=names)
    def write(self, name: str) -> None:
        """A new file, renamed over whatever had the name, as package managers do."""
        self.world.replace(self.world.files / name)

    @rule(name=names, other=names, symbolic=st.booleans())
    def link(self, name: str, other: str, symbolic: bool) -> None:
        here = self.world.files / other
        if name != other and not here.is_symlink() and not here.exists():
            if symbolic:
                here.symlink_to(name)
            elif (self.world.files / name).exists():
                os.link(self.world.files / name, here)

    @rule(name=names)
    def delete(self, name: str) -> None:
        (self.world.files / name).unlink(missing_ok=True)

    @rule(name=names, pid=few, relative=st.booleans(), clean_up=st.sampled_from(["ok", "ok", "broken"]))
    def register(self, name: str, pid: int, relative: bool, clean_up: str) -> None:
        path = name if relative else f"/{name}"
        call = self.registration(path, pid, "ok", clean_up)
        id = self.reaches_activation(name, pid, call)
        if id is not None:
            assert call() is Registration.REGISTERED
            self.expected.append(("act", id))
            self.holders[id] = {pid}
            self.seen_as[id] = path
            self.counts["registered"] += 1
            self.broken_exits.discard(id)
            if clean_up == "broken":
                self.broken_exits.add(id)

    @rule(name=names, pid=few, activation=st.sampled_from(list(FAILURES)), clean_up=st.sampled_from(["ok", "broken"]))
    def fail_to_register(self, name: str, pid: int, activation: str, clean_up: str) -> None:
        call = self.registration(f"/{name}", pid, activation, clean_up)
        id = self.reaches_activation(name, pid, call)
        if id is not None:
            with pytest.raises(type(FAILURES[activation])) as raised:
                call()
            assert raised.value is FAILURES[activation]
            self.expected += [("act", id), ("deact", id)]
            self.counts["unregister_failed_cb"] += clean_up == "broken"
            if activation == "broken":
                self.blocked = [*self.blocked, id][-BLOCKED_MOST:]
                self.counts["hook_failed"] += 1

    def registration(self, path: str, pid: int, activation: str, clean_up: str) -> Callable[[], Registration]:
        """A call of register whose callbacks record what they were given and end as told."""

        def act(given: FilePath) -> None:
            assert given.pid == pid
            assert PathIdentifier.of_file(given.host_path) == given.id
            self.calls.append(("act", given.id))
            if activation == "deleted":
                Path(given.host_path).unlink()
            if activation == "replaced":
                self.world.replace(Path(given.host_path))
            if activation in FAILURES:
                raise FAILURES[activation]

        def deact(given: FilePath) -> None:
            assert given == FilePath(given.id)
            self.calls.append(("deact", given.id))
            if clean_up == "broken":
                raise RuntimeError("cannot unhook")

        return lambda: self.real.register(path, pid, act, deact)

    def reaches_activation(self, name: str, pid: int, call: Callable[[], Registration]) -> PathIdentifier | None:
        """The file's identity if the call must activate it; otherwise make the call and check what it says."""
        file = self.world.files / name
        if not file.exists():
            # Missing, or symbolic links that lead to one another.
            with pytest.raises(OSError, match=r"No such file|Too many levels"):
                call()
            return None
        stat = file.stat()
        id = PathIdentifier(stat.st_dev, stat.st_ino)
        if self.stopped:
            with pytest.raises(AlreadyStoppedError):
                call()
        elif id in self.blocked:
            with pytest.raises(PathBlockedError):
                call()
            self.blocked = [other for other in self.blocked if other != id] + [id]
            self.counts["blocked"] += 1
        elif id in self.holders:
            assert call() is Registration.ALREADY_REGISTERED
            self.holders[id].add(pid)
            self.counts["already_registered"] += 1
        else:
            return id
        return None

    @rule(pid=few)
    def unregister(self, pid: int) -> None:
        held = [id for id, those in self.holders.items() if pid in those]
        if self.stopped:
            with pytest.raises(AlreadyStoppedError):
                self.real.unregister(pid)
        elif not held:
            with pytest.raises(PidNotRegisteredError):
                self.real.unregister(pid)
        else:
            self.real.unregister(pid)
            last = [id for id in held if self.holders[id] == {pid}]
            assert sorted(self.calls[len(self.expected) :]) == sorted(("deact", id) for id in last)
            self.over(last)
            for id in held:
                self.holders[id].discard(pid)
            self.holders = {id: those for id, those in self.holders.items() if those}

    def over(self, ids: list[PathIdentifier]) -> None:
        self.expected = list(self.calls)
        self.counts["unregistered"] += len(ids)
        self.counts["unregister_failed_cb"] += len(self.broken_exits.intersection(ids))

    @rule(really=st.integers(0, 9))
    def clear_now_and_then(self, really: int) -> None:
        if not really:
            self.clear()

    def clear(self) -> None:
        self.real.clear()
        assert sorted(self.calls[len(self.expected) :]) == sorted(("deact", id) for id in self.holders)
        self.over(list(self.holders))
        self.holders.clear()
        self.stopped = True
        self.real.clear()
        assert self.calls == self.expected

    @invariant()
    def callbacks_are_those_expected(self) -> None:
        assert self.calls == self.expected
        assert self.real.in_flight == 0

    @invariant()
    def files_and_processes_are_the_models(self) -> None:
        assert sorted(self.real.traced()) == sorted(
            TracedFile(id, self.seen_as[id], tuple(sorted(those))) for id, those in self.holders.items()
        )
        assert self.real.registered_processes() == set().union(*self.holders.values())
        assert [id for id, _ in self.blocklist.entries()] == self.blocked

    @invariant()
    def metrics_say_so_too(self) -> None:
        value = {metric.name.removeprefix("usm.file_registry."): metric.value for metric in self.metrics.metrics()}
        assert value.pop("total_files") == len(self.holders) == value["registered"] - value["unregistered"]
        assert value.pop("total_pids") == len(self.real.registered_processes())
        assert value == {name: self.counts[name] for name in value}


class TestRegistry(RegistryMachine.TestCase):
    settings = settings(stateful_step_count=15)

    @pytest.fixture(autouse=True)
    def _on_it(self, simulated: SimulatedKernel | None) -> Iterator[None]:
        RegistryMachine.simulated = simulated
        yield
        RegistryMachine.simulated = None


Script = list[tuple[str, int, int]]
Log = dict[PathIdentifier, list[str]]
words = st.sampled_from(["register", "register", "unregister"])
scripts = st.lists(st.tuples(words, st.integers(0, 1), pids), min_size=1, max_size=12)


def play(registry: FileRegistry, script: Script, log: Log) -> None:
    """One thread's part: its callbacks write down when they begin and end."""

    def record(word: str) -> Callable[[FilePath], None]:
        def callback(file: FilePath) -> None:
            log.setdefault(file.id, []).append(f"{word} begins")
            time.sleep(0)
            log[file.id].append(f"{word} ends")

        return callback

    for word, number, pid in script:
        if word == "register":
            registry.register(f"/{number}", pid, record("act"), record("deact"))
        else:
            with suppress(PidNotRegisteredError):
                registry.unregister(pid)


def run_threads(parts: list[Script]) -> None:
    """Play each script in its thread; each file's epochs must follow one another, and nothing be left."""
    log: Log = {}
    with World() as world:
        for number in range(2):
            (world.files / str(number)).touch()
        registry = FileRegistry("threads", proc_root=str(world.proc), metrics=Registry())
        with at_every_line("harness.watcher.registry", 0.1), ThreadPoolExecutor(len(parts)) as pool:
            for done in [pool.submit(play, registry, script, log) for script in parts]:
                done.result()
        assert registry.in_flight == 0
        for pid in registry.registered_processes():
            registry.unregister(pid)
        assert registry.traced() == []
        assert registry.registered_processes() == set()
    for calls in log.values():
        epoch = ["act begins", "act ends", "deact begins", "deact ends"]
        assert calls == epoch * (len(calls) // 4)


@settings(max_examples=max(5, settings().max_examples // 5))
@given(st.lists(scripts, min_size=2, max_size=3))
def test_threads_see_each_epoch_begin_and_end_once(parts: list[Script]) -> None:
    run_threads(parts)


def test_threads_that_come_and_go_on_one_file() -> None:
    run_threads([[("register", 0, pid), ("unregister", 0, pid)] * 40 for pid in range(1, 5)])


def test_a_callback_that_hangs_holds_up_nobody_else() -> None:
    with World() as world:
        for name in ("slow", "quick"):
            (world.files / name).touch()
        registry = FileRegistry("test", proc_root=str(world.proc), metrics=Registry())
        begun, go_on = threading.Event(), threading.Event()

        def hang(_: FilePath) -> None:
            begun.set()
            go_on.wait(60)

        thread = threading.Thread(target=registry.register, args=["/slow", 1, hang, nothing])
        thread.start()
        assert begun.wait(60)
        assert registry.register("/quick", 2, nothing, nothing) is Registration.REGISTERED
        assert registry.register("/slow", 2, nothing, nothing) is Registration.PENDING
        registry.unregister(1)
        assert [file.path for file in registry.traced()] == ["/quick"]
        go_on.set()
        thread.join()
        assert {(file.path, file.pids) for file in registry.traced()} == {("/quick", (2,)), ("/slow", (2,))}


def test_a_callback_may_call_the_registry() -> None:
    with World() as world:
        for name in ("a", "b"):
            (world.files / name).touch()
        registry = FileRegistry("test", proc_root=str(world.proc), metrics=Registry())
        came_to: list[Registration] = []

        def act(_: FilePath) -> None:
            came_to.append(registry.register("/a", 1, nothing, nothing))
            came_to.append(registry.register("/b", 2, nothing, lambda _: registry.clear()))

        registry.register("/a", 1, act, nothing)
        assert came_to == [Registration.PENDING, Registration.REGISTERED]
        registry.unregister(2)
        with pytest.raises(AlreadyStoppedError):
            registry.unregister(1)


def test_an_interrupt_in_a_callback_comes_out_and_leaves_order_behind() -> None:
    with World() as world:
        (world.files / "a").touch()
        registry = FileRegistry("test", proc_root=str(world.proc), metrics=Registry())

        def interrupted(_: FilePath) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            registry.register("/a", 1, interrupted, nothing)
        assert registry.register("/a", 1, nothing, interrupted) is Registration.REGISTERED
        with pytest.raises(KeyboardInterrupt):
            registry.unregister(1)
        assert (registry.traced(), registry.registered_processes(), registry.in_flight) == ([], set(), 0)


@pytest.mark.parametrize("end", ["unregister", "clear"])
def test_an_interrupt_in_a_deactivation_keeps_none_from_the_other_files(end: str) -> None:
    with World() as world:
        registry = FileRegistry("test", proc_root=str(world.proc), metrics=Registry())
        errors = [KeyboardInterrupt(), SystemExit()]
        left: list[PathIdentifier] = []

        def interrupted(file: FilePath) -> None:
            left.append(file.id)
            raise errors[len(left) - 1]

        for name in ("a", "b"):
            (world.files / name).touch()
            registry.register(f"/{name}", 1, nothing, interrupted)
        ids = [file.id for file in registry.traced()]
        with pytest.raises(KeyboardInterrupt) as raised:
            registry.unregister(1) if end == "unregister" else registry.clear()
        assert raised.value is errors[0]
        assert sorted(left) == sorted(ids)
        assert (registry.traced(), registry.registered_processes(), registry.in_flight) == ([], set(), 0)
        for name in ("a", "b") if end == "unregister" else ():
            assert registry.register(f"/{name}", 1, nothing, nothing) is Registration.REGISTERED


@pytest.mark.parametrize("stopped", [False, True])
def test_the_first_thing_wrong_is_the_one_reported(stopped: bool) -> None:
    with World() as world:
        registry = FileRegistry("test", proc_root=str(world.proc), metrics=Registry())
        if stopped:
            registry.clear()
        for act, deact in ((None, nothing), (nothing, None), (None, None)):
            with pytest.raises(CallbackMissingError, match="missing"):
                registry.register("/missing", 1, act, deact)
        with pytest.raises(FileNotFoundError):
            registry.register("/missing", 1, nothing, nothing)
        with pytest.raises(FileNotFoundError):
            registry.register("/missing", 99, nothing, nothing)
        for path in ("", "/with\0nul"):
            with pytest.raises(InvalidPathError, match="1" if not path else "nul"):
                registry.register(path, 1, nothing, nothing)
        (world.files / "there").touch()
        if stopped:
            with pytest.raises(AlreadyStoppedError):
                registry.register("/there", 1, nothing, nothing)


def test_an_error_that_was_caused_by_a_missing_file_does_not_block_it() -> None:
    with World() as world:
        (world.files / "a").touch()
        registry = FileRegistry("test", proc_root=str(world.proc), metrics=Registry())

        def act(_: FilePath) -> None:
            raise RuntimeError("cannot open it") from ProcessLookupError("ended")

        for _ in range(2):
            with pytest.raises(RuntimeError, match="cannot open"):
                registry.register("/a", 1, act, nothing)
        assert registry.blocklist.entries() == []


def test_a_file_replaced_during_its_activation_is_gone_and_not_blocked() -> None:
    with World() as world:
        (world.files / "a").touch()
        registry = FileRegistry("test", proc_root=str(world.proc), metrics=Registry())

        def act(file: FilePath) -> None:
            world.replace(Path(file.host_path))
            raise OSError("not what it was")

        with pytest.raises(OSError, match="not what it was"):
            registry.register("/a", 1, act, nothing)
        assert registry.blocklist.entries() == []
        assert registry.register("/a", 1, nothing, nothing) is Registration.REGISTERED
