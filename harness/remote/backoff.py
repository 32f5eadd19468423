"""(pure) How long a polling client waits: the back-off and the schedule around it.

Laws: the error count stays in ``[0, max_errors]``; ``k`` successes after saturation reach 0 in
``ceil(max_errors / recovery)`` steps; a wait with ``n`` errors is 0 for ``n == 0``, in ``[t/2, t)`` for
``t = base * 2**n`` while that is at most ``maximum``, else exactly ``maximum``; before the first success a client
waits at most a second, counts no error and reports none.

Unlike the original, a base above the maximum gives a count that stays 0 (there it could become negative); both
never back off then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.errors import SettingsError

Uniform = Callable[[], float]
"""A source of uniform numbers in [0, 1), such as ``random.random``."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """The policy: seconds, doubled with each error, drawn from the upper part of the interval."""

    base: float
    maximum: float = 90.0
    min_factor: float = 2.0
    recovery: int = 2

    def __post_init__(self) -> None:
        if not (0 < self.base < math.inf and 0 < self.maximum < math.inf):
            raise SettingsError(f"back-off of base {self.base} s and maximum {self.maximum} s: both must be positive")
        if self.min_factor < 2 or self.recovery < 1:
            raise SettingsError("back-off: the factor is at least 2 and the recovery at least 1")

    @property
    def max_errors(self) -> int:
        """Errors that still make a difference; with one more the wait is the maximum anyhow."""
        count, seconds = 0, self.base
        while seconds <= self.maximum:
            count, seconds = count + 1, seconds * 2
        return count

    def inc(self, errors: int) -> int:
        """The count after one more error."""
        return min(errors + 1, self.max_errors)

    def dec(self, errors: int) -> int:
        """The count after a success."""
        return max(errors - self.recovery, 0)

    def seconds(self, errors: int, uniform: Uniform) -> float:
        """How long to wait, beyond the poll interval."""
        if errors <= 0:
            return 0.0
        if errors >= self.max_errors:
            return self.maximum
        top = self.base * 2.0**errors
        low = top / self.min_factor
        # The sum can round up to ``top``, which is outside the interval.
        return min(low + uniform() * (top - low), math.nextafter(top, 0.0))


@dataclass(frozen=True, slots=True)
class Schedule:
    """Where a polling client stands: its error count, and whether it has ever succeeded."""

    interval: float
    backoff: Backoff
    succeeded: bool = False
    errors: int = 0
    last_error: str = ""
    """What the next request reports; empty for none."""

    @classmethod
    def every(cls, interval: float) -> Schedule:
        """The start of polling every ``interval`` seconds, with the usual policy on that base."""
        return cls(interval, Backoff(interval))

    def success(self) -> Schedule:
        """After an update that worked."""
        return replace(self, succeeded=True, errors=self.backoff.dec(self.errors), last_error="")

    def failure(self, reason: str) -> Schedule:
        """After one that did not: unchanged before the first success (the server may just not be up yet)."""
        if not self.succeeded:
            return self
        return replace(self, errors=self.backoff.inc(self.errors), last_error=reason)

    def wait(self, uniform: Uniform) -> float:
        """Seconds until the next update."""
        seconds = self.interval + self.backoff.seconds(self.errors, uniform)
        return seconds if self.succeeded else min(seconds, 1.0)
