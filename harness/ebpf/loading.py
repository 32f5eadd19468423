"""A module of programs into the kernel by the first way that works: the fallback chain with its real stages.

Laws: each stage tries from scratch; a stage that lost has left nothing in the kernel (``start`` sees to it); the
answer says which stage won, whose BTF it used, and why each other stage did not win.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Generic, TypeVar

from harness.ebpf.btf import ResultCode
from harness.ebpf.core import CoreOptions, load_core_asset
from harness.ebpf.fallback import Attempt, Stage, climb
from harness.ebpf.prebuilt import read_prebuilt
from harness.ebpf.runtime import compile_asset
from harness.ebpf.settings import BpfSettings
from harness.kernel_api import KernelApi, LoadOptions

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """What ``start`` returned, and how it came to that. ``btf``: whose it was, None where no BTF was asked for."""

    value: T
    stage: Stage
    btf: ResultCode | None
    attempts: tuple[Attempt, ...]

    def __str__(self) -> str:
        return str(self.stage) if self.btf is None else f"{self.stage} ({self.btf.words} BTF)"


def load_module(
    kernel: KernelApi, settings: BpfSettings, module: str, start: Callable[[bytes, LoadOptions], T]
) -> Loaded[T]:
    """Call ``start(image, options)`` with the object of each stage until it returns; ``options`` are pre-filled.

    Where every stage lost, the error of the last one is raised as ``fallback.climb`` says.
    """
    name = f"{module}-debug" if settings.bpf_debug else module

    def core() -> tuple[T, ResultCode | None]:
        def callback(asset: BinaryIO, options: CoreOptions) -> tuple[T, ResultCode | None]:
            return start(asset.read(), options.load), options.code

        return load_core_asset(settings, kernel, f"{name}.o", callback)

    def begin(image: bytes) -> T:
        kernel.lift_memory_limit()
        return start(image, LoadOptions())

    def runtime() -> tuple[T, ResultCode | None]:
        made = compile_asset(settings.bpf_dir, module, output_dir=settings.runtime_output_dir, debug=settings.bpf_debug)
        return begin(made.image), None

    def prebuilt() -> tuple[T, ResultCode | None]:
        return begin(read_prebuilt(settings.bpf_dir, name, kernel.release)), None

    outcome = climb(settings.switches, {Stage.CORE: core, Stage.RUNTIME: runtime, Stage.PREBUILT: prebuilt})
    # The last failure is no warning: its error is raised.
    followed = outcome.tried[: outcome.warnings]
    for attempt in outcome.attempts:
        log.log(logging.WARNING if attempt.stage in followed else logging.DEBUG, "%s: %s", module, attempt)
    if outcome.error is not None:
        raise outcome.error
    assert outcome.value is not None
    assert outcome.winner is not None
    return Loaded(outcome.value[0], outcome.winner, outcome.value[1], outcome.attempts)
