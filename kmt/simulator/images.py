"""The kernel images that are in the cache, or named as files, with what their own files say of them. Boots nothing."""

from __future__ import annotations

from collections.abc import Sequence

from harness.errors import FormatError
from kmt import archive
from kmt.archive import btf
from kmt.config import Config
from kmt.errors import KmtError
from kmt.kernel import Kernel, Version
from kmt.matrix import Row
from kmt.simulator import gates, points, profile
from kmt.simulator.derive import KernelFacts
from kmt.simulator.judge import Image
from kmt.simulator.types import Types


def at_hand(rows: Sequence[Row], config: Config) -> tuple[list[Image], list[str]]:
    """The rows' kernels that are here, the oldest first; and of each other row, why it is left out."""
    found: list[Image] = []
    left: list[str] = []
    for row in rows:
        said = archive.describe(row, config=config)
        if not said.cached:
            left.append(f"{row.name}: {said.note or 'not in the cache'}")
            continue
        try:
            found.append(read(archive.prepare(row, config=config)))
        except (KmtError, FormatError, OSError) as error:
            left.append(f"{row.name}: {error}")
    return sorted(found, key=lambda image: Version.parse(image.release)), left


def read(kernel: Kernel) -> Image:
    """A kernel's types and configuration. FormatError where it has no BTF."""
    raw = btf.raw(kernel)
    if raw is None:
        raise FormatError(f"{kernel.release} carries no BTF")
    config = points.configuration(kernel.config.read_text()) if kernel.config else {}
    told = KernelFacts(kernel.version.series, profile.recorded(), gates.load())
    return Image(kernel.name, kernel.release, Types.parse(raw.read_bytes()), config, told)
