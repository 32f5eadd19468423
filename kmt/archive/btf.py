"""A kernel's type information (BTF) out of its image: no boot, no package besides the kernel's own.

A bzImage holds vmlinux, an ELF file, compressed; its section ``.BTF`` is what a running kernel shows as
``/sys/kernel/btf/vmlinux``. Where the payload lies: Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from kmt import proc
from kmt.errors import ArchiveError
from kmt.kernel import Kernel
from kmt.paths import cache, locked, published


def raw(kernel: Kernel) -> Path | None:
    """A file with the kernel's raw BTF: what its row names, else what its image carries; None where it has none."""
    if kernel.btf is not None or not kernel.digest:
        return kernel.btf
    target = cache("btf") / f"{kernel.digest[:32]}.btf"
    if not target.is_file():
        with locked(f"btf-{kernel.digest[:32]}"):
            if not target.is_file():
                with published(target) as work:
                    work.write_bytes(section(vmlinux(kernel.vmlinuz), ".BTF"))
    return target if target.stat().st_size else None


def vmlinux(image: Path) -> bytes:
    """The ELF file inside a bzImage. Raises ArchiveError."""
    try:
        data = image.read_bytes()
        sectors = data[0x1F1] or 4
        offset, length = struct.unpack_from("<II", data, 0x248)
        payload = data[(sectors + 1) * 512 + offset :][:length]
        return _unpacker(payload)(payload)
    except (OSError, EOFError, IndexError, struct.error, lzma.LZMAError, zlib.error, ValueError) as error:
        raise ArchiveError(f"{image}: the kernel inside cannot be read: {error}") from None


def _unpacker(payload: bytes) -> Callable[[bytes], bytes]:
    """By the first bytes. Behind the compressed data stands its length, which some formats take for garbage."""
    for magic, unpack in {
        b"\xfd7zXZ\0": _xz,
        b"\x28\xb5\x2f\xfd": lambda d: _program(["zstd", "-dcq"], d[:-4]),
        b"\x02\x21\x4c\x18": lambda d: _program(["lz4", "-dcq"], d[:-4]),
        b"\x1f\x8b": lambda d: gzip.GzipFile(fileobj=io.BytesIO(d[:-4])).read(),
        b"\x7fELF": bytes,
    }.items():
        if payload.startswith(magic):
            return unpack
    raise ValueError(f"it is compressed in an unknown way ({payload[:6].hex()})")


def _xz(data: bytes) -> bytes:
    unpacker = lzma.LZMADecompressor()
    unpacked = unpacker.decompress(data)
    if not unpacker.eof:
        raise ValueError("its xz data is cut short")
    return unpacked


def _program(argv: list[str], data: bytes) -> bytes:
    with tempfile.TemporaryFile() as out:
        proc.run(argv, input=data, stdout=out, error=ArchiveError)
        out.seek(0)
        return out.read()


def section(elf: bytes, name: str) -> bytes:
    """That section of an ELF file; empty where it has none. Raises ArchiveError."""
    try:
        found = ELFFile(io.BytesIO(elf)).get_section_by_name(name)
        return bytes(found.data()) if found is not None else b""
    except (ELFError, ValueError, KeyError, AttributeError, struct.error) as error:
        raise ArchiveError(f"the kernel inside the image is no ELF file: {error}") from None
