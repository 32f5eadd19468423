"""The CO-RE asset loader: BTF, then the asset, then the caller's own code that puts it into the kernel.

Laws: every call stores exactly one result code for its asset, below 3 if and only if the callback returned; without
BTF or asset the callback is never called; the callback's error is raised unchanged; the asset is closed at the end.
Of callers that come first at the same time one makes the loader, and its settings hold until ``reset``. Loads are
counted as ``ebpf__core__load`` ``success`` (with ``btf_type``) and ``error`` (with ``error_type``), once a call.
"""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from harness.ebpf.assets import open_asset
from harness.ebpf.btf import BtfLoader, ResultCode, forget_kernels
from harness.ebpf.embedded import os_release
from harness.ebpf.settings import BpfSettings
from harness.errors import AssetError, BtfError, HarnessError, VerifierError
from harness.kernel_api import Feature, KernelApi, LoadOptions
from harness.telemetry import PROMETHEUS, MetricGroup

T = TypeVar("T")


@dataclass(frozen=True)
class CoreOptions:
    """What a callback gets with the asset: the BTF to relocate against (None: libbpf finds the kernel's own)."""

    kernel_btf: Path | None
    code: ResultCode

    @property
    def load(self) -> LoadOptions:
        """The same as options of a load, to add to."""
        return LoadOptions(kernel_btf=self.kernel_btf)


class CoreLoader:
    """Loads assets of ``core_dir``; ``report`` hears the result code of every call, whatever became of it."""

    def __init__(self, core_dir: Path, btf: BtfLoader, report: Callable[[str, ResultCode], None]) -> None:
        self._dir = core_dir
        self.btf = btf
        self._report = report

    def load(self, file: str, start: Callable[[BinaryIO, CoreOptions], T]) -> T:
        """Call ``start(asset, options)`` and return what it returns.

        Raises BtfError, AssetError, or what ``start`` raised.
        """
        code = ResultCode.LOADER_ERROR
        try:
            try:
                found = self.btf.get()
            except BtfError as error:
                code = ResultCode.BTF_NOT_FOUND
                raise BtfError(f"BTF load: {error.message}", hint=error.hint) from error
            try:
                asset = open_asset(self._dir, file)
            except AssetError as error:
                code = ResultCode.ASSET_READ_ERROR
                raise AssetError(f"error reading {file}: {error.message}", hint=error.hint) from error
            with asset:
                try:
                    value = start(asset, CoreOptions(found.path, found.code))
                except BaseException as error:
                    verifier = any(isinstance(e, VerifierError) for e in _chain(error))
                    code = ResultCode.VERIFIER_ERROR if verifier else ResultCode.LOADER_ERROR
                    raise
            code = found.code
            return value
        finally:
            self._report(Path(file).stem, code)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


_LOADS = MetricGroup("ebpf.core.load", PROMETHEUS)
_lock = threading.Lock()
_loader: CoreLoader | None = None
_codes: dict[str, ResultCode] = {}


def _report(asset: str, code: ResultCode) -> None:
    """Store the code, then count it, with labels that say where; where they cannot be told nothing is counted."""
    with _lock:
        _codes[asset] = code
    system, machine = os_release(), os.uname()
    if "ID" not in system:
        return
    tags = {
        "platform": system["ID"],
        "platform_version": system.get("VERSION_ID", ""),
        "kernel": machine.release,
        "arch": machine.machine,
        "asset": asset,
    }
    good = code <= ResultCode.DEFAULT_BTF
    tags["btf_type" if good else "error_type"] = code.words
    words = [f"{key}:{value}" for key, value in tags.items()]
    if good:
        _LOADS.counter("success", *words, help="CO-RE programs loaded, by the source of their BTF.").add()
    else:
        _LOADS.counter("error", *words, help="CO-RE programs that could not be loaded, by the reason.").add()


def result_codes() -> dict[str, ResultCode]:
    """The last result code of every asset asked for in this process (a copy)."""
    with _lock:
        return dict(_codes)


def setup(settings: BpfSettings, kernel: KernelApi) -> CoreLoader:
    """The process-wide loader, made by the first caller; later settings are ignored until ``reset``."""
    global _loader
    with _lock:
        if _loader is None:
            kernel.lift_memory_limit()
            core_dir = settings.bpf_dir / "co-re"
            shown = partial(kernel.probe, Feature.BTF)
            btf = BtfLoader(kernel.release, settings.btf_path, core_dir / "btf", shown=shown)
            _loader = CoreLoader(core_dir, btf, _report)
        return _loader


def load_core_asset(
    settings: BpfSettings, kernel: KernelApi, file: str, start: Callable[[BinaryIO, CoreOptions], T]
) -> T:
    """``CoreLoader.load`` of the process-wide loader."""
    return setup(settings, kernel).load(file, start)


def flush_btf() -> None:
    """Forget what the BTF sources answered."""
    with _lock:
        loader = _loader
    if loader is not None:
        loader.btf.flush()
    else:
        forget_kernels()


def reset() -> None:
    """Forget the loader, its settings and its BTF; does nothing where there is none."""
    global _loader
    flush_btf()
    with _lock:
        _loader = None


def raise_memlock() -> None:
    """Lift the limit on locked memory, from which kernels before 5.11 take maps and programs."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError) as error:
        raise HarnessError(f"rlimit memlock: {error}", hint="it takes root, or CAP_SYS_RESOURCE") from None
