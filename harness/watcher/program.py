"""The shared-libraries program: into the kernel by the first way that works, and what it reports.

Laws: the stages are those of ``ebpf/fallback.py``, each tries from scratch and leaves nothing behind when it loses;
``attempts`` says how each ended; every library opened while it runs is either read once or counted as lost. What
the program sees and misses: the top of ``bpf/shared_libraries/shared-libraries.bpf.c``.
"""

from __future__ import annotations

import logging
import os
from types import TracebackType

from harness.ebpf import events
from harness.ebpf.core import load_core_asset
from harness.ebpf.fallback import Attempt, Stage, climb
from harness.ebpf.prebuilt import read_prebuilt
from harness.ebpf.runtime import compile_asset
from harness.ebpf.settings import BpfSettings
from harness.errors import HarnessError
from harness.kernel_api import EventBuffer, Feature, KernelApi, LoadedObject, LoadOptions, MapEdit, MapType

MODULE = "shared-libraries"
PERF_PAGES = 256
"""For each CPU: 8 lose 3 to 40 % of a burst of 100,000 opens, 256 none."""
RING_BYTES = 16 << 20
_EVENTS = "shared_libraries"
_COUNTERS_KEY = bytes(4)

log = logging.getLogger(__name__)


def hooks(openat2: bool, machine: str) -> tuple[str, ...]:
    """(pure) The programs to load, entry before exit: ``open`` is a system call of x86-64 only."""
    calls = ["openat", *(["openat2"] if openat2 else []), *(["open"] if machine == "x86_64" else [])]
    return tuple(f"tracepoint__syscalls__sys_{side}_{call}" for call in calls for side in ("enter", "exit"))


class LibraryProgram:
    """The program while it runs; ``stage`` is the one that won. Use it as a context manager, or ``close`` it."""

    def __init__(
        self, loaded: LoadedObject, buffer: EventBuffer, ringbuf: bool, stage: Stage, attempts: tuple[Attempt, ...]
    ) -> None:
        self._loaded = loaded
        self._buffer = buffer
        self.ringbuf = ringbuf
        self.stage = stage
        self.attempts = attempts

    def read(self, seconds: float = 0.1) -> list[events.LibraryOpen]:
        """Libraries opened since the last call; waits up to ``seconds`` for the first."""
        return [events.library_open(record) for record in self._buffer.read(seconds)]

    def counters(self) -> events.LibraryCounters:
        """What the programs counted, losses among it."""
        value = self._loaded.maps["counters"].get(_COUNTERS_KEY)
        if value is None:
            raise HarnessError("the map counters of the shared-libraries program has no entry 0")
        return events.library_counters(value)

    def close(self) -> None:
        """Take the programs out of the kernel; a second time does nothing."""
        self._loaded.close()

    def __enter__(self) -> LibraryProgram:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __str__(self) -> str:
        return f"{self.stage}, {'ring' if self.ringbuf else 'perf'} buffer"


def start(kernel: KernelApi, settings: BpfSettings) -> LibraryProgram:
    """Load and attach it. Where every stage lost, the error of the last one is raised as ``fallback.climb`` says."""
    ringbuf = settings.enable_ringbuffers and kernel.probe(Feature.RINGBUF) is True
    outcome = climb(
        settings.switches,
        {
            Stage.CORE: lambda: load_core_asset(
                settings,
                kernel.release,
                f"{MODULE}.o",
                lambda asset, core: _load(kernel, asset.read(), LoadOptions(kernel_btf=core.kernel_btf), ringbuf),
            ),
            Stage.RUNTIME: lambda: _load(
                kernel,
                compile_asset(
                    settings.bpf_dir, MODULE, release=kernel.release, output_dir=settings.runtime_output_dir
                ).image,
                LoadOptions(),
                ringbuf,
            ),
            Stage.PREBUILT: lambda: _load(kernel, read_prebuilt(settings.bpf_dir, MODULE), LoadOptions(), ringbuf),
        },
    )
    # The last failure is no warning: its error is raised.
    followed = outcome.tried[: outcome.warnings]
    for attempt in outcome.attempts:
        log.log(logging.WARNING if attempt.stage in followed else logging.DEBUG, "%s: %s", MODULE, attempt)
    if outcome.error is not None:
        raise outcome.error
    assert outcome.value is not None
    assert outcome.winner is not None
    return LibraryProgram(*outcome.value, ringbuf, outcome.winner, outcome.attempts)


def _load(kernel: KernelApi, image: bytes, options: LoadOptions, ringbuf: bool) -> tuple[LoadedObject, EventBuffer]:
    has_openat2 = kernel.probe(Feature.OPENAT2)
    if has_openat2 is None:
        log.error("whether this kernel has openat2 cannot be told: it is not watched")
    names = hooks(bool(has_openat2), os.uname().machine)
    edits = {_EVENTS: MapEdit(MapType.RINGBUF, key_size=0, value_size=0, max_entries=RING_BYTES)} if ringbuf else {}
    wanted = LoadOptions(names, {"ringbuffers_enabled": int(ringbuf)}, edits, options.kernel_btf)
    loaded = kernel.load(MODULE, image, wanted)
    try:
        buffer = loaded.buffer(_EVENTS, PERF_PAGES)
        for name in names:
            loaded.attach(name)
    except BaseException:
        loaded.close()
        raise
    return loaded, buffer
