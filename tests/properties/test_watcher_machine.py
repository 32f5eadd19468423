"""The watcher against a model: real files in a proc root of directories, events as Hypothesis says.

Twice: with callbacks in the caller's thread, where each step is compared; and the whole watcher with its threads.
What the kernel adds (real opens, real exits, namespaces) is in ``tests/kernel/test_watcher_live.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from proc_world import ProcWorld
from watcher_rig import OWN, Whole

from harness.errors import HarnessError
from harness.telemetry import Registry
from harness.watcher.errors import AttachError, NoRuleMatchedError, PidNotRegisteredError
from harness.watcher.identity import FilePath, PathIdentifier
from harness.watcher.registry import FileRegistry
from harness.watcher.rules import Rule
from harness.watcher.tracking import Tracking
from kmt.simulator.kernel import SimulatedKernel

pytestmark = pytest.mark.thorough

NAMES = ["libssl.so.3", "libcrypto.so", "libbroken.so", "readme"]
PIDS = range(1, 4)
names = st.sampled_from(NAMES)
pids = st.sampled_from(PIDS)
containers = st.sampled_from(["files", "inner"])


class Hooks:
    """Callbacks of a name, which write down what they were given; files called broken fail."""

    def __init__(self, name: str, log: list[tuple[str, str, PathIdentifier]], broken: set[PathIdentifier]) -> None:
        self.name = name
        self._log = log
        self._broken = broken

    def activate(self, file: FilePath) -> None:
        self._log.append((self.name, "act", file.id))
        if file.id in self._broken:
            raise RuntimeError("cannot hook")

    def deactivate(self, file: FilePath) -> None:
        self._log.append((self.name, "deact", file.id))


class Process:
    """A model's process: where its root is, and the files it has mapped: identity by path as shown."""

    def __init__(self, born: int, where: str, own_namespace: bool) -> None:
        self.born = born
        self.where = where
        self.own_namespace = own_namespace
        self.has: dict[str, PathIdentifier] = {}


