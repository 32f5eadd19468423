"""The registry's core under every interleaving: callbacks start and finish when Hypothesis says, in any order."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from strategies import pids

from harness.telemetry import Registry
from harness.watcher.blocklist import Blocklist
from harness.watcher.errors import AlreadyStoppedError, PathBlockedError, PidNotRegisteredError
from harness.watcher.identity import FilePath, PathIdentifier
from harness.watcher.registry_core import Core, Epoch, Phase, Registration

pytestmark = pytest.mark.thorough

inodes = st.integers(1, 2)


def nothing(_: FilePath) -> None:
    """A callback that the core must never run itself."""
    raise AssertionError("the core ran a callback")


class CoreMachine(RuleBasedStateMachine):
    """The model: who holds what, and for each file the callbacks begun and ended, in order."""

    make = Core
    """What is tested (``test_broken_registries`` puts others here)."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = Registry()
        self.core = self.make("test", Blocklist(1), self.metrics)
        self.blocked: list[PathIdentifier] = []
        self.holders: dict[PathIdentifier, set[int]] = {}
        self.running: list[Epoch] = []
        self.log: dict[PathIdentifier, list[str]] = {}
        self.doomed: set[PathIdentifier] = set()
        """Those whose activation runs and whose epoch is over already."""

    def begin(self, epoch: Epoch) -> None:
        self.running.append(epoch)
        self.log.setdefault(epoch.file.id, []).append("act" if epoch.phase is Phase.ACTIVATING else "deact")

    def take(self, number: int) -> Epoch:
        epoch = self.running.pop(number % len(self.running))
        self.log[epoch.file.id].append("done")
        return epoch

    @rule(inode=inodes, pid=pids)
    def register(self, inode: int, pid: int) -> None:
        file = FilePath(PathIdentifier(1, inode), f"/seen/by/{pid}", pid)
        blocked = file.id in self.blocked
        try:
            came_to = self.core.register(file, "/lib", nothing, nothing)
        except PathBlockedError:
            assert blocked
            self.blocked = [id for id in self.blocked if id != file.id] + [file.id]
            return
        except AlreadyStoppedError:
            assert self.core.stopped
            return
        assert not blocked
        assert not self.core.stopped
        if isinstance(came_to, Epoch):
            assert not self.holders.get(file.id)
            self.begin(came_to)
        elif came_to is Registration.ALREADY_REGISTERED:
            assert self.log[file.id][-2:] == ["act", "done"]
        else:
            assert self.log[file.id][-1] in ("act", "deact")
        self.holders.setdefault(file.id, set()).add(pid)

    @rule(pid=pids)
    def unregister(self, pid: int) -> None:
        held = [id for id, those in self.holders.items() if pid in those]
        try:
            leaving = self.core.unregister(pid)
        except PidNotRegisteredError:
            assert not held
            return
        except AlreadyStoppedError:
            assert self.core.stopped
            return
        for id in held:
            self.holders[id].discard(pid)
        assert {epoch.file.id for epoch in leaving} == {
            id for id in held if not self.holders[id] and self.log[id][-2:] == ["act", "done"]
        }
        for epoch in leaving:
            self.begin(epoch)

    @rule(inode=inodes)
    def release(self, inode: int) -> None:
        """Nobody is to hold that file any more; who comes after is in its next epoch."""
        id = PathIdentifier(1, inode)
        active = self.log.get(id, [])[-2:] == ["act", "done"]
        leaving = self.core.release(lambda epoch: epoch.file.id != id)
        assert [epoch.file.id for epoch in leaving] == [id] * active
        self.holders.pop(id, None)
        # Cleared, it has forgotten the file: what still runs ends as it ends.
        if self.log.get(id, [""])[-1] == "act" and not self.core.stopped:
            self.doomed.add(id)
        for epoch in leaving:
            self.begin(epoch)

    @precondition(lambda self: self.running)
    @rule(number=st.integers(0, 9), outcome=st.sampled_from(["ok", "ok", "broken", "gone"]))
    def finish(self, number: int, outcome: str) -> None:
        epoch = self.take(number)
        id = epoch.file.id
        if epoch.phase is Phase.LEAVING:
            following = self.core.deactivated(epoch, failed=outcome != "ok")
            if following is not None:
                assert following.file.pid in self.holders[id]
                assert following.file.host_path == f"/seen/by/{following.file.pid}"
                self.begin(following)
        elif outcome == "ok":
            if self.core.activated(epoch):
                assert self.core.stopped or id in self.doomed or not self.holders[id]
                self.doomed.discard(id)
                self.begin(epoch)
        else:
            self.core.failed(epoch, block=outcome == "broken")
            if id in self.doomed:
                self.doomed.discard(id)
            elif outcome == "broken":
                self.blocked = [*self.blocked, id][-1:]
                self.holders[id] = set()
            else:
                self.holders.setdefault(id, set()).discard(epoch.file.pid)
            self.begin(epoch)

    @precondition(lambda self: sum(map(len, self.log.values())) > 12)
    @rule()
    def clear(self) -> None:
        active = {id for id, entry in self.core.files.items() if entry.phase is Phase.ACTIVE}
        leaving = self.core.clear()
        assert {epoch.file.id for epoch in leaving} == active
        assert self.core.clear() == []
        self.holders.clear()
        for epoch in leaving:
            self.begin(epoch)

    @invariant()
    def callbacks_of_a_file_never_overlap_and_alternate(self) -> None:
        for events in self.log.values():
            assert all(event == "done" for event in events[1::2])
            begun = events[::2]
            assert all(event == ("act", "deact")[n % 2] for n, event in enumerate(begun))
        assert self.core.in_flight == len(self.running)

    @invariant()
    def processes_hold_what_they_registered(self) -> None:
        held: dict[int, set[PathIdentifier]] = {}
        for id, those in self.holders.items():
            for pid in those:
                held.setdefault(pid, set()).add(id)
        assert self.core.by_pid == held
        for id, epoch in self.core.files.items():
            assert (epoch.next or epoch).pids == self.holders.get(id, set())
            assert not (epoch.joined and epoch.phase is Phase.ACTIVE)

    @invariant()
    def blocked_and_active_are_apart_and_counted(self) -> None:
        active = {id for id, epoch in self.core.files.items() if epoch.phase is Phase.ACTIVE}
        assert [id for id, _ in self.core.blocklist.entries()] == self.blocked
        assert active.isdisjoint(self.blocked)
        value = {name.rpartition(".")[2]: metric.value for metric in self.metrics.metrics() for name in [metric.name]}
        assert value["total_files"] == value["registered"] - value["unregistered"] == len(active)
        assert value["total_pids"] == len(self.core.by_pid)

    def teardown(self) -> None:
        """Whatever happened, it all ends: once every process has gone and every callback is done, nothing is left."""
        while self.running:
            self.finish(0, "ok")
        for pid in range(1, 7):
            self.unregister(pid)
        while self.running:
            self.finish(0, "ok")
        assert not self.core.files
        assert not self.core.by_pid
        assert all(len(events) % 4 == 0 for events in self.log.values())


TestCore = CoreMachine.TestCase
TestCore.settings = settings(stateful_step_count=40)


def test_unknown_process() -> None:
    with pytest.raises(PidNotRegisteredError, match="process 7"):
        Core("test", Blocklist(), Registry()).unregister(7)
