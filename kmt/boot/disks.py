"""What a kernel needs beside the guest's root image, made once per kernel: its read-only disk and its initramfs.

The disk (erofs) is a layer of the guest's root: ``usr/lib/modules/<release>``, ``usr/src/linux-headers-*``,
``boot/config-<release>`` and, for a kernel without BTF of its own, the raw BTF as ``boot/vmlinux-<release>``, where
libbpf looks for it. The initramfs is two archives behind each other: busybox and modules, made with the disk; and
the agent, packed anew when it has changed.

Laws: addressed by content, built once under a lock, published by rename; equal input gives equal bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from kmt import archive, proc
from kmt.boot import cpio, modules
from kmt.errors import ImageError
from kmt.kernel import Kernel
from kmt.paths import cache, locked, published

RECIPE = "2"
"""Raise it when the same kernel would give other files."""
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "erofs", "overlay")
"""What reaching the disks and the agent's port takes, by module name."""
_STALE = 24 * 3600
"""Seconds after which nobody is about to boot an initramfs of another agent."""
_APPLETS = (
    *("cp", "insmod", "ip", "ln", "mkdir", "mount", "poweroff", "setsid", "sh", "sleep", "switch_root", "sync"),
)


@dataclass(frozen=True)
class KernelFiles:
    """A kernel's own files for a guest: its disk (None: it came without modules) and the initramfs's first part."""

    disk: Path | None
    base: Path


def check_whole(vmlinuz: Path) -> None:
    """Raise ImageError when a bzImage is shorter than its own header says: it would hang without a word.

    That it is a bzImage at all was checked when it was chosen (``kmt/archive/bzimage.py``).
    """
    try:
        with vmlinuz.open("rb") as file:
            head = file.read(0x238)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ImageError(f"{vmlinuz}: {error.strerror}") from None
    if len(head) < 0x238 or head[0x202:0x206] != b"HdrS":
        raise ImageError(f"{vmlinuz} is no Linux kernel image")
    # Documentation/arch/x86/boot.rst: setup_sects (0: 4) and, in units of 16 bytes, syssize.
    sectors, paragraphs = head[0x1F1] or 4, struct.unpack_from("<I", head, 0x1F4)[0]
    if size < (sectors + 1) * 512 + paragraphs * 16:
        raise ImageError(f"{vmlinuz} is cut short: it has {size} bytes and is made of more", hint="fetch it again")


def kernel_files(kernel: Kernel) -> KernelFiles:
    """The kernel's disk and initramfs, made if they are not there. Raises ImageError."""
    check_whole(kernel.vmlinuz)
    key = hashlib.sha256(f"{RECIPE} {kernel.digest} {kernel.release} {_script('initramfs.sh')}".encode()).hexdigest()
    room = cache("kernel-disks") / key[:32]
    if not room.is_dir():
        with locked(f"kernel-disk-{key[:32]}"):
            if not room.is_dir():
                with published(room) as work:
                    _make(kernel, work)
    disk = room / "kernel.erofs"
    return KernelFiles(disk if disk.is_file() else None, room / "base.cpio")


def initramfs(base: Path) -> Path:
    """The initramfs for a boot now: ``base`` and the agent as it is at this moment."""
    agent = agent_archive()
    kernel, digest = base.parent.name, hashlib.sha256(agent).hexdigest()[:16]
    target = cache("initramfs") / f"{kernel}-{digest}.cpio"
    if not target.is_file():
        for older in target.parent.glob(f"{kernel}-*.cpio"):  # of agents that were edited since
            with suppress(OSError):
                if time.time() - older.stat().st_mtime > _STALE:
                    older.unlink()
        with published(target) as work:
            work.write_bytes(base.read_bytes() + agent)
    return target


def agent_archive() -> bytes:
    """``kmt/guest`` as the initramfs has it: ``kmt/kmt_guest/*.py`` and ``kmt/init.sh``."""
    entries = [cpio.directory("kmt"), cpio.directory("kmt/kmt_guest")]
    for item in sorted(resources.files("kmt.guest").iterdir(), key=lambda i: i.name):
        if item.name.endswith(".py"):
            entries.append(cpio.file(f"kmt/kmt_guest/{item.name}", item.read_bytes()))
    entries.append(cpio.file("kmt/init.sh", _script("init.sh").encode(), executable=True))
    return cpio.archive(entries)


