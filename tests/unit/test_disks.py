"""A kernel's disk and initramfs: made once, whole or not at all, and the same each time."""

import os
import shutil
import time

import pytest

from kmt.boot import disks
from kmt.errors import ImageError
from kmt.kernel import Kernel

RELEASE = "6.1.0-test"


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A kernel of made-up files, with a cache of its own; nothing is built into it."""
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(disks, "busybox", lambda: b"\x7fELF busybox")
    modules = tmp_path / "modules"
    (modules / "kernel").mkdir(parents=True)
    names = [f"kernel/{name}.ko" for name in disks.MODULES]
    for name in names:
        (modules / name).write_bytes(b"\x7fELF " + name.encode())
    (modules / "modules.dep").write_text("".join(f"{name}:\n" for name in names))
    (modules / "build").symlink_to("/nowhere")
    headers = tmp_path / f"linux-headers-{RELEASE}"
    headers.mkdir()
    (headers / "Makefile").write_text("all:\n")
    common = tmp_path / "linux-headers-6.1-common"
    common.mkdir()
    (tmp_path / "config").write_text("CONFIG_BPF=y\n")
    (tmp_path / "btf").write_bytes(b"\x9f\xeb")
    image = bytearray(0x400)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    (tmp_path / "vmlinuz").write_bytes(image)
    parts = {"vmlinuz": tmp_path / "vmlinuz", "modules": modules, "config": tmp_path / "config"}
    return Kernel(
        "t", RELEASE, **parts, headers=(headers, common), btf=tmp_path / "btf", digest="d" * 64, origin="a test"
    )


def changed(kernel, **values):
    return Kernel(**{**{name: getattr(kernel, name) for name in kernel.__dataclass_fields__}, **values})


def test_the_disk_is_laid_out_for_the_guests_root(kernel, monkeypatch):
    seen = {}

    def look(tree, target):
        seen.update({str(p.relative_to(tree)): p.is_symlink() and os.readlink(p) for p in tree.rglob("*")})  # noqa: PTH115
        target.write_bytes(b"disk")

    monkeypatch.setattr(disks, "erofs", look)
    disks.kernel_files(kernel)
    modules = f"usr/lib/modules/{RELEASE}"
    assert f"{modules}/modules.dep" in seen
    assert seen[f"{modules}/build"] == f"/usr/src/linux-headers-{RELEASE}"
    assert seen[f"{modules}/source"] == "/usr/src/linux-headers-6.1-common"
    assert f"usr/src/linux-headers-{RELEASE}/Makefile" in seen
    assert f"boot/config-{RELEASE}" in seen
    assert f"boot/vmlinux-{RELEASE}" in seen


def test_without_headers_there_is_no_link_to_them(kernel, monkeypatch):
    seen = []
    monkeypatch.setattr(disks, "erofs", lambda tree, target: seen.extend(p.name for p in tree.rglob("*")))
    disks.kernel_files(changed(kernel, headers=()))
    assert "modules.dep" in seen
    assert "build" not in seen


def test_made_once_and_the_same_each_time(kernel):
    files = disks.kernel_files(kernel)
    first = files.disk.read_bytes(), files.base.read_bytes()
    stamp = files.disk.stat().st_mtime_ns
    assert disks.kernel_files(kernel) == files
    assert files.disk.stat().st_mtime_ns == stamp
    shutil.rmtree(files.base.parent)
    again = disks.kernel_files(kernel)
    assert (again.disk.read_bytes(), again.base.read_bytes()) == first


def test_another_digest_is_another_disk(kernel):
    assert disks.kernel_files(kernel).base != disks.kernel_files(changed(kernel, digest="e" * 64)).base


def test_its_source_stays_as_it_was(kernel):
    before = sorted((p.name, p.lstat().st_size) for p in kernel.modules.rglob("*"))
    disks.kernel_files(kernel)
    assert sorted((p.name, p.lstat().st_size) for p in kernel.modules.rglob("*")) == before
    assert (kernel.modules / "build").is_symlink()


def test_a_kernel_that_is_only_an_image_needs_no_disk(kernel):
    bare = changed(kernel, modules=None, config=None, headers=(), btf=None)
    files = disks.kernel_files(bare)
    assert files.disk is None
    assert files.base.is_file()


def test_what_fails_leaves_nothing(kernel):
    (kernel.modules / "modules.dep").write_text("kernel/virtio_pci.ko:\n")
    with pytest.raises(ImageError, match="no module virtio_blk"):
        disks.kernel_files(kernel)
    assert not [p for p in disks.cache("kernel-disks").iterdir() if p.is_dir()]


def test_a_kernel_that_is_cut_short_is_refused(kernel):
    whole = bytearray(kernel.vmlinuz.read_bytes())
    whole[0x1F4:0x1F8] = (1000).to_bytes(4, "little")
    kernel.vmlinuz.write_bytes(whole)
    with pytest.raises(ImageError, match="cut short"):
        disks.kernel_files(kernel)


def test_an_edited_agent_is_packed_anew_and_old_ones_go(kernel, monkeypatch):
    base = disks.kernel_files(kernel).base
    old = disks.initramfs(base)
    assert disks.initramfs(base) == old
    monkeypatch.setattr(disks, "agent_archive", lambda: b"another agent")
    assert disks.initramfs(base).read_bytes() == base.read_bytes() + b"another agent"
    assert old.is_file()
    os.utime(old, (time.time() - 2 * disks._STALE,) * 2)
    monkeypatch.setattr(disks, "agent_archive", lambda: b"a third agent")
    disks.initramfs(base)
    assert not old.is_file()
