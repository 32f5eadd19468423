"""What only one kernel's guest gets: real kernels, real compiler, and what is said where something is missing."""

import gzip
import hashlib
import io
import lzma
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from harness.ebpf import elf
from harness.ebpf.btf_parser import Btf
from harness.ebpf.embedded import Embedded
from harness.ebpf.prebuilt import check_release
from harness.errors import AssetError
from kmt import archive, build, build_kernel, config, embedded, matrix, paths
from kmt.archive import btf
from kmt.config import Config
from kmt.errors import ArchiveError, BuildError, ConfigError
from kmt.roots.compiler import Compiler

pytestmark = pytest.mark.host_only

SOURCE = """\
#if defined(COMPILE_PREBUILT)
#include "vmlinux.h"
#elif defined(COMPILE_RUNTIME)
#include <linux/sched.h>
#include <uapi/linux/bpf.h>
#else
#include <linux/bpf.h>
#include <linux/types.h>
struct task_struct {
\tint pid;
} __attribute__((preserve_access_index));
#endif
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#if defined(COMPILE_PREBUILT) || defined(COMPILE_RUNTIME)
#define READ BPF_PROBE_READ
#else
#define READ BPF_CORE_READ
#endif

SEC("tracepoint/sched/sched_switch")
int answer(void *ctx)
{
\treturn READ((struct task_struct *)bpf_get_current_task(), pid) == 1;
}

char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture(scope="module")
def kernels():
    """A kernel with headers and one without, from this machine's cache."""
    rows = matrix.load().select(["6.12", "6.18"])
    return {row.name: archive.prepare(row, config=config.Config(paths.PACKAGE.parent)) for row in rows}


@pytest.fixture
def project(tmp_path, monkeypatch):
    Compiler().ensure_running()
    compilers = paths.cache("compilers")
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    paths.cache()
    (tmp_path / "cache/v1/compilers").symlink_to(compilers)
    root = tmp_path / "a project, with spaces"
    (root / "src").mkdir(parents=True)
    (root / "src/one.bpf.c").write_text(SOURCE)
    return Config(root, sources=("src/*.bpf.c",), prebuilt=("src/*.bpf.c",))


def made(project, kernel):
    return build_kernel.build(project, build.build(project), kernel)


def test_what_a_kernel_gets(project, kernels):
    kernel = kernels["6.12"]
    tree = made(project, kernel)
    assert tree.left_out == ()
    files = {str(p.relative_to(tree.dir)) for p in tree.dir.rglob("*") if p.is_file()}
    compiled = next(name for name in files if name.startswith("runtime/compiled/") and name.endswith(".o"))
    assert files == {"one.o", compiled, f"{compiled}.sha256", embedded.PLACE}
    assert all(p.stat().st_mode & 0o022 == 0 for p in tree.dir.rglob("*"))
    prebuilt, common = (tree.dir / "one.o").read_bytes(), build.build(project)
    check_release(prebuilt, kernel.release, "one.o")
    assert elf.relocations(common.objects["one"].read_bytes()) > 0
    assert elf.relocations((tree.dir / compiled).read_bytes()) == 0
    digest = hashlib.sha256((tree.dir / compiled).read_bytes()).hexdigest()
    assert (tree.dir / f"{compiled}.sha256").read_text().strip() == digest
    # The code is the same, but for where the field is: both know that from the kernel itself.
    code = "tracepoint/sched/sched_switch"
    assert elf.contents(prebuilt)[code] == elf.contents((tree.dir / compiled).read_bytes())[code]


def test_the_minimised_btf_holds_what_the_object_relocates_against(project, kernels, tmp_path):
    kernel = kernels["6.12"]
    room = tmp_path / "found"
    room.mkdir()
    (room / Path(embedded.PLACE).name).write_bytes((made(project, kernel).dir / embedded.PLACE).read_bytes())
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text("ID=debian\n")
    found = Embedded(room, kernel.release, root=tmp_path).find()
    minimised = found.path.read_bytes()
    assert len(minimised) < 2000 < btf.raw(kernel).stat().st_size
    assert b"task_struct\0" in minimised
    assert len(Btf.parse(minimised)) > 0


