"""Kernels that users bring as files: an image, and modules where they are found."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from kmt.archive import apt, bzimage
from kmt.errors import ArchiveError, ConfigError
from kmt.kernel import Kernel
from kmt.matrix import Row


def kernel(row: Row) -> Kernel:
    """The kernel of a row whose ``image`` is a file. Raises ConfigError (not there) or ArchiveError (no kernel)."""
    assert row.image is not None
    image = _image(row.image.expanduser().absolute())
    release = bzimage.read(image, arch=row.arch)
    modules = _modules(row, image, release)
    btf = row.btf.expanduser().absolute() if row.btf else None
    if btf is not None:
        check_btf(btf)
    config = next((p for p in (image.with_name(f"config-{release}"), image.with_name("config")) if p.is_file()), None)
    return Kernel(
        name=row.name,
        release=release,
        vmlinuz=image,
        modules=modules,
        config=config,
        headers=(),
        btf=btf,
        digest=_digest(image, modules, btf),
        origin=f"image {image}" + ("" if modules else ", without modules"),
    )


def _image(path: Path) -> Path:
    """The file meant by a path; in a directory where Linux was built, its bzImage."""
    built = path / "arch" / "x86" / "boot" / "bzImage"
    return built if built.is_file() else path


def check_btf(path: Path) -> None:
    """Raise unless the file is raw little-endian BTF (magic 0xeb9f, Documentation/bpf/btf.rst)."""
    try:
        with path.open("rb") as stream:
            magic = stream.read(2)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if magic != b"\x9f\xeb":
        raise ArchiveError(f"{path} is no raw BTF", hint="take /sys/kernel/btf/vmlinux, or objcopy .BTF out of vmlinux")


def _modules(row: Row, image: Path, release: str) -> Path | None:
    """The modules of that release: where the row says, beside the image, or installed on this machine."""
    if row.modules is not None:
        named = row.modules.expanduser().absolute()
        for path in (named, named / release, named / "lib" / "modules" / release):
            if (path / "modules.dep").is_file():
                return path
        hint = f"make it with: depmod -b DIR {release}"
        raise ConfigError(f"{named} holds no modules of {release} (no modules.dep)", hint=hint)
    beside = Path("lib") / "modules" / release
    for path in (image.parent.parent / beside, image.parent / beside, Path("/") / beside):
        if (path / "modules.dep").is_file():
            return path
    return None


def _digest(image: Path, modules: Path | None, btf: Path | None) -> str:
    """Identity by content for the image and BTF; by names, sizes and times for the modules, which may be many."""
    digest = hashlib.sha256(f"{apt.digest_of(image)} {apt.digest_of(btf) if btf else ''}".encode())
    for folder, folders, files in os.walk(modules) if modules else ():
        folders.sort()
        for name in sorted(files):
            path = Path(folder, name)
            stat = path.lstat()
            digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
