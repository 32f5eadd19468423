"""The prebuilt stage: an object made before, for kernels that give no BTF and have no compiler."""

from __future__ import annotations

from pathlib import Path

from harness.ebpf.assets import open_asset

_in_use: set[str] = set()


def read_prebuilt(bpf_dir: Path, module: str) -> bytes:
    """The bytes of ``<bpf_dir>/<module>.o``. Raises AssetError where it is missing or not root's."""
    with open_asset(bpf_dir, f"{module}.o") as asset:
        image = asset.read()
    _in_use.add(module)
    return image


def modules_in_use() -> frozenset[str]:
    """The prebuilt modules that this process has read."""
    return frozenset(_in_use)
