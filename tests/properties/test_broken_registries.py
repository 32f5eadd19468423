"""Every invariant of the registry and of what a watcher tracks, broken on purpose: the state machines must find each.

A machine that finds none of these would prove nothing. Each class says what it breaks.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from test_registry import RegistryMachine
from test_registry_core import CoreMachine
from test_watcher_machine import WatcherMachine

from harness.watcher import registry_core
from harness.watcher.blocklist import Blocklist
from harness.watcher.errors import AlreadyStoppedError
from harness.watcher.registry import FileRegistry
from harness.watcher.registry_core import Core, Epoch
from harness.watcher.tracking import Tracking

pytestmark = pytest.mark.host_only


def registry_of(core_class, **changes):
    """A registry over a broken core, or with broken methods of its own."""

    class Broken(FileRegistry):
        def __init__(self, program, **more):
            super().__init__(program, **more)
            core = core_class(program, self.blocklist, more["metrics"])
            self._core, self._lock = core, core.lock

    for name, change in changes.items():
        setattr(Broken, name, change)
    return Broken


class ForgetsTheSecondHolder(Core):
    """Counts one process for a file, whoever comes after."""

    def share(self, id, pid):
        epoch = self.files.get(id)
        return epoch is not None and epoch.phase is registry_core.Phase.ACTIVE


class CountsTheSameHolderTwice(Core):
    """A process that registers a file twice must end twice."""

    def __init__(self, *given):
        super().__init__(*given)
        self.extra = {}

    def share(self, id, pid):
        held = id in self.by_pid.get(pid, ())
        shared = super().share(id, pid)
        if shared and held:
            self.extra[pid] = self.extra.get(pid, 0) + 1
        return shared

    def unregister(self, pid):
        if self.extra.get(pid):
            self.extra[pid] -= 1
            return []
        return super().unregister(pid)


class KeepsEmptySets(Core):
    """A process that has ended stays, with nothing."""

    def unregister(self, pid):
        leaving = super().unregister(pid)
        self.by_pid[pid] = set()
        return leaving


class LeavesWithTheFirst(Core):
    """The first process to end takes the file away from the others."""

    def unregister(self, pid):
        for id in self.by_pid.get(pid, ()):
            epoch = self.files[id]
            if epoch.phase is registry_core.Phase.ACTIVE:
                for other in epoch.pids - {pid}:
                    self.by_pid[other].discard(id)
                    if not self.by_pid[other]:
                        del self.by_pid[other]
                epoch.pids &= {pid}
        return super().unregister(pid)


class NeverLeaves(Core):
    """A file whose last process has ended stays hooked."""

    def unregister(self, pid):
        return super().unregister(pid) and []


class ActivatesTwice(Core):
    """Every process that comes activates the file."""

    def share(self, id, pid):
        return False

    def register(self, file, path, activate, deactivate):
        self.files.pop(file.id, None)
        return super().register(file, path, activate, deactivate)


class DeactivatesWhileItActivates(Core):
    """A process that ends during the activation of its file has the deactivation run at once."""

    def unregister(self, pid):
        due = [self.files[id] for id in self.by_pid.get(pid, ()) if self.files[id].pids == {pid}]
        early = [epoch for epoch in due if epoch.phase is registry_core.Phase.ACTIVATING]
        leaving = super().unregister(pid)
        for epoch in early:
            self.in_flight += 1
            epoch.phase = registry_core.Phase.LEAVING
        return leaving + early


class JoinsWhatIsLeaving(Core):
    """Who comes during the deactivation is counted into the epoch that ends."""

    def register(self, file, path, activate, deactivate):
        epoch = self.files.get(file.id)
        if epoch is not None and epoch.phase is registry_core.Phase.LEAVING and not self.stopped:
            self._count_in(epoch, file.pid)
            return registry_core.Registration.PENDING
        return super().register(file, path, activate, deactivate)


class LetsTheDoomedLive(Core):
    """A file that is released during its activation stays."""

    def release(self, keep):
        leaving = super().release(keep)
        for epoch in self.files.values():
            epoch.doomed = False
        return leaving


class ForgetsWhoJoined(Core):
    """Where an activation found its file gone, others who see it another way get nothing."""

    def failed(self, epoch: Epoch, *, block):
        epoch.joined.clear()
        super().failed(epoch, block=block)


class DeactivatesTwice(Core):
    """A file whose last process has ended is deactivated, and again."""

    def unregister(self, pid):
        leaving = super().unregister(pid)
        self.in_flight += len(leaving)
        return leaving + leaving


class CountsActivationsTwice(Core):
    """More files registered than there are."""

    def activated(self, epoch):
        self._registered.add()
        return super().activated(epoch)


class IgnoresTheBlocklist(Core):
    """A file that failed is tried again and again."""

    def register(self, *given):
        kept, self.blocklist = self.blocklist, Blocklist()
        try:
            return super().register(*given)
        finally:
            self.blocklist = kept


class BlocksNothing(Core):
    """A file that failed is not blocked."""

    def failed(self, epoch, *, block):
        super().failed(epoch, block=False)


class BlocksWhatHasGone(Core):
    """A file that had gone is blocked."""

    def failed(self, epoch, *, block):
        super().failed(epoch, block=True)


class LooksWithoutRefreshing(Core):
    """A look-up in the blocklist is no use of the entry."""

    def register(self, file, *given):
        before = self.blocklist.entries()
        try:
            return super().register(file, *given)
        finally:
            for id, path in before:
                self.blocklist.add(id, path)


class LagsWithProcesses(Core):
    """The gauge of processes is not moved by a shared registration (as in the original)."""

    def share(self, id, pid):
        before = self._total_pids.value
        shared = super().share(id, pid)
        if shared:
            self._total_pids.set(before)
        return shared


class LagsWithFiles(Core):
    """The gauge of files is not moved when one leaves."""

    def _leave(self, epoch):
        before = self._total_files.value
        super()._leave(epoch)
        self._total_files.set(before)


class CountsNoFailedHook(Core):
    """A failed activation is not counted."""

    def __init__(self, *given):
        super().__init__(*given)
        self._hook_failed = type("Deaf", (), {"add": lambda self: None})()


class ClearsOnlyWhatOneHolds(Core):
    """Files of two processes stay hooked for ever (as in the original)."""

    def clear(self):
        shared = [epoch for epoch in self.files.values() if len(epoch.pids) > 1]
        leaving = super().clear()
        return [epoch for epoch in leaving if epoch not in shared]


class ClearsAndGoesOn(Core):
    """A cleared registry takes files again."""

    def clear(self):
        leaving = super().clear()
        self.stopped = False
        return leaving


class ClearsTwice(Core):
    """The second clear deactivates what the first one has."""

    def clear(self):
        if not self.stopped:
            self.cleared = super().clear()
        self.in_flight += len(self.cleared) * self.stopped
        return self.cleared


class ClearsTheGaugesNot(Core):
    """The gauge of processes survives."""

    def clear(self):
        before = self._total_pids.value
        leaving = super().clear()
        self._total_pids.set(before)
        return leaving


class RefusesNothingOnceStopped(Core):
    """Unregistering after the end is silent."""

    def unregister(self, pid):
        with suppress(AlreadyStoppedError):
            return super().unregister(pid)
        return []


def swallows(self, *given, **more):
    """The activation's error is lost, as it is in the original where the clean-up succeeds."""
    with suppress(RuntimeError):
        return FileRegistry.register(self, *given, **more)
    return registry_core.Registration.REGISTERED


