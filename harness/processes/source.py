"""Where events of processes come from: the protocol, and the choice between the connector and our own programs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from harness.ebpf.settings import BpfSettings
from harness.errors import HarnessError
from harness.kernel_api import KernelApi
from harness.processes.connector import Connector
from harness.processes.errors import ProcessSourceError
from harness.processes.events import ProcessEvent
from harness.processes.tracepoints import Tracepoints

_log = logging.getLogger(__name__)


class Source(Protocol):
    """A stream of events from the moment it was opened."""

    name: str

    def read(self, seconds: float) -> list[ProcessEvent]:
        """What has come; waits up to ``seconds`` for the first. OverrunError: some are lost, open another."""
        ...

    def close(self) -> None:
        """Let go of it; a second time does nothing."""
        ...


Opener = Callable[[], Source]


def opener(kernel: KernelApi, settings: BpfSettings) -> Opener:
    """Opens the connector, or where this kernel (or this namespace) has none, programs on two tracepoints."""

    def open_first() -> Source:
        try:
            return Connector()
        except ProcessSourceError as error:
            _log.info("%s; programs are loaded instead", error)
            lost = error
        try:
            return Tracepoints(kernel, settings)
        except HarnessError as error:
            raise ProcessSourceError(f"no way to hear of processes: {lost}; {error}", hint=error.hint) from error

    return open_first
