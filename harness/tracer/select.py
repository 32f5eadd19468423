"""Which tracer: the fentry tracer where it is meant to be, the kprobe tracer where that one says it is not.

Law: only NotSupportedError of the fentry tracer leads to the kprobe tracer; any other error is the caller's, for a
tracer that fails where it should work must not be replaced in silence.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from harness.ebpf.settings import BpfSettings
from harness.errors import NotSupportedError
from harness.kernel_api import KernelApi
from harness.tracer import fentry, kprobe
from harness.tracer.fargate import on_fargate
from harness.tracer.settings import TracerSettings
from harness.tracer.tracer import Tracer

log = logging.getLogger(__name__)


def new_tracer(
    kernel: KernelApi,
    settings: BpfSettings,
    wanted: TracerSettings | None = None,
    *,
    fargate: Callable[[], bool] = lambda: on_fargate(os.environ),
) -> Tracer:
    """Load and attach the tracer that belongs here; ``kind`` says which it is."""
    try:
        return fentry.load_tracer(kernel, settings, wanted, fargate=fargate)
    except NotSupportedError as error:
        log.info("fentry tracer: %s; trying the kprobe tracer", error)
    return kprobe.load_tracer(kernel, settings, wanted)
