"""The prebuilt stage: an object made for one kernel, for when that kernel shows no BTF and has no compiler.

Laws: an object is loaded only on the release that stands in it, for its offsets are that kernel's and nothing would
say that they are wrong; one that says no release, or would need BTF to be loaded, is refused too.
"""

from __future__ import annotations

from pathlib import Path

from harness.ebpf import elf
from harness.ebpf.assets import open_asset
from harness.errors import AssetError, FormatError

RELEASE_SECTION = "kernel_release"
"""What holds the release, as text; the build puts it there."""

_in_use: set[str] = set()


def read_prebuilt(bpf_dir: Path, module: str, release: str) -> bytes:
    """The bytes of ``<bpf_dir>/<module>.o``. AssetError where it is missing, not root's, or for another kernel."""
    path = bpf_dir / f"{module}.o"
    with open_asset(bpf_dir, path.name) as asset:
        image = asset.read()
    check_release(image, release, str(path))
    _in_use.add(module)
    return image


def check_release(image: bytes, release: str, where: str) -> None:
    """(pure) AssetError unless the object was made for that release and loads without BTF; FormatError for no ELF."""
    try:
        made_for = elf.contents(image).get(RELEASE_SECTION)
        relocated = elf.relocations(image)
    except FormatError as error:
        raise FormatError(f"{where}: {error.message}") from None
    if made_for is None:
        raise AssetError(f"{where} does not say which kernel it was made for", hint="it is no prebuilt object")
    if made_for != release.encode():
        raise AssetError(
            f"{where} was made for {made_for.decode(errors='replace')}, this kernel is {release}",
            hint="install the object that was made for this kernel",
        )
    if relocated:
        raise AssetError(f"{where} has CO-RE relocations, so it needs BTF", hint="it is no prebuilt object")


def modules_in_use() -> frozenset[str]:
    """The prebuilt modules that this process has read."""
    return frozenset(_in_use)
