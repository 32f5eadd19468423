"""Blocklists, watchers that end badly and process monitors, broken on purpose: their tests must find each.

Each class says what it breaks. Those of the registry and of tracking: ``test_broken_registries``.
"""

from __future__ import annotations

import pytest
import test_blocklist
import test_process_monitor_machine as monitor_tests
import watcher_rig
from hypothesis import given, settings
from proc_world import ProcWorld
from test_broken_registries import SEARCH, found
from test_watcher_machine import ThreadedWatcherMachine
from watcher_rig import Script

from harness.processes.monitor import ProcessMonitor
from harness.watcher.blocklist import Blocklist
from harness.watcher.tracking import Tracking
from harness.watcher.watcher import Watcher

pytestmark = pytest.mark.host_only


class EvictsTheNewest(Blocklist):
    """Where there is no room, what has just come goes."""

    def add(self, id, sample_path):
        if len(self) < self.capacity or self.sample_path(id) is not None:
            super().add(id, sample_path)


class EvictsNothing(Blocklist):
    """It grows."""

    def add(self, id, sample_path):
        self.capacity += 1
        super().add(id, sample_path)
        self.capacity -= 1


class RefreshesNothing(Blocklist):
    """A look-up is no use."""

    def sample_path(self, id):
        return dict(self.entries()).get(id)


class RefreshesWhatIsListed(Blocklist):
    """Listing is use (as in the original)."""

    def entries(self):
        listed = super().entries()
        for id, _ in listed[:1]:
            self.sample_path(id)
        return listed


BLOCKLISTS = [EvictsTheNewest, EvictsNothing, RefreshesNothing, RefreshesWhatIsListed]


class KeepsTheMonitor(Watcher):
    """A stop that lets go of everything but its user's place at the monitor."""

    def _end(self):
        monitor, self._monitor = self._monitor, None
        super()._end()
        self._monitor = monitor


class LetsGoTwice(Watcher):
    """Every stop lets go of the monitor and the program."""

    def stop(self):
        self._stopped = False
        super().stop()


class KeepsTheProgram(Watcher):
    """The program stays in the kernel."""

    def _end(self):
        self.program = None
        super()._end()


WATCHERS = [KeepsTheMonitor, LetsGoTwice, KeepsTheProgram]


class GoesBelowNone(ProcessMonitor):
    """One stop too many is remembered."""

    def stop(self):
        super().stop()
        self._users -= not self._users


class EndsWithTheFirst(ProcessMonitor):
    """The first stop ends it, whoever else uses it."""

    def stop(self):
        users, self._users = self._users, min(self._users, 1)
        super().stop()
        self._users = max(0, users - 1)


class NeverStartsAgain(ProcessMonitor):
    """After its end it stays ended."""

    def start(self):
        if not getattr(self, "begun", False):
            self.begun = True
            super().start()


class CountsNoLoss(ProcessMonitor):
    """Callbacks that find no room are dropped in silence."""

    def _lost(self, number=1):
        pass


class LosesNothing(ProcessMonitor):
    """The queue has no bound."""

    def __init__(self, *given, **more):
        super().__init__(*given, **{**more, "queue": 0})


COUNTING = [GoesBelowNone, EndsWithTheFirst, NeverStartsAgain]
DROPPING = [CountsNoLoss, LosesNothing]


@pytest.fixture
def monitors(monkeypatch):
    """Has a module make monitors of that class; those that a failed test leaves running are ended."""
    made = []
    monkeypatch.setattr("harness.processes.monitor._PATIENCE", 0.1)

    def use(module, kind):
        monkeypatch.setattr(
            module, "ProcessMonitor", lambda *given, **more: made.append(kind(*given, **more)) or made[-1]
        )

    yield use
    for monitor in made:
        if monitor._session is not None:
            monitor._session.end()


@pytest.mark.parametrize("broken", BLOCKLISTS, ids=lambda c: c.__name__)
def test_a_broken_blocklist_is_found(broken, monkeypatch):
    monkeypatch.setattr(test_blocklist, "Blocklist", broken)
    assert found(test_blocklist.LruMachine, None)


@pytest.mark.parametrize("broken", WATCHERS, ids=lambda c: c.__name__)
def test_a_watcher_that_does_not_stop_well_is_found(broken, monkeypatch, monitors):
    monitors(watcher_rig, ProcessMonitor)
    monkeypatch.setattr(watcher_rig, "Watcher", broken)
    assert found(ThreadedWatcherMachine, Tracking, steps=3)


@pytest.mark.parametrize("broken", COUNTING, ids=lambda c: c.__name__)
def test_a_monitor_that_miscounts_its_users_is_found(broken, monitors):
    monitors(monitor_tests, broken)
    test = monitor_tests.test_users_are_counted_and_the_last_stop_ends_it.hypothesis.inner_test
    with pytest.raises(AssertionError):
        settings(SEARCH, max_examples=300)(given(monitor_tests.doings)(test))()


@pytest.mark.parametrize("broken", DROPPING, ids=lambda c: c.__name__)
def test_a_monitor_that_hides_what_it_drops_is_found(broken, monitors):
    monitors(monitor_tests, broken)
    with ProcWorld() as world:
        world.end(world.own)
        with pytest.raises(AssertionError):
            monitor_tests.test_a_full_queue_loses_callbacks_but_blocks_nobody(Script(), world)
