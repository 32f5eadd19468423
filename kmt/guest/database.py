"""Hypothesis in a guest: the host's example database, no deadline under emulation, a profile an accelerator.

A project that registers a profile ``kmt-tcg``, ``kmt-kvm`` or ``kmt-none`` of its own gets that one, unless another
is named (``--hypothesis-profile``). Only a number of examples that nobody chose is lowered under emulation.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import hypothesis
from hypothesis.database import ExampleDatabase
from hypothesis.errors import InvalidArgument

EMULATED_EXAMPLES = 30
"""Examples a property under emulation, where Python runs some 20 times slower, unless something says how many."""
UNCHOSEN_EXAMPLES = 100
"""What Hypothesis runs where nobody said how many."""


class HostDatabase(ExampleDatabase):
    """The database that all guests of a run share; each call is one question to the host."""

    def __init__(self, channel: Any) -> None:
        super().__init__()
        self._channel = channel

    def _call(self, call: str, key: bytes, value: bytes = b"") -> list[bytes]:
        body = {"call": call, "key": base64.b64encode(key).decode(), "value": base64.b64encode(value).decode()}
        answer: list[bytes] = self._channel.ask(body)
        return answer

    def fetch(self, key: bytes) -> Iterable[bytes]:
        """All values of a key, on whichever kernel they were found."""
        return self._call("fetch", key)

    def save(self, key: bytes, value: bytes) -> None:
        """Keep it at once: another kernel may replay it while this one still shrinks."""
        self._call("save", key, value)

    def delete(self, key: bytes, value: bytes) -> None:
        """It no longer fails here; the host forgets it when it fails nowhere."""
        self._call("delete", key, value)


def use_profile(channel: Any, accelerator: str, name: str, *, chosen: bool = False) -> None:
    """Load the profile for this accelerator on top of the one in force (``name``, if the host was told one).

    ``chosen``: the one in force was named on the command line, and counts more than the accelerator's.
    """
    wanted = name or f"kmt-{accelerator}"
    changes: dict[str, Any] = {}
    try:
        parent = None if chosen else hypothesis.settings.get_profile(wanted)
    except InvalidArgument:
        parent = None
    if parent is None:
        parent = hypothesis.settings.default or hypothesis.settings()
        changes["deadline"] = None
        if accelerator == "tcg":
            if not chosen and parent.max_examples == UNCHOSEN_EXAMPLES:
                changes["max_examples"] = EMULATED_EXAMPLES
            changes["suppress_health_check"] = [*parent.suppress_health_check, hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile(
        f"{wanted}-in-guest", parent, database=HostDatabase(channel), print_blob=True, **changes
    )
    hypothesis.settings.load_profile(f"{wanted}-in-guest")
