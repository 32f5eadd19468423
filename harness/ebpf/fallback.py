"""(pure) The fallback chain: which way of getting a program into the kernel is tried, in which order, and who won.

The table ``STAGES`` is the whole policy; ``next_stage`` reads it and is pure; ``climb`` does what it says.

Laws: stages are tried in the table's order, each at most once, and none after one that won; a stage that lost is a
warning exactly if another was tried after it; the error at the end is that of the last stage tried, wrapped in the
words of its row, or as it was where the row has none; the record names every stage and why it did not win.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from harness.errors import FallbackError

T = TypeVar("T")


class Stage(StrEnum):
    """A way to get the program."""

    CORE = "CO-RE"
    RUNTIME = "runtime"
    PREBUILT = "prebuilt"


@dataclass(frozen=True)
class Switches:
    """The four settings that steer the chain."""

    core: bool = True
    runtime: bool = False
    allow_runtime: bool = True
    allow_prebuilt: bool = True


@dataclass(frozen=True)
class Row:
    """A stage: when it is wanted (``lost`` are the stages that failed before it), whether another may follow its
    failure, and what its error is called if none may ("": the error stays as it is)."""

    stage: Stage
    wanted: Callable[[Switches, tuple[Stage, ...]], bool]
    may_fall: Callable[[Switches], bool]
    words: str


STAGES = (
    Row(
        Stage.CORE,
        wanted=lambda s, lost: s.core,
        may_fall=lambda s: s.allow_runtime or s.allow_prebuilt,
        words="co-re load failed",
    ),
    Row(
        Stage.RUNTIME,
        wanted=lambda s, lost: s.runtime or (Stage.CORE in lost and s.allow_runtime),
        may_fall=lambda s: s.allow_prebuilt,
        words="runtime compilation failed",
    ),
    # Reached even where it is not allowed, if no stage before it was enabled: something has to be tried.
    Row(Stage.PREBUILT, wanted=lambda s, lost: True, may_fall=lambda s: False, words=""),
)
_ROWS = {row.stage: row for row in STAGES}


@dataclass(frozen=True)
class Attempt:
    """What became of a stage. ``tried`` and not ``won``: ``error`` says why. Not tried: ``reason`` says why."""

    stage: Stage
    tried: bool
    won: bool = False
    error: Exception | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.won:
            return f"{self.stage}: won"
        return f"{self.stage}: {'failed: ' if self.tried else 'not tried: '}{self.error or self.reason}"


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """How the chain ended: ``winner`` with its ``value``, or ``error``. ``attempts`` has a line for every stage."""

    attempts: tuple[Attempt, ...]
    winner: Stage | None = None
    value: T | None = None
    error: Exception | None = None

    @property
    def tried(self) -> tuple[Stage, ...]:
        """The stages tried, in order."""
        return tuple(a.stage for a in self.attempts if a.tried)

    @property
    def warnings(self) -> int:
        """Failures that another attempt followed."""
        return max(0, len(self.tried) - 1)


def next_stage(switches: Switches, lost: tuple[Stage, ...]) -> Stage | None:
    """(pure) What to try after the stages in ``lost`` have failed, in that order; None: nothing may follow."""
    if lost and not _ROWS[lost[-1]].may_fall(switches):
        return None
    order = [row.stage for row in STAGES]
    later = STAGES[order.index(lost[-1]) + 1 :] if lost else STAGES
    return next((row.stage for row in later if row.wanted(switches, lost)), None)


def climb(switches: Switches, ways: Mapping[Stage, Callable[[], T]]) -> Outcome[T]:
    """Try the stages until one returns. Only exceptions of class Exception lose a stage; others pass through."""
    errors: dict[Stage, Exception] = {}
    while (stage := next_stage(switches, tuple(errors))) is not None:
        try:
            value = ways[stage]()
        except Exception as error:
            errors[stage] = error
        else:
            return Outcome(_record(errors, stage), stage, value)
    return Outcome(_record(errors, None), error=_last_error(errors))


def _last_error(errors: Mapping[Stage, Exception]) -> Exception:
    stage, error = list(errors.items())[-1]
    words = _ROWS[stage].words
    if not words:
        return error
    wrapped = FallbackError(f"{words}: {error}")
    wrapped.__cause__ = error
    return wrapped


def _record(errors: Mapping[Stage, Exception], winner: Stage | None) -> tuple[Attempt, ...]:
    attempts = []
    for row in STAGES:
        if row.stage is winner:
            attempts.append(Attempt(row.stage, tried=True, won=True))
        elif row.stage in errors:
            attempts.append(Attempt(row.stage, tried=True, error=errors[row.stage]))
        else:
            attempts.append(Attempt(row.stage, tried=False, reason=_why_not(row.stage, errors, winner)))
    return tuple(attempts)


def _why_not(stage: Stage, errors: Mapping[Stage, Exception], winner: Stage | None) -> str:
    order = [row.stage for row in STAGES]
    if winner and order.index(stage) > order.index(winner):
        return f"{winner} won before it"
    last = list(errors)[-1] if errors else None
    if winner is None and last and order.index(stage) > order.index(last):
        return f"no stage may follow {last}"
    return "not enabled"
