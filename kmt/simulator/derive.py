"""(pure) What is known of a version of Linux, recorded or not: from the profiles on either side, and from gates.

A kernel that nobody recorded is taken to be configured as its neighbours are. Laws: an answer says where it is from:
*recorded* in a kernel of that series, *gated* by a change with a source, or *interpolated*, because the recorded
kernels on both sides agree; what was recorded wins over gates; where neither decides, CannotTellError names what is
missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from kmt.errors import CannotTellError
from kmt.simulator import gates as table
from kmt.simulator.facts import Fact, Sort, Value, recorded
from kmt.simulator.gates import Gate, Gates, Series, spelled
from kmt.simulator.profile import Profile


class Label(StrEnum):
    """Where an answer is from."""

    RECORDED = "recorded"
    GATED = "gated"
    INTERPOLATED = "interpolated"


@dataclass(frozen=True)
class Told:
    """An answer; ``why`` names the profile, the gate or the neighbours."""

    value: Value
    label: Label
    why: str


class KernelFacts:
    """One series of kernels, to be asked. ``profiles`` are by series."""

    def __init__(self, version: str, profiles: Mapping[str, Profile], gates: Gates) -> None:
        self.version: Series = table.series(version)
        self.gates = gates
        self._profiles = profiles
        known = sorted((table.series(name), profile) for name, profile in profiles.items()) if profiles else []
        self._own = next((p for s, p in known if s == self.version), None)
        self._older = next(((s, p) for s, p in reversed(known) if s < self.version), None)
        self._newer = next(((s, p) for s, p in known if s > self.version), None)

    def of(self, version: Series) -> KernelFacts:
        """Another series, by the same profiles and gates."""
        return KernelFacts(spelled(version), self._profiles, self.gates)

    def ask(self, fact: Fact) -> Told:
        """The answer. Raises CannotTellError."""
        if self._own is not None:
            value = recorded(self._own, fact)
            if value is not None:
                return Told(value, Label.RECORDED, self._own.release)
        if fact.sort is Sort.SIGNATURE:
            return self._signature(fact)
        if fact.sort is Sort.OPTION:
            return self._option(fact)
        if fact.sort is Sort.CALL:
            return self._call(fact)
        gate = self.gates.gates.get(fact)
        return self._interpolated(fact) if gate is None else self._gated(gate)

    def told(self, fact: Fact) -> Told | None:
        """The answer, or None."""
        try:
            return self.ask(fact)
        except CannotTellError:
            return None

    def needs(self, fact: Fact) -> tuple[str, ...]:
        """The options without which it is not compiled in."""
        return self.gates.needs.get(fact, ())

    def _sides(self, fact: Fact) -> list[Value]:
        """What the neighbours say, both or none."""
        if self._older is None or self._newer is None:
            return []
        values = [recorded(profile, fact) for _, profile in (self._older, self._newer)]
        return [value for value in values if value is not None] if None not in values else []

    def _neighbours(self) -> str:
        return " and ".join(spelled(side[0]) for side in (self._older, self._newer) if side is not None)

    def _interpolated(self, fact: Fact) -> Told:
        sides = self._sides(fact)
        if sides and sides[0] == sides[1]:
            return Told(sides[0], Label.INTERPOLATED, f"as in {self._neighbours()}")
        raise self._unknown(fact)

    def _unknown(self, fact: Fact) -> CannotTellError:
        why = "no gate says"
        if self._sides(fact):
            why = f"it differs between {self._neighbours()}, and no gate says where"
        elif self._own is not None:
            why = f"it could not be told of {self._own.release}"
        return CannotTellError(f"{fact} of Linux {spelled(self.version)}: {why}")

    def _gated(self, gate: Gate) -> Told:
        sides = self._sides(gate.fact)
        if not gate.open(self.version):
            if sides == [True, True]:  # a distribution has carried it back, and so the next has it too
                return Told(True, Label.INTERPOLATED, f"carried back: as in {self._neighbours()}")
            return Told(False, Label.GATED, gate.why(self.version))
        for option in self.gates.needs.get(gate.fact, ()):
            if self.ask(Fact(Sort.OPTION, option)).value == "n":
                return Told(False, Label.GATED, f"needs CONFIG_{option}")
        return Told(True, Label.GATED, gate.why(self.version))

    def _option(self, fact: Fact) -> Told:
        """As its neighbours are configured; at either end of what was recorded, as the only one."""
        values = {recorded(side[1], fact) for side in (self._older, self._newer) if side is not None}
        if len(values) == 1 and None not in values:
            (value,) = values
            assert value is not None
            return Told(value, Label.INTERPOLATED, f"as in {self._neighbours()}")
        raise self._unknown(fact)

    def _signature(self, fact: Fact) -> Told:
        """Of two neighbours that differ, the one on this side of the change."""
        sides = self._sides(fact)
        if sides and sides[0] == sides[1]:
            return Told(sides[0], Label.INTERPOLATED, f"as in {self._neighbours()}")
        changes = self.gates.changed.get(fact.name, ())
        here = [c for c in changes if self._older and self._newer and self._older[0] < c.version <= self._newer[0]]
        if len(sides) == 2 and len(here) == 1:
            return Told(sides[self.version >= here[0].version], Label.GATED, f"changed in {here[0]}")
        raise self._unknown(fact)

    def _call(self, fact: Fact) -> Told:
        kind, _, helper = fact.name.rpartition(" ")
        parts = [Fact(Sort.PROGRAM_TYPE, kind), Fact(Sort.HELPER, helper)]
        for part in parts:
            told = self.told(part)
            if told is not None and told.value is False:
                return Told(False, told.label, f"{part}: {told.why}")
        sides = self._sides(fact)
        if sides and sides[0] == sides[1]:
            return Told(sides[0], Label.INTERPOLATED, f"as in {self._neighbours()}")
        if (kind, helper) in self.gates.calls:
            return Told(True, Label.GATED, "; ".join(f"{part} {self.ask(part).why}" for part in parts))
        raise self._unknown(fact)
