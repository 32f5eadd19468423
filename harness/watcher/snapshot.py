"""What a watcher holds at one moment, and what is different at the next: for faces that show it.

Laws: ``changes`` of two snapshots, applied to the first, is the second: every library, blocked file, process with
traffic and rule that is new, different or gone is in it once, and nothing that stayed the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock

from harness.watcher.identity import FilePath, PathIdentifier
from harness.watcher.registry import FileRegistry, TracedFile
from harness.watcher.rules import Rule
from harness.watcher.tls import TlsProbes, Traffic


@dataclass
class RuleHits:
    """How often a rule's callbacks have run: well, badly, and to take off again."""

    activated: int = 0
    failed: int = 0
    deactivated: int = 0


class Tally:
    """Rules that count what they do, for any rules."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._hits: dict[str, RuleHits] = {}

    def counting(self, rules: Iterable[Rule]) -> tuple[Rule, ...]:
        """The same rules, counted by their pattern."""
        return tuple(self._counted(rule) for rule in rules)

    def hits(self) -> dict[str, RuleHits]:
        """A copy of the counts, in the order of the rules."""
        with self._lock:
            return {pattern: RuleHits(**vars(hits)) for pattern, hits in self._hits.items()}

    def _counted(self, rule: Rule) -> Rule:
        hits = self._hits.setdefault(rule.pattern.pattern, RuleHits())

        def activate(file: FilePath) -> None:
            try:
                rule.activate(file)
            except BaseException:
                with self._lock:
                    hits.failed += 1
                raise
            with self._lock:
                hits.activated += 1

        def deactivate(file: FilePath) -> None:
            with self._lock:
                hits.deactivated += 1
            rule.deactivate(file)

        return Rule(rule.pattern, activate, deactivate)


@dataclass(frozen=True)
class Snapshot:
    """One moment. ``traffic`` is plaintext by process, where TLS libraries are hooked."""

    files: Mapping[PathIdentifier, TracedFile] = field(default_factory=dict)
    blocked: Mapping[PathIdentifier, str] = field(default_factory=dict)
    traffic: Mapping[int, Traffic] = field(default_factory=dict)
    rules: Mapping[str, RuleHits] = field(default_factory=dict)

    @classmethod
    def of(cls, registry: FileRegistry, tally: Tally, probes: TlsProbes | None = None) -> Snapshot:
        """Now. The parts are looked at one after another."""
        return cls(
            {file.id: file for file in registry.traced()},
            dict(registry.blocklist.entries()),
            probes.traffic() if probes is not None else {},
            tally.hits(),
        )


def changes(before: Snapshot, after: Snapshot) -> list[dict[str, object]]:
    """(pure) What is different, as values for JSON: ``event`` says of what kind each is.

    ``library`` and ``blocked`` (``pids`` empty or ``path`` null: no longer), ``traffic``, ``rule``.
    """
    found: list[dict[str, object]] = []

    def compare(event: str, old: Mapping, new: Mapping, words: Callable) -> None:  # type: ignore[type-arg]
        for key in [*new, *(key for key in old if key not in new)]:
            if old.get(key) != new.get(key):
                found.append({"event": event, **words(key, new.get(key), old.get(key))})

    compare("library", before.files, after.files, _library)
    compare("blocked", before.blocked, after.blocked, lambda id, path, _: {**id._asdict(), "path": path})
    compare("traffic", before.traffic, after.traffic, _traffic)
    compare("rule", before.rules, after.rules, lambda name, hits, _: {"rule": name, **vars(hits or RuleHits())})
    return found


def _library(id: PathIdentifier, now: TracedFile | None, then: TracedFile | None) -> dict[str, object]:
    file = now or then
    assert file is not None
    return {**id._asdict(), "path": file.path, "pids": list(now.pids) if now else []}


def _traffic(pid: int, now: Traffic | None, then: Traffic | None) -> dict[str, object]:
    moved = now or then
    assert moved is not None
    return {"pid": pid, **moved._asdict(), "ended": now is None}
