"""The box: the root image of QEMU's guests as a disk that Vagrant can hand to libvirt. One for every kernel.

It is made of the very image (``kmt/roots/image.py``), so that it holds the same packages; unpacked, for the disk is
compressed as a whole. Kernels and what they bring are not in it: each row's is booted directly.

Laws: named by what is in it, so ``vagrant box add`` runs only when that has changed; boxes of older images are removed,
from Vagrant's home and the cache, but those that a machine may still be using are left to the next time.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

from kmt import proc
from kmt.config import Config
from kmt.errors import ImageError
from kmt.paths import locked, published
from kmt.roots import image, rootfs
from kmt.roots.rootfs import Progress, quiet
from kmt.vagrant.daemon import Session, home, need

RECIPE = 1
"""Raise it when the same image would give another box."""
PREFIX = "kmt-"
OLD_SECONDS = 24 * 3600
"""How long a box that is not this project's is kept: another project's may be in use."""
_ADD_SECONDS = 300.0
_DISK = "box.img"


@dataclass(frozen=True)
class Box:
    """``name`` as Vagrant knows it, the digest in it, and the file that ``vagrant box add`` takes."""

    name: str
    digest: str
    path: Path


def ensure_box(config: Config, progress: Progress = quiet) -> Box:
    """The project's box, made if it is not there, and known to Vagrant in ``daemon.home()``. Raises ImageError."""
    need("vagrant", "qemu-img")
    root = image.ensure(config, progress)
    box = named(root)
    with locked("vagrant-box"):
        if not box.path.is_file():
            try:
                _make(root, box, progress)
            except (ImageError, OSError) as error:
                raise rootfs.failure("the box could not be made", str(error).splitlines()) from error
        if not installed(box).is_file():
            progress("box: vagrant box add", 2, 3)
            _add(box)
        _remove_older(box)
    progress("box: ready", 3, 3)
    return box


def named(root: Path) -> Box:
    """(pure) The box that is made of a root image."""
    digest = hashlib.sha256(f"{RECIPE} {root.stem}".encode()).hexdigest()[:16]
    name = f"{PREFIX}{digest}"
    return Box(name, digest, root.parent.parent / "vagrant" / "boxes" / f"{name}.box")


def installed(box: Box) -> Path:
    """The disk of a box that Vagrant has taken (or would)."""
    return home() / "boxes" / box.name / "0" / "libvirt" / _DISK


def lend(box: Box, session: Session) -> None:
    """Put the disk into the session's storage pool by a link, under the name that vagrant-libvirt looks for.

    Without it each session's first machine copies it there, which takes seconds and its size. A link costs neither.
    """
    disk = installed(box)
    # vagrant-libvirt's name for the disk of a box without a version: HandleBoxImage.get_volume_name.
    name = f"{box.name}_vagrant_box_image_0_{int(disk.stat().st_mtime)}_box.img"
    target = session.room / "pool" / name
    if not target.exists():
        target.hardlink_to(disk)
        proc.run([*session.prefix, "virsh", "--quiet", "pool-refresh", "kmt"], env=session.env, error=ImageError)


def _make(root: Path, box: Box, progress: Progress) -> None:
    """The box file: tar of metadata.json and box.img, a qcow2 of a file system that is not compressed itself."""
    rootfs.need("fsck.erofs", "mkfs.erofs", "qemu-img")
    progress("box: packing", 0, 3)
    with published(box.path) as work:
        tree, plain, disk = (work.with_name(name) for name in ("tree", "plain", _DISK))
        proc.run(["fsck.erofs", f"--extract={tree}", root], error=ImageError)
        words = ["mkfs.erofs", "--quiet", "-T0", "--all-root", "-U00000000-0000-0000-0000-000000000000"]
        proc.run([*words, plain, tree], error=ImageError)
        options = "compression_type=zstd,cluster_size=262144"
        proc.run(["qemu-img", "convert", "-q", "-c", "-O", "qcow2", "-o", options, plain, disk], error=ImageError)
        gigabytes = -(-plain.stat().st_size // 2**30)
        about = {"provider": "libvirt", "format": "qcow2", "virtual_size": gigabytes}
        work.with_name("metadata.json").write_text(json.dumps(about))
        progress("box: packing", 1, 3)
        proc.run(["tar", "-C", work.parent, "-cf", work, "metadata.json", _DISK], error=ImageError)


def _add(box: Box) -> None:
    try:
        _vagrant("box", "add", "--name", box.name, "--provider", "libvirt", str(box.path))
        said = "" if installed(box).is_file() else "it is not where Vagrant keeps boxes"
    except ImageError as error:
        said = error.message
    if said:
        raise ImageError(f"Vagrant does not take the box {box.path}: {said}", hint=f"rm {box.path}, and run this again")


def _remove_older(box: Box) -> None:
    """Boxes that this one has replaced: those that nobody has made or used for a day."""
    for file in box.path.parent.glob(f"{PREFIX}*.box"):
        if file != box.path and time.time() - file.stat().st_mtime > OLD_SECONDS:
            file.unlink()
    for directory in (home() / "boxes").glob(f"{PREFIX}*"):
        if directory.name != box.name and not (box.path.parent / f"{directory.name}.box").exists():
            _vagrant("box", "remove", "--force", "--all", directory.name)


def _vagrant(*words: str) -> None:
    env = {"VAGRANT_HOME": str(home()), "VAGRANT_CWD": str(home()), "VAGRANT_CHECKPOINT_DISABLE": "1"}
    proc.run(["vagrant", *words], env=env, timeout=_ADD_SECONDS, error=ImageError)
