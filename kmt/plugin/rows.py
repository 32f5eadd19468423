"""Which kernels a session has, and which of them are simulated from the start and why.

Laws: what is simulated says so in its name (``5.15-simulated``); ``qemu`` and ``--kernel-strict`` simulate nothing that
was not asked for by that name; ``auto`` simulates a row only for a reason that it can name, never an image of the
user's own nor a machine, and leaves alone what cannot be simulated either. A row that turns out not to be had later is
``kmt/run/kernel.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kmt.backends import AUTO, simulated
from kmt.errors import ConfigError, KmtError
from kmt.hints import task
from kmt.matrix import SIMULATED, Matrix, Row
from kmt.matrix import simulated as as_simulated

HOST = "host"
"""The word for this machine's own kernel, and the backend that runs it."""


@dataclass(frozen=True)
class Rows:
    """``strict`` are names whose absence is an error; ``instead`` says of simulated rows what they stand for, why."""

    rows: tuple[Row, ...]
    strict: frozenset[str]
    instead: Mapping[str, str] = field(default_factory=dict)
    fall_back: bool = False
    """A row that cannot be had later on is simulated then."""

    @property
    def names(self) -> list[str]:
        """In their order."""
        return [row.name for row in self.rows]

    def may_be_simulated(self, row: Row) -> bool:
        """Where it turns out not to be had; one that was asked for as a simulated one too would be there twice."""
        taken = row.name + SIMULATED in self.names
        return self.fall_back and not taken and _is_from_an_archive(row) and can_be_simulated(row)


def choose(words: Sequence[str], catalogue: Matrix, backend: str, *, said: str | None, strict: bool) -> Rows:
    """The rows that the words of ``--kernel`` mean. Raises ConfigError, CannotTellError or ProfileError.

    ``backend`` is the one in force, ``said`` what the command line says of it.
    """
    if said == "qemu" and (odd := [word for word in words if word.endswith(SIMULATED)]):
        raise ConfigError(f"{odd[0]} asks for what --kernel-backend qemu never does", hint="leave one of them out")
    named = {word.removeprefix("v") for word in words}
    if backend == simulated.NAME:
        words = [word if word == HOST or word.endswith(SIMULATED) else word + SIMULATED for word in words]
    others = [word for word in words if word != HOST]
    rows = [Row(HOST)] if HOST in words else []
    rows += catalogue.select(others) if others else []
    if not rows:
        raise ConfigError("--kernel names no kernel", hint=f"pytest --kernel default; {task('ls')} lists them")
    for row in rows:
        if row.simulated:
            simulated.kernel(row)  # a version that nobody can tell of is said before anything is collected
    fall_back = backend == AUTO and not strict
    why = _missing(rows) if fall_back else {}
    rows = [as_simulated(row) if row.name in why else row for row in rows]
    must = {row.name for row in rows if strict or {row.name, row.name.removesuffix(SIMULATED)} & named}
    instead = {name + SIMULATED: reason for name, reason in why.items()}
    unique = tuple({row.name: row for row in rows}.values())
    return Rows(unique, frozenset(must), instead, fall_back)


def _missing(rows: Sequence[Row]) -> dict[str, str]:
    """The rows of which it is known already that they cannot be had, and that can be simulated; with why."""
    wanted = [row for row in rows if _is_from_an_archive(row)]
    no_machine = simulated.no_machine() if wanted else ""
    found = {}
    for row in wanted:
        why = no_machine or ("" if row.suites else row.note or "no archive is named for it")
        if why and can_be_simulated(row):
            found[row.name] = why
    return found


def _is_from_an_archive(row: Row) -> bool:
    """It is, or would be if an archive had it: no image, no machine that runs already."""
    return bool(row.series) and row.image is None and not row.runs_at and not row.simulated


def can_be_simulated(row: Row) -> bool:
    """Enough is known of its series."""
    try:
        simulated.kernel(as_simulated(row))
    except KmtError:
        return False
    return bool(row.series)