def test_equal_content_is_built_once_and_another_kernel_gets_another(project, kernels):
    first = made(project, kernels["6.12"])
    stamp = (first.dir / "one.o").stat().st_mtime_ns
    assert made(project, kernels["6.12"]) == first
    assert (first.dir / "one.o").stat().st_mtime_ns == stamp
    other = made(project, kernels["6.18"])
    assert other.dir != first.dir
    assert other.left_out == (f"programs compiled against headers: {kernels['6.18'].release} came without any",)
    assert not list(other.dir.glob("runtime/compiled/*"))
    with pytest.raises(AssetError, match=r"was made for 6\.18"):
        check_release((other.dir / "one.o").read_bytes(), kernels["6.12"].release, "one.o")
    (project.root / "src/one.bpf.c").write_text(SOURCE.replace("== 1", "== 2"))
    assert made(project, kernels["6.12"]).dir != first.dir


def test_a_kernel_without_btf_gets_no_prebuilt_objects(project, kernels):
    bare = replace(kernels["6.12"], btf=None, digest="0" * 64)
    (paths.cache("btf") / f"{bare.digest[:32]}.btf").write_bytes(b"")
    tree = made(project, bare)
    assert tree.left_out == (f"prebuilt programs: {bare.release} carries no BTF",)
    assert not (tree.dir / "one.o").exists()
    assert list(tree.dir.glob("runtime/compiled/*.o"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("#define READ BPF_PROBE_READ", "#define READ BPF_CORE_READ", "has CO-RE relocations"),
        ("== 1", "== nope", r"does not compile for 6\.12"),
    ],
)
def test_mistakes_name_the_kernel_or_what_to_do(project, kernels, old, new, said):
    only_here = SOURCE.replace(old, new, 1)
    if "nope" in new:
        only_here = only_here.replace("nope", "\n#ifdef COMPILE_PREBUILT\nnope\n#else\n1\n#endif\n")
    (project.root / "src/one.bpf.c").write_text(only_here)
    with pytest.raises(BuildError, match=said) as caught:
        made(project, kernels["6.12"])
    assert "one.bpf.c" in str(caught.value)


def test_a_glob_that_means_no_source_is_named(project, kernels):
    with pytest.raises(ConfigError, match=r"prebuilt: 'bpf/\*\.c' matches none of the sources"):
        made(replace(project, prebuilt=("bpf/*.c",)), kernels["6.12"])


def image(payload, *, offset=0, length=None):
    """The head of a bzImage with this payload behind one sector of set-up."""
    head = bytearray(1024)
    head[0x1F1] = 1
    struct.pack_into("<II", head, 0x248, offset, len(payload) if length is None else length)
    return bytes(head) + payload


@pytest.mark.parametrize(
    ("pack", "tail"),
    [(gzip.compress, b"size"), (lambda d: lzma.compress(d, lzma.FORMAT_XZ), b"size"), (bytes, b"")],
    ids=["gzip", "xz", "stored"],
)
def test_vmlinux_comes_out_of_an_image(tmp_path, pack, tail):
    path = tmp_path / "vmlinuz"
    path.write_bytes(image(pack(b"\x7fELF whatever") + tail))
    assert btf.vmlinux(path) == b"\x7fELF whatever"


@pytest.mark.parametrize(
    "content", [b"", bytes(2000), image(b"garbage"), image(b"\x1f\x8bgarbage"), image(b"\xfd7zXZ\0x")]
)
def test_an_image_that_cannot_be_read_is_said(tmp_path, content):
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="the kernel inside cannot be read"):
        btf.vmlinux(path)
    with pytest.raises(ArchiveError, match="no ELF file"):
        btf.section(content, ".BTF")


def test_a_collection_of_equal_input_is_equal_bytes(tmp_path):
    for name in ("a", "b"):
        embedded.write(tmp_path / name, {"6.1.0": b"one", "6.2.0": b"two"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with tarfile.open(tmp_path / "a") as tar:
        assert tar.getnames() == ["debian/6.1.0.btf.tar.xz", "debian/6.2.0.btf.tar.xz"]
        inner = tar.extractfile("debian/6.2.0.btf.tar.xz").read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as tar:
        assert tar.extractfile("6.2.0.btf").read() == b"two"
