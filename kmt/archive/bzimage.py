"""What a kernel image says of itself: architecture and release, read from its first pages.

Offsets are those of the x86 boot protocol (Documentation/arch/x86/boot.rst in Linux): "HdrS" at 0x202, its version
at 0x206, the release's text at the offset in 0x20e plus 0x200, xloadflags (bit 0: a 64-bit kernel) at 0x236.
"""

from __future__ import annotations

import struct
from pathlib import Path

from kmt.errors import ArchiveError, ConfigError
from kmt.kernel import Version

_ENOUGH = 1 << 16
_OTHERS = {
    b"\x1f\x8b": "it is compressed (gzip), as arm64's images are",
    b"\xfd7zXZ": "it is compressed (xz)",
    b"\x28\xb5\x2f\xfd": "it is compressed (zstd)",
    b"!<arch>": "it is a package; unpack it and give its boot/vmlinuz",
}


def release_of(data: bytes) -> str:
    """(pure) The release of a 64-bit x86 bzImage, from its first pages. ValueError says what it is instead."""
    if data[:4] == b"\x7fELF":
        raise ValueError("it is an ELF file, perhaps vmlinux; give the bzImage (arch/x86/boot/bzImage, vmlinuz)")
    if data[0x38:0x3C] == b"ARM\x64":
        raise ValueError("it is a kernel for arm64, and only amd64 ones can be booted")
    if data[0x30:0x34] == b"RISC" or data[0x38:0x3C] == b"RSC\x05":
        raise ValueError("it is a kernel for riscv, and only amd64 ones can be booted")
    for magic, words in _OTHERS.items():
        if data.startswith(magic):
            raise ValueError(words)
    if data[0x202:0x206] != b"HdrS" or len(data) < 0x238:
        raise ValueError("it is no bzImage (no boot header)")
    version, xloadflags = struct.unpack_from("<H", data, 0x206)[0], struct.unpack_from("<H", data, 0x236)[0]
    if version < 0x20C or not xloadflags & 1:
        raise ValueError("it is a kernel for 32-bit x86, and only amd64 ones can be booted")
    text, end = _said(data)
    release = text.split(" ")[0]
    try:
        Version.parse(release)
    except ValueError:
        release = ""
    if not end or not release or "/" in release:
        raise ValueError("its boot header names no release")
    return release


def _said(data: bytes) -> tuple[str, bool]:
    start = struct.unpack_from("<H", data, 0x20E)[0] + 0x200
    text, end, _ = data[start : start + 256].partition(b"\0")
    return text.decode("ascii", errors="replace"), bool(end)


def version_of(data: bytes) -> str:
    """(pure) What ``uname -v`` says of a bzImage that ``release_of`` has read: ``#1 SMP Debian 5.10.262-1 (...)``."""
    return _said(data)[0].partition(") ")[2]


def version(path: Path) -> str:
    """``version_of`` an image file that is known to be one. Raises ArchiveError."""
    try:
        with path.open("rb") as stream:
            return version_of(stream.read(_ENOUGH))
    except (OSError, struct.error) as error:
        raise ArchiveError(f"{path}: {error}") from None


def read(path: Path, *, arch: str = "amd64") -> str:
    """The release of an image file. Raises ConfigError when it is not there, ArchiveError when it is no such kernel."""
    if arch != "amd64":
        raise ArchiveError(f"{path} is for {arch}, and only amd64 kernels can be booted")
    try:
        with path.open("rb") as stream:
            return release_of(stream.read(_ENOUGH))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ArchiveError(f"{path} cannot be booted: {error}") from None
