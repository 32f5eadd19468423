"""All programs attached and taken off again and again under traffic: where emulators and kernels have panicked.

``KMT_ROUNDS`` says how often; a few in an ordinary run.
"""

import os
import threading

import pytest

from fixtures.workloads import libraries, tcp
from harness.ebpf.settings import BpfSettings
from harness.tracer.fentry import load_tracer
from harness.watcher import program

pytestmark = [pytest.mark.thorough, pytest.mark.requires("btf", "fentry")]

ROUNDS = int(os.environ.get("KMT_ROUNDS", "2"))


class Traffic:
    """Exchanges and opens without end, in a thread of its own, until the ``with`` ends."""

    def __init__(self, library):
        self.done = 0
        self.failed = None
        self._library = os.fsencode(library)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            while not self._stop.is_set():
                tcp.exchange(100, 100, number=self.done % 1000)
                libraries.open_(self._library)
                self.done += 1
        except BaseException as error:
            self.failed = error

    def whole_rounds(self, number):
        """Wait until so many have begun and ended from now on. The first to end may have begun before."""
        wanted = self.done + number + 1
        while self.done < wanted:
            assert self.failed is None
            self._stop.wait(0.01)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        self._thread.join()


def test_attached_and_taken_off_under_traffic(live, bpf_dir, tmp_path):
    settings = BpfSettings(bpf_dir)
    library = libraries.library(tmp_path, "libssl.so.3")
    with Traffic(library) as traffic:
        for _ in range(ROUNDS):
            with load_tracer(live, settings, fargate=lambda: True) as tracer, program.start(live, settings) as opens:
                traffic.whole_rounds(1)
                # Each end of the exchange is a connection of this process.
                whole = [c for c in tracer.closed(0) if c.stats.sent_bytes == 100 == c.stats.recv_bytes]
                assert len(whole) >= 2 or tracer.counters().events_lost
                assert os.fsencode(library) in [event.path for event in opens.read(0)]
    assert traffic.failed is None
