"""The box: the root image of QEMU's guests as a disk that Vagrant can hand to libvirt. One for every kernel.

It is made of the very image (``kmt/roots/image.py``), so that it holds the same packages; unpacked, for the disk is
compressed as a whole. Kernels and what they bring are not in it: each row's is booted directly.

Laws: named by what is in it, so ``vagrant box add`` runs only when that has changed; boxes of older images are removed,
from Vagrant's home and the cache, but those that a machine may still be using are left to the next time. Nothing is
removed that is not named as ours are, nor through a link: links lead to the user's boxes (``boxes.py``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kmt import proc
from kmt.config import Config
from kmt.errors import ImageError
from kmt.paths import locked, published
from kmt.roots import image, rootfs
from kmt.roots.rootfs import Progress, quiet
from kmt.vagrant.daemon import VAGRANTFILE, Session, home, need

RECIPE = 2
"""Raise it when the same image would give another box."""
PREFIX = "kmt-"
NAME = re.compile(r"kmt-[0-9a-f]{16}", re.ASCII)
"""The names that our boxes have, and no row's ``box`` may have."""
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
        os.utime(box.path)  # it is used: nobody removes it for a day
        if not is_installed(box):
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


def is_installed(box: Box) -> bool:
    """Vagrant has it, and the whole of it: a ``box add`` that was killed leaves a part."""
    disk = installed(box)
    return disk.is_file() and disk.with_name("metadata.json").is_file()


def lend(box: Box, session: Session) -> None:
    """Put the disk into the session's storage pool by a link, under the name that vagrant-libvirt looks for.

    Without it (a file system may have no links) each session's first machine copies it there, which takes seconds and
    its size. A link costs neither.
    """
    disk = installed(box)
    # vagrant-libvirt's name for the disk of a box without a version: HandleBoxImage.get_volume_name.
    name = f"{box.name}_vagrant_box_image_0_{int(disk.stat().st_mtime)}_box.img"
    target = session.room / "pool" / name
    if target.exists():
        return
    with suppress(OSError):
        target.hardlink_to(disk)
        proc.run([*session.prefix, "virsh", "--quiet", "pool-refresh", "kmt"], env=session.env, error=ImageError)


def _make(root: Path, box: Box, progress: Progress) -> None:
    """The box file: tar of metadata.json and box.img, a qcow2 of a file system that is not compressed itself."""
    rootfs.need("fsck.erofs", "mkfs.erofs", "qemu-img")
    progress("box: packing", 0, 3)
    with published(box.path) as work:
        tree, plain, disk = (work.with_name(name) for name in ("tree", "plain", _DISK))
        proc.run(["fsck.erofs", "--preserve-perms", f"--extract={tree}", root], error=ImageError)
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
    _remove(installed(box).parents[2])  # a part of it: Vagrant neither completes nor replaces that
    try:
        _vagrant("box", "add", "--name", box.name, "--provider", "libvirt", str(box.path))
        said = "" if is_installed(box) else "it is not where Vagrant keeps boxes"
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
            _remove(directory)


def _remove(directory: Path) -> None:
    """Remove a box of ours from Vagrant's home; what is not ours is left alone."""
    if NAME.fullmatch(directory.name) and not directory.is_symlink():
        shutil.rmtree(directory, ignore_errors=True)


def _vagrant(*words: str) -> None:
    env = {"VAGRANT_HOME": str(home()), "VAGRANT_CWD": str(home()), "VAGRANT_CHECKPOINT_DISABLE": "1"}
    env["VAGRANT_VAGRANTFILE"] = VAGRANTFILE
    proc.run(["vagrant", *words], env=env, timeout=_ADD_SECONDS, error=ImageError)
