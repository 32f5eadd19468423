"""The initramfs of a machine that Vagrant manages: that of QEMU's guests, with an SSH server in the agent's place.

``kmt/guest/initramfs.sh`` puts the root together from disks as for QEMU's guests, then runs ``/run/kmt/init.sh``, which
here is ``kmt/vagrant/init.sh``. The server (dropbear) and its libraries come from the archive; the key that it lets in
is of this cache. One initramfs a kernel, addressed by content.
"""

from __future__ import annotations

import hashlib
import tarfile
from functools import cache as once
from importlib import resources
from pathlib import Path

from debian.debfile import DebFile

from kmt import archive, proc
from kmt.boot import cpio, disks
from kmt.errors import ImageError
from kmt.kernel import Kernel
from kmt.paths import cache, locked, published
from kmt.roots import rootfs

SERVER = ("dropbear-bin", "libtomcrypt1", "libtommath1", "libgmp10")
"""Packages of the server that the guest's root may lack."""


def key() -> Path:
    """The private SSH key of this cache's machines, made when it is missing; ``.pub`` beside it.

    ECDSA in PEM: what Vagrant's own SSH client (net-ssh) reads without further libraries.
    """
    target = cache("vagrant") / "key"
    if not target.is_file():
        with locked("vagrant-key"):
            if not target.is_file():
                with published(target) as work:
                    words = ["ssh-keygen", "-q", "-t", "ecdsa", "-m", "PEM", "-N", "", "-C", "kmt", "-f", str(work)]
                    proc.run(words, error=ImageError)
                    work.with_suffix(".pub").replace(target.with_suffix(".pub"))
    return target


def make(kernel: Kernel) -> Path:
    """The initramfs for a kernel, made if it is not there. Raises ImageError and what fetching can raise."""
    base = disks.kernel_files(kernel).base
    ours = _archive()
    digest = hashlib.sha256(ours).hexdigest()[:16]
    target = cache("vagrant", "initramfs") / f"{base.parent.name}-{digest}.cpio"
    if not target.is_file():
        with published(target) as work:
            work.write_bytes(base.read_bytes() + ours)
    return target


def _archive() -> bytes:
    """Our part: ``kmt/init.sh``, ``kmt/ssh/*``, ``kmt/authorized_keys``."""
    init = resources.files("kmt.vagrant").joinpath("init.sh").read_bytes()
    entries = [cpio.directory("kmt"), cpio.directory("kmt/ssh"), cpio.file("kmt/init.sh", init, executable=True)]
    entries += [cpio.file(f"kmt/ssh/{name}", data, executable=True) for name, data in _server()]
    entries.append(cpio.file("kmt/authorized_keys", key().with_suffix(".pub").read_bytes()))
    return cpio.archive(entries)


@once
def _server() -> tuple[tuple[str, bytes], ...]:
    """The server and its libraries: names and contents."""
    found: dict[str, bytes] = {}
    for package in archive.fetch_packages(rootfs.recipe().suite, SERVER):
        with DebFile(str(package)).data.tgz() as files:
            found |= dict(_programs(files))
    if "dropbear" not in found:
        raise ImageError("the package dropbear-bin holds no dropbear")
    return tuple(sorted(found.items()))


def _programs(files: tarfile.TarFile) -> list[tuple[str, bytes]]:
    """The server and the shared libraries of a package, by the names under which they are loaded."""
    found = []
    for member in files:
        name = Path(member.name).name
        if name == "dropbear" or (".so." in name and "/lib/" in member.name):
            content = files.extractfile(member)  # follows a link to the file itself
            if content is not None:
                found.append((name, content.read()))
    return found