class WatcherMachine(RuleBasedStateMachine):
    """See the module. The model: ``holders`` of each identity, each a process and when it was born."""

    make = Tracking
    """What is tested (``test_broken_registries`` puts others here)."""
    simulated: SimulatedKernel | None = None
    """The kernel that it is on, if it is a simulated one."""

    def __init__(self) -> None:
        super().__init__()
        self.world = ProcWorld(self.simulated.proc_root if self.simulated else None)
        (self.world.files / "inner").mkdir()
        self.places = {"files": self.world.files, "inner": self.world.files / "inner"}
        self.log: list[tuple[str, str, PathIdentifier]] = []
        self.broken: set[PathIdentifier] = set()
        a, b = (Hooks(name, self.log, self.broken) for name in "ab")
        tls, crypto, all_of_b = r"/libssl\.so", r"/libcrypto\.so", r"/lib[a-z]+\.so"
        self.choices = [
            [(tls, a)],
            [(tls, a), (crypto, a)],
            [(tls, a), (all_of_b, b)],
            [(all_of_b, b), (tls, a)],
            [],
        ]
        self.chosen = self.choices[2]
        self.alive: dict[int, Process] = {OWN: Process(0, "files", own_namespace=False)}
        self.holders: dict[PathIdentifier, set[tuple[int, int]]] = {}
        self.hooked: dict[PathIdentifier, tuple[str, Hooks]] = {}
        """The path that each registered file was first seen as, and its callbacks."""
        self.blocked: set[PathIdentifier] = set()
        self.metrics = Registry()
        self.registry = FileRegistry("test", proc_root=str(self.world.root), metrics=self.metrics)
        for where in self.places:
            for name in NAMES:
                self.write(where, name)
        for pid in PIDS:
            self.begin(pid, "inner" if pid == 1 else "files", own_namespace=pid == 2)
        self.set_up()

    # How the watcher is driven; the threaded machine does it otherwise.

    def set_up(self) -> None:
        self.tracking = self.make(
            self.registry, self.rules_of(self.chosen), _at_once, proc_root=str(self.world.root), metrics=self.metrics
        )

    def tell_opened(self, pid: int, path: str) -> None:
        self.tracking.opened(pid, path)

    def tell_ended(self, pid: int) -> None:
        self.tracking.ended(pid)

    def tear_down(self) -> None:
        self.registry.clear()

    def rules_of(self, chosen: list[tuple[str, Hooks]]) -> tuple[Rule, ...]:
        return tuple(Rule.of(pattern, hooks.activate, hooks.deactivate) for pattern, hooks in chosen)

    # Files.

    @rule(where=containers, name=names, what=st.sampled_from(["replace", "delete", "link", "rename"]), other=names)
    def change(self, where: str, name: str, what: str, other: str) -> None:
        """A file is replaced as package managers do, deleted, linked to another name and place, or renamed."""
        file, new = self.places[where] / name, self.places["inner"] / other
        if what == "replace":
            self.write(where, name)
        elif what == "delete":
            file.unlink(missing_ok=True)
        elif what == "link" and file.exists() and not new.exists():
            new.hardlink_to(file)
        elif what == "rename" and file.exists():
            file.rename(new)

    def write(self, where: str, name: str) -> None:
        fresh = self.world.files / "fresh"
        fresh.write_text("x")
        id = PathIdentifier.of_file(fresh)
        # The file system gives numbers again: a blocked file's successor is taken for it.
        if id not in self.blocked:
            self.broken.discard(id)
        if "broken" in name:
            self.broken.add(id)
        fresh.replace(self.places[where] / name)

    # Processes.

    @rule(pid=pids, where=containers, own_namespace=st.booleans())
    def begin(self, pid: int, where: str, own_namespace: bool) -> None:
        """A process (of a container, or in a chroot); if the number is taken, its owner ends unheard of."""
        born = self.world.begin(pid, root=self.places[where])
        self.alive[pid] = Process(born, where, own_namespace)

    @rule(pid=pids, name=names, mapped=st.booleans(), heard=st.booleans())
    def open(self, pid: int, name: str, mapped: bool, heard: bool) -> None:
        """A process opens a file of its root, and perhaps maps it; perhaps the event is lost."""
        process = self.alive.get(pid)
        if process is None:
            return
        file = self.places[process.where] / name
        if file.exists() and mapped:
            shown = f"/{name}" if process.own_namespace else str(file)
            if shown not in process.has:
                self.world.map(pid, file, shown)
                process.has[shown] = PathIdentifier.of_file(file)
        if heard:
            self.tell_opened(pid, f"/{name}")
            self.model_opened(pid, f"/{name}")

    @rule(pid=pids, names=st.lists(names, min_size=1, max_size=3))
    def open_and_map(self, pid: int, names: list[str]) -> None:
        """As a loader does."""
        for name in names:
            self.open(pid, name, mapped=True, heard=True)

    @rule(pid=pids, name=names)
    def open_and_rename(self, pid: int, name: str) -> None:
        """By the time the event is handled, the name is gone; the mapping is not."""
        self.open(pid, name, mapped=True, heard=False)
        process = self.alive.get(pid)
        if process is not None:
            (self.places[process.where] / name).unlink(missing_ok=True)
            self.tell_opened(pid, f"/{name}")
            self.model_opened(pid, f"/{name}")

    @rule(name=names)
    def open_it_ourselves(self, name: str) -> None:
        self.tell_opened(OWN, f"/{name}")

    @rule(pid=pids, name=names)
    def an_event_of_a_process_that_is_gone(self, pid: int, name: str) -> None:
        if pid not in self.alive:
            self.tell_opened(pid, f"/{name}")

    @rule(pid=pids, heard=st.booleans(), another=st.booleans())
    def end(self, pid: int, heard: bool, another: bool) -> None:
        """A process ends; perhaps the number comes again soon."""
        self.world.end(pid)
        self.alive.pop(pid, None)
        if heard:
            self.tell_ended(pid)
            self.model_gone(pid)
        if another:
            self.begin(pid, "files", own_namespace=False)

    @rule(pid=pids)
    def a_late_event_of_an_end(self, pid: int) -> None:
        """Told when the number may have come again."""
        self.tell_ended(pid)
        self.model_gone(pid)

    # What the watcher does by itself, or is asked to.

    @rule()
    def sweep(self) -> None:
        self.tracking.sweep()
        for pid in PIDS:
            self.model_gone(pid)

    @rule()
    def look_at_all(self) -> None:
        self.tracking.look_at_all()
        for pid in self.alive.keys() - {OWN}:
            self.model_look(pid)

    @rule(number=st.integers(0, 4))
    def replace_rules(self, number: int) -> None:
        self.chosen = self.choices[number]
        self.tracking.replace(self.rules_of(self.chosen))
        for id, (path, hooks) in list(self.hooked.items()):
            if self.model_rule(path) is not hooks:
                del self.holders[id], self.hooked[id]
        for pid in self.alive.keys() - {OWN}:
            self.model_look(pid)

    @rule(pid=pids)
    def attach(self, pid: int) -> None:
        process = self.alive.get(pid)
        if process is None:
            with pytest.raises(FileNotFoundError):
                self.tracking.attach(pid)
            return
        asked = [id for path, id in process.has.items() if self.model_rule(path)]
        outcome = None
        try:
            self.tracking.attach(pid)
        except HarnessError as error:
            outcome = error
        self.model_look(pid)
        failed = [id for id in asked if id in self.blocked]
        if not asked:
            assert isinstance(outcome, NoRuleMatchedError)
        elif failed:
            assert isinstance(outcome, AttachError)
            assert (outcome.attached, len(outcome.errors)) == (len(asked) - len(failed), len(failed))
        else:
            assert outcome is None

    @rule(pid=pids)
    def detach(self, pid: int) -> None:
        if any(pid == holder for those in self.holders.values() for holder, _ in those):
            self.tracking.detach(pid)
        else:
            with pytest.raises(PidNotRegisteredError):
                self.tracking.detach(pid)
        self.model_drop(lambda holder: holder[0] == pid)

    # The model.

    def model_rule(self, path: str) -> Hooks | None:
        return next((hooks for pattern, hooks in self.chosen if re.search(pattern, path)), None)

    def model_opened(self, pid: int, path: str) -> None:
        hooks = self.model_rule(path)
        if hooks is None:
            return
        file = self.places[self.alive[pid].where] / path[1:]
        if file.exists():
            self.model_hold(pid, path, PathIdentifier.of_file(file), hooks)
        else:
            self.model_reborn(pid)
            self.model_look(pid)

    def model_look(self, pid: int) -> None:
        for path, id in self.alive[pid].has.items():
            hooks = self.model_rule(path)
            if hooks is not None:
                self.model_hold(pid, path, id, hooks)

    def model_reborn(self, pid: int) -> None:
        """An owner of the number before this one is forgotten as soon as this one opens something."""
        self.model_drop(lambda holder: holder[0] == pid and holder[1] != self.alive[pid].born)

    def model_hold(self, pid: int, path: str, id: PathIdentifier, hooks: Hooks) -> None:
        self.model_reborn(pid)
        if id in self.blocked:
            return
        if id not in self.holders and id in self.broken:
            self.blocked.add(id)
            return
        self.holders.setdefault(id, set()).add((pid, self.alive[pid].born))
        self.hooked.setdefault(id, (path, hooks))

    def model_gone(self, pid: int) -> None:
        born = self.alive[pid].born if pid in self.alive else 0
        self.model_drop(lambda holder: holder[0] == pid and holder[1] != born)

    def model_drop(self, over: Callable[[tuple[int, int]], bool]) -> None:
        for id, those in list(self.holders.items()):
            those -= {holder for holder in those if over(holder)}
            if not those:
                del self.holders[id], self.hooked[id]

    # What must hold.

    @invariant()
    def the_registry_is_the_models(self) -> None:
        traced = {file.id: set(file.pids) for file in self.registry.traced()}
        assert traced == {id: {pid for pid, _ in those} for id, those in self.holders.items()}
        assert self.registry.registered_processes() == set().union(*traced.values())
        assert {id for id, _ in self.registry.blocklist.entries()} == self.blocked
        assert self.registry.in_flight == 0

    @invariant()
    def each_epoch_begins_and_ends_once(self) -> None:
        told: dict[PathIdentifier, list[tuple[str, str]]] = {}
        for name, word, id in self.log:
            told.setdefault(id, []).append((word, name))
        for id, words in told.items():
            begins, ends = words[::2], words[1::2]
            assert [word for word, _ in begins] == ["act"] * len(begins)
            assert ends == [("deact", name) for _, name in begins[: len(ends)]]
            assert (len(begins) > len(ends)) is (id in self.holders)
            if id in self.holders:
                assert begins[-1][1] == self.hooked[id][1].name

    def teardown(self) -> None:
        with self.world:
            self.tear_down()
            self.holders.clear()
            self.each_epoch_begins_and_ends_once()
            assert self.registry.traced() == []


