"""A process connector whose reader stands still while a gate is shut: how a real socket is made to run over."""

from __future__ import annotations

from threading import Event

from harness.processes.connector import BUFFER, Connector
from harness.processes.events import ProcessEvent


class HeldConnector(Connector):
    """Its ``read`` waits for the gate first."""

    def __init__(self, gate: Event, buffer: int) -> None:
        super().__init__(buffer)
        self._gate = gate

    def read(self, seconds: float) -> list[ProcessEvent]:
        self._gate.wait(60)
        return super().read(seconds)


class SmallThenLarge:
    """Opens a held connector with the least room that the kernel gives (a few events), then ones of the usual size."""

    def __init__(self) -> None:
        self.gate = Event()
        self.opened = 0

    def __call__(self) -> HeldConnector:
        self.opened += 1
        return HeldConnector(self.gate, 1 if self.opened == 1 else BUFFER)
