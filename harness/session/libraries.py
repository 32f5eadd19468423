"""What rules do with the libraries that they match: ``count`` them, or count the plaintext through them by ``tls``.

Laws: the TLS programs are loaded with the first rule that needs them, and stay until ``close``; processes that have
ended are forgotten, so that others find room (the metrics keep their bytes).
"""

from __future__ import annotations

import logging
from threading import Event, Thread

from harness.ebpf.settings import BpfSettings
from harness.errors import HarnessError
from harness.kernel_api import KernelApi
from harness.session.settings import Watch
from harness.telemetry import PROMETHEUS, MetricGroup, Registry
from harness.watcher.identity import FilePath
from harness.watcher.rules import Rule
from harness.watcher.tls import TlsProbes

EVERY = 5.0
"""Seconds between two looks at the traffic."""
_log = logging.getLogger(__name__)


class Libraries:
    """See the module. ``tls`` is None until a rule needs it."""

    def __init__(self, kernel: KernelApi, bpf: BpfSettings, metrics: Registry) -> None:
        self.tls: TlsProbes | None = None
        self._kernel, self._bpf, self._metrics = kernel, bpf, metrics
        group = MetricGroup("session", PROMETHEUS, registry=metrics)
        self._counted = group.counter("libraries", help="Libraries that a rule has counted.")
        self._over = Event()
        self._thread = Thread(target=self._run, name="tls-traffic", daemon=True)

    def rules(self, watches: tuple[Watch, ...]) -> list[Rule]:
        """Rules with their callbacks; a HarnessError where the TLS programs cannot be loaded."""
        if self.tls is None and any(watch.action == "tls" for watch in watches):
            self.tls = TlsProbes(self._kernel, self._bpf, metrics=self._metrics)
            self._thread.start()
        return [self._rule(watch) for watch in watches]

    def look(self) -> None:
        """Forget the traffic of processes that have ended."""
        if (tls := self.tls) is not None:
            for pid in tls.traffic():
                if not (self._kernel.proc_root / str(pid)).exists():
                    tls.forget(pid)

    def close(self) -> None:
        """The TLS programs off and out; a second time does nothing."""
        self._over.set()
        if self.tls is not None:
            self._thread.join()
            self.tls.close()
            self.tls = None

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            try:
                self.look()
            except HarnessError as error:
                _log.warning("plaintext of TLS libraries: %s", error)

    def _rule(self, watch: Watch) -> Rule:
        if watch.action == "tls" and self.tls is not None:
            return Rule.of(watch.pattern, self.tls.activate, self.tls.deactivate)
        # Callbacks that are equal each time: a file whose rule is pushed again stays as it is.
        return Rule.of(watch.pattern, self._count, _nothing)

    def _count(self, _: FilePath) -> None:
        self._counted.add()


def _nothing(_: FilePath) -> None:
    """What was only counted needs nothing done."""