def looks_at_the_file_last(self, path, *given, **more):
    """A registry that has been cleared says so before it says that there is no such file."""
    if self.stopped:
        raise AlreadyStoppedError("the file registry has been cleared")
    return FileRegistry.register(self, path, *given, **more)


def deactivates_not_after_failure(self, first):
    """A failed activation is not cleaned up."""
    before, first.deactivate = first.deactivate, lambda file: None
    try:
        return FileRegistry._drive(self, first)
    finally:
        first.deactivate = before


CORES = [
    ForgetsTheSecondHolder,
    CountsTheSameHolderTwice,
    KeepsEmptySets,
    LeavesWithTheFirst,
    NeverLeaves,
    ActivatesTwice,
    DeactivatesTwice,
    CountsActivationsTwice,
    IgnoresTheBlocklist,
    BlocksNothing,
    BlocksWhatHasGone,
    LooksWithoutRefreshing,
    LagsWithProcesses,
    LagsWithFiles,
    CountsNoFailedHook,
    ClearsOnlyWhatOneHolds,
    ClearsAndGoesOn,
    ClearsTwice,
    ClearsTheGaugesNot,
    RefusesNothingOnceStopped,
]
"""What a registry shows even while no two callbacks run at once."""
INTERLEAVED = [DeactivatesWhileItActivates, JoinsWhatIsLeaving, LetsTheDoomedLive, ForgetsWhoJoined]


