"""One deadline for a kernel, made once and passed down; every wait below it asks how much is left."""

from __future__ import annotations

import time
from collections.abc import Callable


class Deadline:
    """A point on the monotonic clock. ``remaining()`` is in seconds and never negative."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.seconds = seconds
        self._end = clock() + seconds

    def remaining(self) -> float:
        """Seconds left; 0.0 once it has passed."""
        return max(0.0, self._end - self._clock())

    def passed(self) -> bool:
        """True once no time is left."""
        return self.remaining() == 0.0

    def sooner(self, seconds: float) -> Deadline:
        """A deadline for one step of the whole: at most ``seconds`` away, never later than this one."""
        return Deadline(min(seconds, self.remaining()), clock=self._clock)
