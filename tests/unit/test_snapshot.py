"""Snapshots of a watcher: what changes says is what is different, and rules count what they do."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.telemetry import Registry
from harness.watcher.identity import FilePath, PathIdentifier
from harness.watcher.registry import FileRegistry, TracedFile
from harness.watcher.rules import Rule
from harness.watcher.snapshot import RuleHits, Snapshot, Tally, changes
from harness.watcher.tls import Traffic

ids = st.builds(PathIdentifier, st.just(1), st.integers(1, 4))
files = st.dictionaries(ids, st.tuples(st.sampled_from(["/a", "/b"]), st.sets(st.integers(1, 3), min_size=1))).map(
    lambda found: {id: TracedFile(id, path, tuple(sorted(pids))) for id, (path, pids) in found.items()}
)
snapshots = st.builds(
    Snapshot,
    files,
    st.dictionaries(ids, st.sampled_from(["/x", "/y"])),
    st.dictionaries(st.integers(1, 4), st.builds(Traffic, st.integers(0, 2), st.integers(0, 2))),
    st.dictionaries(st.sampled_from(["p", "q"]), st.builds(RuleHits, st.integers(1, 2), st.integers(0, 1))),
)


def applied(before: Snapshot, said: list[dict[str, Any]]) -> Snapshot:
    """What somebody knows who only reads the lines."""
    known = Snapshot(*(dict(part) for part in vars(before).values()))
    for line in said:
        event = line.pop("event")
        if event in ("library", "blocked"):
            id = PathIdentifier(line["dev"], line["inode"])
            part: Any = known.files if event == "library" else known.blocked
            part.pop(id, None)
            if event == "library" and line["pids"]:
                part[id] = TracedFile(id, line["path"], tuple(line["pids"]))
            elif event == "blocked" and line["path"] is not None:
                part[id] = line["path"]
        elif event == "traffic":
            ended, pid = line.pop("ended"), line.pop("pid")
            known.traffic.pop(pid, None)  # type: ignore[attr-defined]
            if not ended:
                known.traffic[pid] = Traffic(**line)  # type: ignore[index]
        else:
            name = line.pop("rule")
            known.rules[name] = RuleHits(**line)  # type: ignore[index]
    return known


@given(snapshots, snapshots)
def test_what_has_changed_makes_the_second_of_the_first(before: Snapshot, after: Snapshot) -> None:
    lines = changes(before, after)
    kept = {pattern: hits for pattern, hits in before.rules.items() if pattern not in after.rules}
    told = applied(before, [dict(line) for line in lines])
    assert (told.files, told.blocked, told.traffic) == (after.files, after.blocked, after.traffic)
    assert told.rules == {**after.rules, **dict.fromkeys(kept, RuleHits())}
    keys = [(line["event"], line.get("inode"), line.get("pid"), line.get("rule")) for line in lines]
    assert len(set(keys)) == len(keys)


@given(snapshots)
def test_nothing_is_said_of_what_stays(snapshot: Snapshot) -> None:
    assert changes(snapshot, snapshot) == []


def test_rules_count_what_they_do() -> None:
    done: list[str] = []

    def refuse(_: FilePath) -> None:
        raise ValueError("no")

    tally = Tally()
    good, bad = tally.counting(
        [
            Rule.of("good", lambda _: done.append("on"), lambda _: done.append("off")),
            Rule.of("bad", refuse, lambda _: done.append("cleaned")),
        ]
    )
    file = FilePath(PathIdentifier(1, 2))
    assert tally.hits() == {"good": RuleHits(), "bad": RuleHits()}
    good.activate(file)
    good.deactivate(file)
    with pytest.raises(ValueError, match="no"):
        bad.activate(file)
    bad.deactivate(file)
    assert done == ["on", "off", "cleaned"]
    assert tally.hits() == {"good": RuleHits(1, 0, 1), "bad": RuleHits(0, 1, 1)}


def test_a_snapshot_of_a_registry() -> None:
    registry = FileRegistry("x", metrics=Registry())
    registry.blocklist.add(PathIdentifier(1, 1), "/blocked")
    registry.register(__file__, os.getpid(), lambda _: None, lambda _: None)
    now = Snapshot.of(registry, Tally())
    assert [(file.path, file.pids) for file in now.files.values()] == [(__file__, (os.getpid(),))]
    assert now.blocked == {PathIdentifier(1, 1): "/blocked"}
    assert now.traffic == {}
