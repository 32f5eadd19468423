"""What a person is told of failures that repeat: once.

Laws: a kind of failure (its class) is a line when it first comes and not again for ten minutes, however often it
comes and whatever comes between; the end of failures is a line if their beginning was.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable

from harness.errors import HarnessError

AGAIN = 600.0
"""Seconds after which the same kind of failure is told once more."""


def plain(error: BaseException) -> str:
    """(pure) What an error says, in one line: it may quote a server, which has no say over a terminal or a log."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(error))


def told(error: Exception) -> str:
    """(pure) ``plain``; of a mistake of ours, with where it was made, the last cause last, on lines of their own."""
    if isinstance(error, HarnessError):
        return plain(error)
    lines = [f"{plain(error)}\n"]
    cause: BaseException | None = error
    while cause is not None:
        lines += [
            "Traceback:\n",
            *traceback.format_tb(cause.__traceback__),
            f"{type(cause).__name__}: {plain(cause)}\n",
        ]
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "".join(lines).rstrip()


class FailureLog:
    """See the module; ``monotonic`` is its clock."""

    def __init__(self, log: logging.Logger, monotonic: Callable[[], float]) -> None:
        self._log = log
        self._monotonic = monotonic
        self._told: dict[type, float] = {}
        self._count = 0
        self._open = False

    def say(self, error: Exception, *, first: bool) -> None:
        """One more failure; ``first`` where there was no success yet, so that it may just be too early."""
        self._count += 1
        now = self._monotonic()
        if now - self._told.get(type(error), -AGAIN) < AGAIN:
            return
        self._told[type(error)] = now
        self._open = True
        unknown = not isinstance(error, HarnessError)
        words = "no remote configuration yet: %s" if first else "remote configuration stays as it is: %s"
        level = logging.INFO if first else logging.ERROR
        self._log.log(logging.ERROR if unknown else level, words, told(error))

    def over(self) -> None:
        """A success."""
        if self._open:
            self._log.info("remote configuration works again after %d failures", self._count)
        self._open, self._count = False, 0