def _at_once(job: Callable[[], None]) -> bool:
    job()
    return True


class OnKernel:
    """The machines' cases, each on the kernel that they are run on."""

    @pytest.fixture(autouse=True)
    def _on_it(self, simulated: SimulatedKernel | None) -> Iterator[None]:
        WatcherMachine.simulated = simulated
        yield
        WatcherMachine.simulated = None


class TestTracking(OnKernel, WatcherMachine.TestCase):
    settings = settings(stateful_step_count=30)


class ThreadedWatcherMachine(WatcherMachine):
    """The same steps; each ends when the watcher's threads have come to rest."""

    def set_up(self) -> None:
        rules = self.rules_of(self.chosen)
        self.whole = Whole(self.world, self.registry, rules, self.metrics, self.simulated)
        self.tracking = self.whole.watcher._tracking
        self.whole.watcher.start()

    def tell_opened(self, pid: int, path: str) -> None:
        self.whole.opened((pid, path))

    def tell_ended(self, pid: int) -> None:
        if pid in self.alive:  # its own end would be told when it comes, and what is tested is a late event
            self.tracking.ended(pid)
        else:
            self.whole.ended(pid)

    @invariant()
    def the_registry_is_the_models(self) -> None:
        self.whole.quiet()
        super().the_registry_is_the_models()

    @invariant()
    def each_epoch_begins_and_ends_once(self) -> None:
        self.whole.quiet()
        super().each_epoch_begins_and_ends_once()

    def tear_down(self) -> None:
        self.whole.watcher.stop()
        self.whole.watcher.stop()
        assert (self.whole.monitor.users, self.whole.feed.closed, self.whole.script.closed) == (0, 1, 1)
        assert not self.simulated or self.simulated.objects == ()


@pytest.mark.requires("probe_read_user_str")
class TestThreadedWatcher(OnKernel, ThreadedWatcherMachine.TestCase):
    settings = settings(stateful_step_count=20, max_examples=max(10, settings().max_examples // 5))
