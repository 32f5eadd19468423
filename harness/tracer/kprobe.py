"""The kprobe tracer: puts its programs into a kernel that has no BPF trampolines, or shows no BTF.

Laws: the stages are those of ``ebpf/fallback.py``, each tries from scratch and leaves nothing behind when it loses;
``attempts`` says how each ended. Which programs: ``kprobes.py``. What runs then: ``tracer.py``.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from harness.ebpf import error_telemetry
from harness.ebpf import kprobes as tracefs
from harness.ebpf.error_telemetry import ErrorTelemetry
from harness.ebpf.fallback import Attempt, Stage
from harness.ebpf.kprobes import KprobeEvent
from harness.ebpf.loading import load_module
from harness.ebpf.settings import BpfSettings
from harness.kernel_api import Feature, KernelApi, LoadedObject, LoadOptions
from harness.tracer import kprobes, tracer
from harness.tracer.settings import TracerSettings
from harness.tracer.tracer import Tracer, Way

MODULE = "tracer"


class KprobeTracer(Tracer):
    """A tracer that knows which stage won, and why the others did not."""

    stage: Stage
    attempts: tuple[Attempt, ...]

    def __str__(self) -> str:
        return f"{super().__str__()}, {self.stage}"


class Attached:
    """The programs' places in the kernel: an event of tracefs each, but for tracepoints."""

    def __init__(self, loaded: LoadedObject, tracing: Path, max_active: int) -> None:
        self._loaded = loaded
        self._tracing = tracing
        self._max_active = max_active
        self._events: dict[str, KprobeEvent] = {}
        self._missed_before = 0

    def attach(self, program: str) -> None:
        """Attach it; twice is once."""
        place = kprobes.PLACES[program]
        if program in self._events:
            return
        if not place.function:
            self._loaded.attach(program)
            return
        with ExitStack() as undo:
            event = KprobeEvent.make(
                place.function, at_end=place.at_end, max_active=self._max_active, tracing=self._tracing
            )
            undo.callback(event.remove)
            self._loaded.attach_event(program, event.open())
            self._events[program] = event
            undo.pop_all()

    def detach(self, program: str) -> None:
        """Take it off; does nothing where it is not attached."""
        self._loaded.detach(program)
        event = self._events.pop(program, None)
        if event is not None:
            try:
                self._missed_before += event.missed()
            finally:
                event.remove()

    def detach_all(self, _wait: bool = True) -> None:
        """Take all off, here and now. A kernel that was locked down meanwhile lets no event go: then the last error is
        raised."""
        with ExitStack() as stack:
            for program in self._loaded.programs:
                stack.callback(self.detach, program)

    def missed(self) -> int:
        """How often an event could not fire, or its program could not run."""
        return self._missed_before + tracefs.all_missed(self._events.values(), self._tracing) + self._loaded.missed()


def load_tracer(
    kernel: KernelApi,
    settings: BpfSettings,
    wanted: TracerSettings | None = None,
    *,
    tracing: Path = tracefs.TRACING,
) -> KprobeTracer:
    """Load and attach it by the first stage that works. Raises what ``fallback.climb`` says, or NotSupportedError."""
    asked = wanted or TracerSettings()
    symbols = kernel.symbols(kprobes.functions() | kprobes.TRACEPOINTS)
    kprobes.choose(symbols, asked)  # what is asked for must be there
    tracefs.sweep(tracing)

    def start(image: bytes, options: LoadOptions) -> KprobeTracer:
        return _start(kernel, settings, asked, image, options, symbols, tracing)

    won = load_module(kernel, settings, MODULE, start)
    won.value.stage, won.value.attempts = won.stage, won.attempts
    return won.value


def _start(
    kernel: KernelApi,
    settings: BpfSettings,
    asked: TracerSettings,
    image: bytes,
    options: LoadOptions,
    symbols: frozenset[str],
    tracing: Path,
) -> KprobeTracer:
    ringbuf = settings.enable_ringbuffers and kernel.probe(Feature.RINGBUF) is True
    counted = error_telemetry.counted(image)
    options = replace(
        options,
        programs=kprobes.loadable(symbols),
        constants=tracer.constants(kernel, counted, ringbuf=ringbuf),
        map_edits=tracer.map_edits(kernel, asked, ringbuf=ringbuf),
    )
    with ExitStack() as undo:
        loaded = kernel.load(MODULE, image, options)
        undo.callback(loaded.close)
        places = Attached(loaded, tracing, asked.kprobe_max_active)
        undo.callback(places.detach_all)
        buffer = loaded.buffer(tracer.CLOSE_EVENTS, asked.close_event_pages)
        way = Way(
            "kprobe",
            lambda now: kprobes.choose(symbols, now),
            places.attach,
            places.detach,
            places.missed,
            places.detach_all,
        )
        errors = ErrorTelemetry(MODULE, loaded.maps, counted)
        running = KprobeTracer(kernel, loaded, buffer, way, asked, ringbuf=ringbuf, errors=errors)
        undo.pop_all()
    return running
