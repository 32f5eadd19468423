"""(pure) Which tests share a guest: from what each test needs to units of work, one guest each.

Laws: every test is in exactly one unit, and a unit's tests keep their order; a test that wants a fresh kernel shares
it with nobody but, where a whole module is to be fresh, its module; longest first (LPT: the next longest piece goes
to the guest that has the least so far), so no guest has more than its even share and the longest piece besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kmt.backends.base import Machine

WORTH = 5.0
"""Seconds of tests without which another guest of the same kernel costs more than it saves."""
UNKNOWN = 1.0
"""Seconds of a test while nothing is known of any."""


@dataclass(frozen=True)
class Need:
    """What one test asks for. ``pristine``: a kernel that nobody has touched."""

    machine: Machine
    pristine: bool = False


@dataclass(frozen=True)
class Unit:
    """Tests that one guest runs. ``fresh``: they asked for a kernel that nobody has touched."""

    machine: Machine
    ids: tuple[str, ...]
    fresh: bool = False


def guests_each(kernels: int, slots: int) -> list[int]:
    """How many guests each kernel may have, so that no slot is idle: one while kernels queue, more for the last."""
    last = kernels % slots
    each, more = divmod(slots, last) if last else (1, 0)
    return [1] * (kernels - last) + [each + (number < more) for number in range(last)]


def units(
    needs: Mapping[str, Need], *, fresh: str, by: str, guests: int, seconds: Mapping[str, float]
) -> tuple[Unit, ...]:
    """The units for one kernel: shared guests by machine (fewest processors first), then the fresh ones.

    ``fresh`` and ``by`` are words of ``[tool.kmt]`` (``by`` is its ``spread``); ``guests`` is how many may run at
    once; ``seconds`` is what is known of how long tests take. The compiler is a disk that hurts nobody, and another
    boot would cost more: if one test wants it, all have it.
    """
    compiler = any(need.machine.compiler for need in needs.values())
    shared: dict[Machine, list[str]] = {}
    alone: dict[tuple[Machine, str], list[str]] = {}
    for nodeid, need in needs.items():
        machine = replace(need.machine, compiler=compiler)
        if need.pristine or fresh == "test":
            alone[machine, nodeid] = [nodeid]
        elif fresh == "module":
            alone.setdefault((machine, module_of(nodeid)), []).append(nodeid)
        else:
            shared.setdefault(machine, []).append(nodeid)
    made = []
    for machine, ids in sorted(shared.items(), key=lambda pair: pair[0].cpus):
        made += [Unit(machine, part) for part in parts(ids, by=by, guests=guests // machine.cpus, seconds=seconds)]
    made += [Unit(machine, tuple(ids), fresh=True) for (machine, _), ids in alone.items()]
    return tuple(made)


def parts(ids: Sequence[str], *, by: str, guests: int, seconds: Mapping[str, float]) -> list[tuple[str, ...]]:
    """The tests of one machine in at most ``guests`` parts, none of them empty; as many as are worth a guest."""
    known = [seconds[i] for i in ids if i in seconds]
    usual = sorted(known)[len(known) // 2] if known else UNKNOWN
    piece_of = {nodeid: {"module": module_of(nodeid), "test": nodeid}.get(by, "") for nodeid in ids}
    weights: dict[str, float] = {}
    for nodeid, piece in piece_of.items():
        weights[piece] = weights.get(piece, 0.0) + seconds.get(nodeid, usual)
    count = max(1, min(guests, len(weights), int(sum(weights.values()) / WORTH)))
    where = lpt(weights, count)
    made: list[list[str]] = [[] for _ in range(count)]
    for nodeid, piece in piece_of.items():
        made[where[piece]].append(nodeid)
    return [tuple(part) for part in made if part]


def lpt(weights: Mapping[str, float], count: int) -> dict[str, int]:
    """Which of ``count`` guests gets each piece. The same pieces in the same order go the same ways."""
    loads = [0.0] * count
    where = {}
    for piece in sorted(weights, key=lambda key: -weights[key]):
        least = loads.index(min(loads))
        where[piece] = least
        loads[least] += weights[piece]
    return where


def module_of(nodeid: str) -> str:
    """``tests/test_x.py`` of ``tests/test_x.py::TestY::test_z[a]``."""
    return nodeid.split("::", 1)[0]
