"""The embedded collection: minimised BTF of kernels, for machines whose kernel shows none.

``minimized-btfs.tar.xz`` holds ``<platform>/<release>.btf.tar.xz``, and each of these ``<release>.btf``: BTF cut to
the types that the project's CO-RE objects relocate against. Law: equal input gives equal bytes.
"""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from kmt.paths import cache, published
from kmt.roots.compiler import Compiler

PLACE = "co-re/btf/minimized-btfs.tar.xz"
"""Where ``KMT_BPF_DIR`` has it."""
PLATFORM = "debian"
"""Of every guest, whatever its kernel: its root is Debian's."""


def minimized(compiler: Compiler, btf: Path, objects: Sequence[Path]) -> bytes:
    """The types of ``btf`` that the objects' relocations name, and those that they are made of."""
    with published(cache("types") / "minimized") as work:
        argv = ["bpftool", "gen", "min_core_btf", str(btf), str(work), *map(str, objects)]
        readable = {btf.parent, *(path.parent for path in objects)}
        compiler.exec(argv, readable=sorted(readable), writable=[work.parent])
        return work.read_bytes()


def write(target: Path, members: Mapping[str, bytes]) -> None:
    """The collection of these kernels: release to minimised BTF."""
    inner = {f"{PLATFORM}/{r}.btf.tar.xz": archive({f"{r}.btf": content}) for r, content in sorted(members.items())}
    target.write_bytes(archive(inner))


def archive(members: Mapping[str, bytes]) -> bytes:
    """(pure) A tar in xz of these files, owned by root."""
    out = io.BytesIO()
    with lzma.open(out, "wb") as packed, tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(members.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()
