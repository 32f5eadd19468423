"""The parts of an initramfs: cpio archives, the order of modules, their content; and the agent's part of it."""

import gzip
import lzma
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.boot import cpio, disks, modules
from kmt.errors import ImageError

NAMES = st.text("abcdef_0", min_size=1, max_size=20)


def parsed(data):
    """The members of concatenated newc archives, by the format's description and not by our writer."""
    found, at = [], 0
    while at < len(data):
        if data[at : at + 6] != b"070701":
            assert not any(data[at : at + 512 - at % 512])
            at += 512 - at % 512
            continue
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + length - 1].decode()
        start = at + (110 + length + 3) // 4 * 4
        found.append((name, mode, data[start : start + size]))
        at = start + (size + 3) // 4 * 4
    return found


@given(st.lists(st.tuples(NAMES, st.binary(max_size=600), st.booleans())))
def test_what_goes_in_comes_out(members):
    entries = [cpio.file(name, data, executable=executable) for name, data, executable in members]
    *out, trailer = parsed(cpio.archive(entries))
    assert trailer == ("TRAILER!!!", 0, b"")
    assert out == [(name, 0o100755 if executable else 0o100644, data) for name, data, executable in members]


def test_archives_can_be_concatenated():
    one, other = cpio.archive([cpio.directory("a")]), cpio.archive([cpio.link("a/b", "c")])
    assert len(one) % 512 == len(other) % 512 == 0
    assert [m for m in parsed(one + other) if m[0] != "TRAILER!!!"] == [("a", 0o40755, b""), ("a/b", 0o120777, b"c")]


def tree(path, *, dep="", builtin="", softdep=""):
    path.mkdir(exist_ok=True)
    for name, text in (("dep", dep), ("builtin", builtin), ("softdep", softdep)):
        (path / f"modules.{name}").write_text(text)
    return path


def order(path, *wanted):
    return [m.path.name for m in modules.load_order(path, wanted)]


def test_dependencies_come_first_and_once(tmp_path):
    tree(
        tmp_path,
        dep="k/a.ko: k/b.ko k/c.ko\nk/b.ko: k/c.ko\nk/c.ko:\nk/d-e.ko.xz: k/c.ko\n",
    )
    assert order(tmp_path, "a", "d_e") == ["c.ko", "b.ko", "a.ko", "d-e.ko.xz"]


def test_what_is_built_in_is_not_loaded(tmp_path):
    tree(tmp_path, dep="kernel/a.ko: kernel/b.ko\nkernel/b.ko:\n", builtin="kernel/drivers/virtio-pci.ko\n")
    assert order(tmp_path, "virtio_pci", "a") == ["b.ko", "a.ko"]


def test_soft_dependencies_that_exist_are_loaded_before(tmp_path):
    tree(
        tmp_path,
        dep="kernel/libcrc32c.ko:\nkernel/crc32c-generic.ko.zst:\n",
        softdep="# comment\nsoftdep libcrc32c pre: crc32c_generic crc32c post: later\n",
    )
    assert order(tmp_path, "libcrc32c") == ["crc32c-generic.ko.zst", "libcrc32c.ko"]


def test_a_soft_dependency_may_be_an_alias_and_may_refuse_to_load(tmp_path):
    tree(
        tmp_path,
        dep="k/libcrc32c.ko:\nk/crc32c-intel.ko:\nk/crc32c_generic.ko: k/base.ko\nk/base.ko:\n"
        "k/erofs.ko: k/libcrc32c.ko k/base.ko\n",
        softdep="softdep libcrc32c pre: crc32c\nsoftdep crc32c_intel pre: crc32c-intel\n",
    )
    (tmp_path / "modules.alias").write_text("alias crc32c crc32c_intel\nalias crc32c crc32c_generic\nalias x* y\n")
    loaded = modules.load_order(tmp_path, ["erofs"])
    names = [(m.path.name, m.optional) for m in loaded]
    # base is needed by a module that must load, so it must load itself.
    assert names == [
        ("crc32c-intel.ko", True),
        ("base.ko", False),
        ("crc32c_generic.ko", True),
        ("libcrc32c.ko", False),
        ("erofs.ko", False),
    ]


def test_a_module_that_is_nowhere_is_named(tmp_path):
    tree(tmp_path / "6.66.6", dep="kernel/a.ko:\n")
    with pytest.raises(ImageError, match=r"kernel 6\.66\.6 has no module erofs and it is not built in"):
        order(tmp_path / "6.66.6", "a", "erofs")


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.sets(st.sampled_from("abcdefgh"), max_size=3), min_size=1))
def test_order_is_a_topological_one(tmp_path_factory, graph):
    # Edges only towards later letters: modules have no cycles.
    graph = {name: sorted(d for d in needs if d > name and d in graph) for name, needs in graph.items()}
    dep = "".join(f"k/{n}.ko: {' '.join(f'k/{d}.ko' for d in needs)}\n" for n, needs in graph.items())
    loaded = order(tree(tmp_path_factory.mktemp("modules") / "1.0", dep=dep), *graph)
    assert sorted(loaded) == sorted(f"{name}.ko" for name in graph)
    for name, needs in graph.items():
        assert all(loaded.index(f"{d}.ko") < loaded.index(f"{name}.ko") for d in needs)


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".zst"])
def test_content_is_decompressed(tmp_path, suffix):
    plain = b"\x7fELF" + bytes(range(256)) * 100
    path = tmp_path / f"a.ko{suffix}"
    if suffix == ".zst":
        subprocess.run(["zstd", "-q", "-o", path], input=plain, check=True)
    else:
        path.write_bytes({"": bytes, ".xz": lzma.compress, ".gz": gzip.compress}[suffix](plain))
    assert modules.content(path) == plain


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zst"])
def test_a_damaged_module_is_an_error_that_names_it(tmp_path, suffix):
    path = tmp_path / f"broken.ko{suffix}"
    path.write_bytes(b"this is not compressed at all")
    with pytest.raises(ImageError, match=r"broken\.ko"):
        modules.content(path)


def test_the_agents_part_has_the_agent_and_init_and_is_the_same_each_time():
    names = [name for name, _, _ in parsed(disks.agent_archive())]
    assert {"kmt/init.sh", "kmt/kmt_guest/__main__.py", "kmt/kmt_guest/wire.py"} <= set(names)
    assert disks.agent_archive() == disks.agent_archive()
