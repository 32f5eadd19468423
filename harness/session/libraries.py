"""What rules do with the libraries that they match: ``count`` them, or count the plaintext through them by ``tls``.

Laws: the TLS programs are loaded with the first rule that needs them, and stay until ``close``; the bytes counted are
those of every process, of those that have ended too, and these are forgotten, so that others find room.
"""

from __future__ import annotations

import logging
from threading import Event, Lock, Thread

from harness.ebpf.settings import BpfSettings
from harness.errors import HarnessError
from harness.kernel_api import KernelApi
from harness.session.settings import Watch
from harness.telemetry import MetricGroup
from harness.watcher.identity import FilePath
from harness.watcher.rules import Rule
from harness.watcher.tls import TlsProbes, Traffic

EVERY = 5.0
"""Seconds between two looks at the traffic."""
_log = logging.getLogger(__name__)


class Libraries:
    """See the module. ``tls`` is None until a rule needs it."""

    def __init__(self, kernel: KernelApi, bpf: BpfSettings, metrics: MetricGroup) -> None:
        self.tls: TlsProbes | None = None
        self._kernel, self._bpf = kernel, bpf
        self._counted = metrics.counter("libraries", help="Libraries that a rule has counted.")
        self._received, self._sent = (
            metrics.counter("tls_bytes", f"direction:{name}", help="Plaintext through TLS libraries.")
            for name in ("received", "sent")
        )
        self._lost = metrics.gauge("tls_bytes_lost", help="Plaintext of processes that found no room.")
        self._seen: dict[int, Traffic] = {}
        self._lock = Lock()
        self._over = Event()
        self._thread = Thread(target=self._run, name="tls-traffic", daemon=True)

    def rules(self, watches: tuple[Watch, ...]) -> list[Rule]:
        """Rules with their callbacks; a HarnessError where the TLS programs cannot be loaded."""
        if self.tls is None and any(watch.action == "tls" for watch in watches):
            self.tls = TlsProbes(self._kernel, self._bpf)
            self._thread.start()
        return [self._rule(watch) for watch in watches]

    def look(self) -> None:
        """Count what has moved since the last look, and forget the processes that have ended."""
        if self.tls is None:
            return
        with self._lock:
            seen = {}
            for pid, now in self.tls.traffic().items():
                ended = not (self._kernel.proc_root / str(pid)).exists()
                last = self.tls.forget(pid) if ended else now
                before = self._seen.get(pid, Traffic(0, 0))
                if last is not None:
                    self._received.add(last.received - before.received)
                    self._sent.add(last.sent - before.sent)
                if not ended:
                    seen[pid] = now
            self._seen = seen
            self._lost.set(self.tls.counters().lost)

    def close(self) -> None:
        """A last look, and the TLS programs off and out; a second time does nothing."""
        self._over.set()
        if self.tls is not None:
            self._thread.join()
            self._try_to_look()
            self.tls.close()
            self.tls = None

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            self._try_to_look()

    def _try_to_look(self) -> None:
        try:
            self.look()
        except HarnessError as error:
            _log.warning("plaintext of TLS libraries: %s", error)

    def _rule(self, watch: Watch) -> Rule:
        if watch.action == "tls" and self.tls is not None:
            return Rule.of(watch.pattern, self.tls.activate, self.tls.deactivate)
        return Rule.of(watch.pattern, lambda file: self._counted.add(), _nothing)


def _nothing(_: FilePath) -> None:
    """What was only counted needs nothing done."""
