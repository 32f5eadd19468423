"""The fentry tracer: puts its programs into a kernel.

Laws: outside Fargate nothing is touched at all (no file, no BTF, no kernel), the answer is NotSupportedError; a load
that fails leaves nothing behind. Which programs: ``probes.py``. What runs then: ``tracer.py``.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Callable
from typing import BinaryIO

from harness.ebpf import error_telemetry
from harness.ebpf.core import CoreOptions, load_core_asset
from harness.ebpf.error_telemetry import ErrorTelemetry
from harness.ebpf.settings import BpfSettings
from harness.errors import BpfError, ClosedError, NotSupportedError
from harness.kernel_api import Feature, KernelApi, LoadedObject, LoadOptions
from harness.tracer import probes, tracer
from harness.tracer.fargate import on_fargate
from harness.tracer.settings import TracerSettings
from harness.tracer.tracer import Tracer, Way

MODULE = "tracer-fentry"
_OVER = struct.pack("<I", 1 << 31)
"""OVER of ``bpf/tracer/tracer-maps.h``."""
_log = logging.getLogger(__name__)

__all__ = ["MODULE", "Tracer", "TracerSettings", "load_tracer"]


class Attached:
    """The programs' places in the kernel. Where one that was taken off could not be attached again (before 5.13) it
    stays: what it would begin is not collected, so it says nothing."""

    def __init__(self, loaded: LoadedObject) -> None:
        self._loaded = loaded
        self._again: bool | None = None

    def attach(self, program: str) -> None:
        """Attach it; twice is once."""
        self._loaded.attach(program)

    def detach(self, program: str) -> None:
        """Take it off, if it could be attached again."""
        if self._again is None:
            self._again = self._can_attach_again()
        if self._again:
            self._loaded.detach(program)

    def detach_all(self, wait: bool) -> None:
        """Take all off, for good. Without ``wait`` they do nothing any more, and the kernel takes them off later."""
        try:
            if not wait:
                self._loaded.maps["collected"].put(bytes(4), _OVER)
        except (BpfError, ClosedError) as error:
            # Who gave up the right to change maps may close what is his all the same.
            _log.debug("the programs are taken off at once, for they cannot be told to do nothing: %s", error)
            wait = True
        self._loaded.detach_all(wait=wait)

    def _can_attach_again(self) -> bool:
        tried = probes.AGAIN.program
        self._loaded.attach(tried)
        self._loaded.detach(tried)
        try:
            self._loaded.attach(tried)
        except BpfError as error:
            if error.code != errno.ENOENT:
                raise
            return False
        self._loaded.detach(tried)
        return True


def load_tracer(
    kernel: KernelApi,
    settings: BpfSettings,
    wanted: TracerSettings | None = None,
    *,
    fargate: Callable[[], bool] = lambda: on_fargate(os.environ),
) -> Tracer:
    """Load and attach the tracer.

    Raises NotSupportedError outside Fargate (then the kprobe tracer may be tried; after no other error may it), and
    BtfError, AssetError, SignatureError, VerifierError or BpfError as they come.
    """
    if not fargate():
        raise NotSupportedError("the fentry tracer is for ECS and EKS Fargate only")

    def start(asset: BinaryIO, core: CoreOptions) -> Tracer:
        return _start(kernel, settings, wanted or TracerSettings(), asset.read(), core)

    name = f"{MODULE}-debug" if settings.bpf_debug else MODULE
    return load_core_asset(settings, kernel, f"{name}.o", start)


def _start(kernel: KernelApi, settings: BpfSettings, wanted: TracerSettings, image: bytes, core: CoreOptions) -> Tracer:
    signatures = kernel.signatures(probes.functions())
    probes.choose(signatures, wanted)  # what is asked for must fit
    fitting = (*probes.loadable(signatures), probes.AGAIN)
    ringbuf = settings.enable_ringbuffers and kernel.probe(Feature.RINGBUF) is True
    counted = error_telemetry.counted(image)
    options = LoadOptions(
        programs=[probe.program for probe in fitting],
        constants=tracer.constants(kernel, counted, ringbuf=ringbuf),
        map_edits=tracer.map_edits(kernel, wanted, ringbuf=ringbuf),
        kernel_btf=core.kernel_btf,
        signatures={probe.program: (probe.function, probe.signature) for probe in fitting},
    )
    loaded = kernel.load(MODULE, image, options)
    try:
        buffer = loaded.buffer(tracer.CLOSE_EVENTS, wanted.close_event_pages)

        def programs(asked: TracerSettings) -> tuple[str, ...]:
            return tuple(probe.program for probe in probes.choose(signatures, asked))

        places = Attached(loaded)
        way = Way("fentry", programs, places.attach, places.detach, loaded.missed, places.detach_all)
        errors = ErrorTelemetry(MODULE, loaded.maps, counted)
        return Tracer(kernel, loaded, buffer, way, wanted, ringbuf=ringbuf, errors=errors)
    except BaseException:
        loaded.close()
        raise
