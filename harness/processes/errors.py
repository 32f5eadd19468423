"""What can go wrong in following processes, as typed errors."""

from __future__ import annotations

from harness.errors import HarnessError


class ProcessSourceError(HarnessError):
    """This way of hearing of processes is not to be had here."""


class OverrunError(HarnessError):
    """Events came faster than they were read: at least ``lost`` are gone, and the source must be opened again."""

    def __init__(self, source: str, lost: int) -> None:
        super().__init__(f"{source}: at least {lost} events were lost")
        self.lost = lost
