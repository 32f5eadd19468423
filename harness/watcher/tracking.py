"""What the watcher does with a path that a process opened, with a process to look at, and with one that has ended.

Laws: a process is registered with the time it began: found under its number, another one is not it; a registration
that an end overtook is taken back at once; so is one under rules that were replaced meanwhile; whatever a file or a
``/proc`` entry does is counted, never raised, but for ``attach`` and ``detach``, whose callers asked. Every method
may be called from any thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from threading import Lock, RLock

from harness.errors import HarnessError
from harness.processes import procfs
from harness.telemetry.metrics import PROMETHEUS, MetricGroup, Registry
from harness.watcher.errors import (
    AlreadyStoppedError,
    AttachError,
    NoRuleMatchedError,
    PathBlockedError,
    PidNotRegisteredError,
)
from harness.watcher.registry import FileRegistry, Registered, Runner
from harness.watcher.rules import Rule, first_match
from harness.watcher.scan import Sighting, sightings

_GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)

_log = logging.getLogger(__name__)


class Tracking:
    """See the module. ``run`` has callbacks run by other threads."""

    def __init__(
        self, registry: FileRegistry, rules: tuple[Rule, ...], run: Runner, *, proc_root: str, metrics: Registry
    ) -> None:
        self.rules = rules
        self._registry = registry
        self._run = run
        self._proc_root = proc_root
        self._own = procfs.own_pid(proc_root)
        if not self._own:
            _log.warning("shared libraries: %s/self does not say which process this is", proc_root)
        self._replacing = Lock()
        self._lock = RLock()
        self._births: dict[int, int] = {}
        """When each process that may hold a file began."""
        group = MetricGroup("usm.so_watcher", PROMETHEUS, registry=metrics)
        self.hits = group.counter("hits", help="Opens of libraries by other processes that were handled.")
        self.matches = group.counter("matches", help="Opens that a rule asked for.")
        self.vanished = group.counter("vanished", help="Processes and files that were gone when they were looked at.")
        self.unreadable = group.counter("unreadable", help="Processes and files that may not be looked at.")
        self.failed = group.counter("failed", help="Processes and files that could not be looked at for other reasons.")
        self.reused = group.counter("reused_pids", help="Process numbers found with another process than before.")
        self.swept = group.counter("swept", help="Processes whose end was only found by looking.")

    def opened(self, pid: int, path: str, times: int = 1) -> None:
        """A process has opened a file, so often."""
        if pid == self._own:
            return
        self.hits.add(times)
        rules = self.rules
        rule = first_match(rules, path)
        if rule is None:
            return
        self.matches.add(times)
        born = self._born(pid)
        if born is None:
            return
        try:
            self._hold(pid, born, Sighting(path, ""), rule, self._run)
        except _GONE:
            # Renamed since, relative to what is no longer its directory, or to one that it named by descriptor.
            self.look_at(pid)
        except AlreadyStoppedError:
            return
        except (OSError, HarnessError) as error:
            self._count(error)
        self._still(rules)

    def look_at_all(self) -> None:
        """Register what running processes have open or mapped, this one apart."""
        try:
            running = procfs.pids(self._proc_root)
        except OSError as error:
            self._count(error)
            return
        for pid in running:
            if self._registry.stopped:
                return
            if pid != self._own:
                self.look_at(pid)

    def look_at(self, pid: int) -> None:
        """Register what process ``pid`` has open or mapped."""
        rules = self.rules
        born = self._born(pid)
        if born is None:
            return
        try:
            for sighting, rule in self._matching(pid, rules):
                try:
                    self._hold(pid, born, sighting, rule, self._run)
                except AlreadyStoppedError:
                    return
                except (OSError, HarnessError) as error:
                    self._count(error)
        except OSError as error:
            self._count(error)
        self._still(rules)

    def attach(self, pid: int) -> None:
        """Register what process ``pid`` has open or mapped, in this thread. Raises as ``Watcher.attach_pid`` says."""
        rules, attached, errors = self.rules, 0, list[Exception]()
        status = procfs.status(self._proc_root, pid)
        for sighting, rule in self._matching(pid, rules):
            try:
                self._hold(pid, status.born if status else 0, sighting, rule, None)
                attached += 1
            except Exception as error:
                errors.append(error)
        self._still(rules)
        if errors:
            raise AttachError(pid, attached, errors)
        if not attached:
            raise NoRuleMatchedError(f"no rules matched for pid {pid}")

    def detach(self, pid: int) -> None:
        """Forget process ``pid``; PidNotRegisteredError if it holds nothing."""
        with self._lock:
            self._births.pop(pid, None)
            self._registry.unregister(pid, run=self._run)

    def ended(self, pid: int) -> None:
        """The monitor says that process ``pid`` is over."""
        born = self._births.get(pid)
        if born is not None and procfs.is_over(self._proc_root, pid, born):
            self._forget(pid, born)

    def sweep(self) -> None:
        """Forget processes that are over."""
        strangers = dict.fromkeys(self._registry.registered_processes() - self._births.keys(), 0)
        for pid, born in [*self._births.items(), *strangers.items()]:
            if procfs.is_over(self._proc_root, pid, born):
                self.swept.add(self._forget(pid, born))

    def replace(self, rules: tuple[Rule, ...]) -> None:
        """Put other rules in force."""
        with self._replacing:
            self.rules = rules
            self._registry.release(self._wanted, run=self._run)
        self.look_at_all()

    def _matching(self, pid: int, rules: tuple[Rule, ...]) -> Iterator[tuple[Sighting, Rule]]:
        for sighting in sightings(self._proc_root, pid, lambda path: first_match(rules, path) is not None):
            rule = first_match(rules, sighting.path)
            if rule is not None:
                yield sighting, rule

    def _hold(self, pid: int, born: int, sighting: Sighting, rule: Rule, run: Runner | None) -> None:
        with self._lock:
            known = self._births.get(pid)
            if known != born:
                self._births[pid] = born
                if known is not None:
                    self.reused.add()
                    with suppress(PidNotRegisteredError):
                        self._registry.unregister(pid, run=self._run)
        path, seen_at = sighting
        self._registry.register(path, pid, rule.activate, rule.deactivate, seen_at=seen_at, run=run)
        if procfs.is_over(self._proc_root, pid, born):
            self._forget(pid, born)

    def _forget(self, pid: int, born: int) -> bool:
        """Was it registered?"""
        with self._lock, suppress(PidNotRegisteredError, AlreadyStoppedError):
            if self._births.get(pid, born) == born:
                self._births.pop(pid, None)
                self._registry.unregister(pid, run=self._run)
                return True
        return False

    def _born(self, pid: int) -> int | None:
        try:
            status = procfs.status(self._proc_root, pid)
        except OSError as error:
            self._count(error)
            return None
        if status is None:
            self.vanished.add()
            return None
        return status.born

    def _wanted(self, registered: Registered) -> bool:
        path, activate, deactivate = registered
        rule = first_match(self.rules, path)
        return rule is not None and (rule.activate, rule.deactivate) == (activate, deactivate)

    def _still(self, rules: tuple[Rule, ...]) -> None:
        """What has just been registered under ``rules`` must be wanted by those in force."""
        if rules is not self.rules:
            self._registry.release(self._wanted, run=self._run)

    def _count(self, error: Exception) -> None:
        """Count what kept a file from being registered. (The registry counts blocked files and failed activations.)"""
        if isinstance(error, _GONE):
            self.vanished.add()
        elif isinstance(error, PermissionError):
            self.unreadable.add()
        elif not isinstance(error, PathBlockedError):
            self.failed.add()
        _log.debug("shared libraries: %s", error)