def base_archive(init: str, wanted: list[modules.Module]) -> bytes:
    """An initramfs of busybox, an ``/init`` and modules in the order in which to load them, optional ones marked."""
    names = ["bin", "dev", "proc", "sys", "root", "upper", "layers", "modules"]
    entries = [cpio.directory(name) for name in names]
    entries.append(cpio.file("bin/busybox", busybox(), executable=True))
    entries += [cpio.link(f"bin/{applet}", "busybox") for applet in _APPLETS]
    order = []
    for module in wanted:
        name = f"{modules.module_name(module.path.name)}.ko"
        entries.append(cpio.file(f"modules/{name}", modules.content(module.path)))
        order.append(f"{name} optional" if module.optional else name)
    entries.append(cpio.file("modules/order", "".join(f"{name}\n" for name in order).encode()))
    entries.append(cpio.file("init", init.encode(), executable=True))
    return cpio.archive(entries)


def busybox() -> bytes:
    """The static busybox of Debian, from the archive."""
    from debian.debfile import DebFile  # runs with all files made need not wait for it

    (package,) = archive.fetch_packages("trixie", ["busybox-static"])
    content = DebFile(str(package)).data.get_content("usr/bin/busybox")
    if not isinstance(content, bytes):
        raise ImageError(f"{package} holds no usr/bin/busybox")
    return content


def _script(name: str) -> str:
    return resources.files("kmt.guest").joinpath(name).read_text()


def _make(kernel: Kernel, room: Path) -> None:
    room.mkdir()
    tree = room / "tree"
    wanted: list[modules.Module] = []
    if kernel.modules is not None:
        directory = _copy_modules(kernel, tree)
        wanted = modules.load_order(directory, MODULES)
    (room / "base.cpio").write_bytes(base_archive(_script("initramfs.sh"), wanted))
    _copy_rest(kernel, tree)
    if tree.is_dir():
        erofs(tree, room / "kernel.erofs")
        shutil.rmtree(tree)


def erofs(tree: Path, target: Path) -> None:
    """``tree`` as an erofs image, all of it root's, the same bytes each time. Raises ImageError."""
    words = ["mkfs.erofs", "--quiet", "-zlz4", "-x-1", "-T0", "--all-root", "-U00000000-0000-0000-0000-000000000000"]
    proc.run([*words, target, tree], error=ImageError)


def _copy_modules(kernel: Kernel, tree: Path) -> Path:
    assert kernel.modules is not None
    directory = tree / "usr/lib/modules" / kernel.release
    _copy(kernel.modules, directory)
    for link in (directory / "build", directory / "source"):  # packages link them, headers installed or not
        if link.is_symlink():
            link.unlink()
    if any(h.name == f"linux-headers-{kernel.release}" for h in kernel.headers):
        (directory / "build").symlink_to(f"/usr/src/linux-headers-{kernel.release}")
    for common in (h for h in kernel.headers if h.name.endswith("-common")):
        (directory / "source").symlink_to(f"/usr/src/{common.name}")  # where BCC looks for what "build" lacks
    if not (directory / "modules.dep").is_file():
        proc.run(["depmod", "-b", tree / "usr", kernel.release], error=ImageError)
    return directory


def _copy_rest(kernel: Kernel, tree: Path) -> None:
    for headers in kernel.headers:
        _copy(headers, tree / "usr/src" / headers.name)
    for source, name in ((kernel.config, "config"), (kernel.btf, "vmlinux")):
        if source is not None:
            target = tree / "boot" / f"{name}-{kernel.release}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _copy(source: Path, target: Path) -> None:
    """A tree by hard links where that works; what is read-only stays shared, what is replaced here is not."""

    def link_or_copy(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copyfile(one, other)

    try:
        shutil.copytree(source, target, symlinks=True, copy_function=link_or_copy)
    except (OSError, shutil.Error) as error:
        raise ImageError(f"{source} cannot be copied: {error}") from None
