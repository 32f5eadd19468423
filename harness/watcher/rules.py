"""(pure) Which libraries are of interest: rules in order, of which the first that matches counts.

A rule's pattern is searched for anywhere in the path, as the process that opened it names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from harness.watcher.errors import RuleError
from harness.watcher.identity import FilePath

Callback = Callable[[FilePath], None]
"""Called with the file; raising means that it did not work."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern and what to do with a file when its first process comes and its last one goes."""

    pattern: re.Pattern[str]
    activate: Callback
    deactivate: Callback

    @classmethod
    def of(cls, pattern: str, activate: Callback, deactivate: Callback) -> Rule:
        """Compile ``pattern``; ``RuleError`` if it is no regular expression."""
        try:
            return cls(re.compile(pattern), activate, deactivate)
        except (re.error, RecursionError, OverflowError) as error:
            raise RuleError(f"rule {pattern!r} is no regular expression: {error}") from None


TLS_LIBRARIES = (r"libssl\.so", r"libcrypto\.so", r"libgnutls\.so")
"""Patterns of the production rules. The original's dots are unescaped, so that it also takes ``libssl-so``."""


def first_match(rules: Iterable[Rule], path: str) -> Rule | None:
    """The first rule whose pattern occurs in ``path``."""
    for rule in rules:
        if rule.pattern.search(path):
            return rule
    return None
