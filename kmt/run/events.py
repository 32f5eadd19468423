"""(pure) What happens during a run, as values that travel from a kernel's thread to the main one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kmt.results import KernelResult, Outcome


@dataclass(frozen=True)
class Progress:
    """A kernel entered a phase of ``kmt.hooks.PHASES`` or got further in it."""

    kernel: str
    phase: str
    detail: str = ""


@dataclass(frozen=True)
class Started:
    """A test begins; ``id`` is the one it has without a kernel."""

    kernel: str
    id: str


@dataclass(frozen=True)
class Report:
    """A phase of a test ended; ``data`` is the report as pytest serialises it."""

    kernel: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Lost:
    """A test that was due will not be reported by its guest; ``reason`` says why, for people."""

    kernel: str
    id: str
    reason: str
    outcome: str = "error"
    """``skipped`` where the row is unavailable and nobody insisted on it; ``kmt.results.NOT_APPLICABLE``."""
    again: bool = False
    """Another guest could run it."""
    cause: str = Outcome.FAILED.value
    """The ``Outcome`` of what lost it; ``failed``: neither its guest nor its kernel."""


@dataclass(frozen=True)
class Chatter:
    """What pytest or a test printed outside its captured output."""

    kernel: str
    text: str


@dataclass(frozen=True)
class Finished:
    """The kernel is done, one way or another; its last event."""

    kernel: str
    result: KernelResult


Event = Progress | Started | Report | Lost | Chatter | Finished
