"""The fentry tracer: puts its programs into a kernel.

Laws: outside Fargate nothing is touched at all (no file, no BTF, no kernel), the answer is NotSupportedError; a load
that fails leaves nothing behind. Which programs: ``probes.py``. What runs then: ``tracer.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import BinaryIO

from harness.ebpf.core import CoreOptions, load_core_asset
from harness.ebpf.settings import BpfSettings
from harness.errors import NotSupportedError
from harness.kernel_api import Feature, KernelApi, LoadOptions
from harness.tracer import probes, tracer
from harness.tracer.fargate import on_fargate
from harness.tracer.settings import TracerSettings
from harness.tracer.tracer import Parts, Tracer

ASSET = "tracer-fentry.o"

__all__ = ["ASSET", "Tracer", "TracerSettings", "load_tracer"]


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

    return load_core_asset(settings, kernel.release, ASSET, start)


def _start(kernel: KernelApi, settings: BpfSettings, wanted: TracerSettings, image: bytes, core: CoreOptions) -> Tracer:
    signatures = kernel.signatures(probes.functions())
    probes.choose(signatures, wanted)  # what is asked for must fit
    fitting = probes.loadable(signatures)
    ringbuf = settings.enable_ringbuffers and kernel.probe(Feature.RINGBUF) is True
    options = LoadOptions(
        programs=[probe.program for probe in fitting],
        constants=tracer.constants(kernel, ringbuf=ringbuf),
        map_edits=tracer.map_edits(kernel, wanted, ringbuf=ringbuf),
        kernel_btf=core.kernel_btf,
        signatures={probe.program: (probe.function, probe.signature) for probe in fitting},
    )
    loaded = kernel.load(ASSET.removesuffix(".o"), image, options)
    try:
        buffer = loaded.buffer(tracer.CLOSE_EVENTS, wanted.close_event_pages)

        def programs(asked: TracerSettings) -> tuple[str, ...]:
            return tuple(probe.program for probe in probes.choose(signatures, asked))

        return Tracer(Parts(kernel, loaded, buffer, programs, "fentry", ringbuf), wanted)
    except BaseException:
        loaded.close()
        raise