class TakesTheLastRule(Tracking):
    """Of several rules that match, the last one counts."""

    def __init__(self, registry, rules, *given, **more):
        super().__init__(registry, rules[::-1], *given, **more)

    def replace(self, rules):
        super().replace(rules[::-1])


class WatchesItself(Tracking):
    """Registers what this process opens."""

    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self._own = 0


class BelievesTheNumber(Tracking):
    """A process with the number of one that has ended is taken for it."""

    def _born(self, pid):
        born = super()._born(pid)
        return born if born is None else self._births.setdefault(pid, born)


class ForgetsWhoIsAlive(Tracking):
    """A late event of an end takes the number's next owner away."""

    def ended(self, pid):
        self._forget(pid, self._births.get(pid, 0))


class SweepsNothing(Tracking):
    """A process whose end nobody heard of stays."""

    def sweep(self):
        pass


class HearsNoEnd(Tracking):
    """Ends are left to the sweep."""

    def ended(self, pid):
        pass


class KeepsOldRules(Tracking):
    """What was registered under rules that are replaced stays."""

    def replace(self, rules):
        self.rules = rules
        self.look_at_all()


class LooksForNothingNew(Tracking):
    """Running processes are not looked at under new rules."""

    def replace(self, rules):
        self.rules = rules
        self._registry.release(self._wanted, run=self._run)


class TrustsThePath(Tracking):
    """A path in the maps is looked up in the process's root, though it may be another file there, or none."""

    def _hold(self, pid, born, sighting, rule, run):
        super()._hold(pid, born, sighting._replace(seen_at=""), rule, run)


class GivesUpOnAMissingPath(Tracking):
    """An opened path that is no longer there is not looked for among what the process has."""

    def look_at(self, pid):
        if not getattr(self, "silent", False):
            super().look_at(pid)

    def opened(self, *given):
        self.silent = True
        super().opened(*given)
        self.silent = False


TRACKINGS = [
    TakesTheLastRule,
    WatchesItself,
    BelievesTheNumber,
    ForgetsWhoIsAlive,
    SweepsNothing,
    HearsNoEnd,
    KeepsOldRules,
    LooksForNothingNew,
    TrustsThePath,
    GivesUpOnAMissingPath,
]


SEARCH = settings(
    max_examples=3000,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)
"""For what is to fail: not shrunk and not kept, for that it fails is all that is asked."""


def found(machine: type[RuleBasedStateMachine], broken: object, steps: int = 30) -> bool:
    """Does the machine fail with this in it?"""
    tested = type("Broken", (machine,), {"make": staticmethod(broken)})
    chosen = settings(SEARCH, stateful_step_count=steps)
    try:
        run_state_machine_as_test(tested, settings=chosen)
    except (Exception, pytest.fail.Exception):
        return True
    return False


@pytest.mark.parametrize("broken", CORES, ids=lambda c: c.__name__)
def test_a_broken_registry_is_found(broken):
    assert found(RegistryMachine, registry_of(broken))


@pytest.mark.parametrize("broken", INTERLEAVED, ids=lambda c: c.__name__)
def test_a_core_broken_between_two_callbacks_is_found(broken):
    assert found(CoreMachine, broken, steps=40)


@pytest.mark.parametrize(
    "change",
    [{"register": swallows}, {"register": looks_at_the_file_last}, {"_drive": deactivates_not_after_failure}],
    ids=lambda change: next(iter(change.values())).__name__,
)
def test_a_broken_shell_is_found(change):
    assert found(RegistryMachine, registry_of(Core, **change))


def test_a_registry_that_knows_files_by_their_paths_is_found(monkeypatch):
    known = {}
    monkeypatch.setattr(
        "harness.watcher.registry.identity",
        lambda path: known.setdefault(str(path), (len(known), Path(path).stat().st_ino)),
    )
    assert found(RegistryMachine, FileRegistry)


@pytest.mark.parametrize("broken", TRACKINGS, ids=lambda c: c.__name__)
def test_a_broken_watcher_is_found(broken):
    assert found(WatcherMachine, broken)


def test_those_that_are_not_broken_are_not_found():
    """The same searches, but shorter, on the real ones."""
    for machine in (RegistryMachine, CoreMachine, WatcherMachine):
        run_state_machine_as_test(machine, settings=settings(max_examples=20, database=None, deadline=None))
