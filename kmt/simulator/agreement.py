"""(pure) Gates and profiles held against each other: a gate that a recorded kernel contradicts, and a difference
between two of them that no gate explains.

Law: what a profile does not tell contradicts nothing; a known backport is no contradiction.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kmt.simulator import gates as table
from kmt.simulator.facts import Fact, Sort, Value, recorded
from kmt.simulator.gates import Gate, Gates, Series
from kmt.simulator.profile import Profile


@dataclass(frozen=True)
class Mismatch:
    """A recorded kernel that is not as the gates say."""

    fact: Fact
    release: str
    recorded: Value
    why: str

    def __str__(self) -> str:
        return f"{self.release} was recorded with {self.fact}: {self.recorded}; the gate says otherwise: {self.why}"


def mismatches(profiles: Mapping[str, Profile], gates: Gates) -> Iterator[Mismatch]:
    """Every gate against every profile."""
    for name, profile in profiles.items():
        version = table.series(name)
        for gate in gates.gates.values():
            if (gate.fact, version) not in gates.backports:
                yield from _plain(gate, version, profile, gates)
        for kind, helper in sorted(gates.calls):
            yield from _call(kind, helper, version, profile, gates)


def _plain(gate: Gate, version: Series, profile: Profile, gates: Gates) -> Iterator[Mismatch]:
    said = recorded(profile, gate.fact)
    lacking = [option for option in gates.needs.get(gate.fact, ()) if profile.config.get(option, "n") == "n"]
    if said is not None and said != (gate.open(version) and not lacking):
        why = f"needs CONFIG_{lacking[0]}" if lacking else gate.why(version)
        yield Mismatch(gate.fact, profile.release, said, why)


def _call(kind: str, helper: str, version: Series, profile: Profile, gates: Gates) -> Iterator[Mismatch]:
    fact = Fact(Sort.CALL, f"{kind} {helper}")
    said = recorded(profile, fact)
    parts = [gates.gates.get(Fact(Sort.PROGRAM_TYPE, kind)), gates.gates.get(Fact(Sort.HELPER, helper))]
    due = all(part is not None and part.open(version) for part in parts)
    if said is not None and said != due:
        yield Mismatch(fact, profile.release, said, "; ".join(part.why(version) if part else "?" for part in parts))


def unexplained(profiles: Mapping[str, Profile], gates: Gates) -> Iterator[str]:
    """What differs between two neighbouring profiles, and no gate says where; and gates for what does not differ."""
    for older, newer in itertools.pairwise(sorted(profiles, key=table.series)):
        pair = (profiles[older], profiles[newer])
        for fact in sorted(asked_of(pair)):
            sides = [recorded(profile, fact) for profile in pair]
            if None in sides:
                continue
            explained = _explained(fact, older, newer, gates)
            if sides[0] != sides[1] and not explained:
                yield f"{fact} differs between {older} and {newer}"
            if sides[0] == sides[1] and explained and fact.sort is Sort.SIGNATURE:
                yield f"{fact} is the same in {older} and {newer}, and is said to have changed"


def _explained(fact: Fact, older: str, newer: str, gates: Gates) -> bool:
    if fact.sort is not Sort.SIGNATURE:
        return fact in gates.gates or fact in gates.ungated
    first, last = table.series(older), table.series(newer)
    changes = [change for change in gates.changed.get(fact.name, ()) if first < change.version <= last]
    return len(changes) == 1 or Fact(Sort.SIGNATURE, f"{fact.name} {older} {newer}") in gates.ungated


def asked_of(pair: tuple[Profile, Profile]) -> set[Fact]:
    """The facts that two profiles can differ in and that gates are for."""
    found: set[Fact] = set()
    for profile in pair:
        helpers = profile.other_helpers.union(*profile.helpers.values())
        for sort, names in (
            (Sort.PROGRAM_TYPE, profile.program_types), (Sort.MAP_TYPE, profile.map_types), (Sort.HELPER, helpers),
            (Sort.ATTACH_TYPE, profile.attach_types), (Sort.FUNCTION, profile.functions),
            (Sort.SIGNATURE, profile.functions), (Sort.MARK, profile.marks),
        ):  # fmt: skip
            found |= {Fact(sort, name) for name in names}
    return found
