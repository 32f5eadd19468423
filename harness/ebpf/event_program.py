"""A module that reports events: into the kernel by the first stage that works, its buffer read, its losses counted.

Laws: the stages are those of ``fallback.py``, each tries from scratch and leaves nothing behind when it loses;
``attempts`` says how each ended; the buffer is open before the first program is attached, so that nothing reported
from then on is missed. By convention such an object includes ``bpf/include/event_output.h``, and has a map of events
that is declared with its ``EVENTS``, and an array ``counters`` with one entry.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

from harness.ebpf import error_telemetry
from harness.ebpf.error_telemetry import ErrorTelemetry
from harness.ebpf.fallback import Attempt, Stage
from harness.ebpf.loading import load_module
from harness.ebpf.settings import BpfSettings
from harness.errors import HarnessError
from harness.kernel_api import EventBuffer, Feature, KernelApi, LoadedObject, LoadOptions, MapEdit, MapType

_COUNTERS_KEY = bytes(4)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EventModule:
    """What to load: ``name`` of the asset, ``programs`` in order of attaching, the map ``events`` and its size: perf
    ``pages`` a CPU (a power of two), or ``ring_bytes`` in all; ``edits`` of other maps."""

    name: str
    programs: Sequence[str]
    events: str
    pages: int
    ring_bytes: int
    edits: Mapping[str, MapEdit] = field(default_factory=dict)


class EventProgram:
    """A module while it runs; ``stage`` is the one that won. Use it as a context manager, or ``close`` it."""

    def __init__(
        self,
        loaded: LoadedObject,
        buffer: EventBuffer,
        errors: ErrorTelemetry,
        ringbuf: bool,
        stage: Stage,
        attempts: tuple[Attempt, ...],
    ) -> None:
        self._loaded = loaded
        self._buffer = buffer
        self.errors = errors
        """What its maps and helpers refused."""
        self.ringbuf = ringbuf
        self.stage = stage
        self.attempts = attempts
        self._closed = False
        self._last: tuple[bytes, int] | None = None

    def records(self, seconds: float = 0.1) -> list[bytes]:
        """Events since the last call, as the programs wrote them; waits up to ``seconds`` for the first."""
        return self._buffer.read(seconds)

    def counted(self) -> bytes:
        """The entry of the map ``counters``; after the close, as it was when nothing listened any more."""
        if self._last is not None:
            return self._last[0]
        value = self._loaded.maps["counters"].get(_COUNTERS_KEY)
        if value is None:
            raise HarnessError("the map counters has no entry 0")
        return value

    def missed(self) -> int:
        """How often a program was to run and could not, by the kernel's count (from 5.12 on); after the close, too."""
        return self._loaded.missed() if self._last is None else self._last[1]

    def close(self) -> None:
        """Take the programs off, read what they counted a last time, take them out; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            for program in self._loaded.programs:
                self._loaded.detach(program)
            self._last = self.counted(), self.missed()
            self.errors.finish()
        except HarnessError as error:
            _log.warning("%s: what was counted last cannot be read: %s", self.errors.module, error)
        finally:
            self._loaded.close()

    def __enter__(self) -> EventProgram:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __str__(self) -> str:
        return f"{self.stage}, {'ring' if self.ringbuf else 'perf'} buffer"


def start(kernel: KernelApi, settings: BpfSettings, module: EventModule) -> EventProgram:
    """Load and attach it. Where every stage lost, the error of the last one is raised as ``fallback.climb`` says."""
    ringbuf = settings.enable_ringbuffers and kernel.probe(Feature.RINGBUF) is True
    won = load_module(
        kernel, settings, module.name, lambda image, options: _load(kernel, image, options, module, ringbuf)
    )
    return EventProgram(*won.value, ringbuf, won.stage, won.attempts)


def _load(
    kernel: KernelApi, image: bytes, options: LoadOptions, module: EventModule, ringbuf: bool
) -> tuple[LoadedObject, EventBuffer, ErrorTelemetry]:
    ring = MapEdit(MapType.RINGBUF, key_size=0, value_size=0, max_entries=module.ring_bytes)
    edits = {**module.edits, module.events: ring} if ringbuf else module.edits
    counted = error_telemetry.counted(image)
    constants = {"ringbuffers_enabled": int(ringbuf), **error_telemetry.constants(counted)}
    wanted = replace(options, programs=module.programs, constants=constants, map_edits=edits)
    loaded = kernel.load(module.name, image, wanted)
    try:
        buffer = loaded.buffer(module.events, module.pages)
        errors = ErrorTelemetry(module.name, loaded.maps, counted)
        for name in module.programs:
            loaded.attach(name)
    except BaseException:
        loaded.close()
        raise
    return loaded, buffer, errors
