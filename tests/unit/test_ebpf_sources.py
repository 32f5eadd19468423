"""BTF sources in order, and the check of an asset's owner: files of this test, no kernel."""

import os
import stat
from pathlib import Path

import pytest

from harness.ebpf.assets import check_owner
from harness.ebpf.btf import BtfLoader, Found, ResultCode
from harness.ebpf.headers import Headers, find_headers
from harness.ebpf.settings import BpfSettings
from harness.errors import AssetError, BtfError, SettingsError

RELEASE = "6.12.1-test"
GOOD = bytes.fromhex("9feb0100180000000000000000000000000000000100000000")
"""BTF without a type: a header, and one NUL of strings."""


def put(root, path, data=GOOD):
    path = root / path.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def loader(tmp_path, custom=None):
    return BtfLoader(RELEASE, custom, root=tmp_path)


@pytest.mark.parametrize("custom", [None, "good", "garbage", "missing"])
@pytest.mark.parametrize("kernel", [True, False])
def test_the_first_source_that_has_it_wins(tmp_path, custom, kernel):
    own = put(tmp_path, "/sys/kernel/btf/vmlinux") if kernel else None
    path = tmp_path / "custom.btf" if custom else None
    if custom in ("good", "garbage"):
        path.write_bytes(GOOD if custom == "good" else b"garbage")
    btf = loader(tmp_path, path)
    if custom == "good":
        assert btf.get() == Found(ResultCode.CUSTOM_BTF, path)
    elif kernel:
        assert btf.get() == Found(ResultCode.DEFAULT_BTF, own, own.parent)
    else:
        with pytest.raises(BtfError, match="kernel: not supported") as caught:
            btf.get()
        assert ("configured BTF file" in str(caught.value)) == (custom is not None)
        assert "btf_path" in caught.value.hint


def test_packages_of_the_kernel_are_asked_after_the_kernel(tmp_path):
    second = put(tmp_path, f"/usr/lib/debug/boot/vmlinux-{RELEASE}")
    assert loader(tmp_path).get() == Found(ResultCode.DEFAULT_BTF, second)
    first = put(tmp_path, f"/boot/vmlinux-{RELEASE}")
    assert loader(tmp_path).get() == Found(ResultCode.DEFAULT_BTF, first)
    own = put(tmp_path, "/sys/kernel/btf/vmlinux")
    assert loader(tmp_path).get() == Found(ResultCode.DEFAULT_BTF, own, own.parent)


def test_the_kernels_own_is_left_to_libbpf():
    btf = BtfLoader(os.uname().release)
    if Path("/sys/kernel/btf/vmlinux").exists():
        assert btf.get() == Found(ResultCode.DEFAULT_BTF, None, Path("/sys/kernel/btf"))
    else:
        assert btf.get().path is not None


def test_an_answer_is_kept_until_flushed_and_an_error_never(tmp_path):
    btf = loader(tmp_path)
    with pytest.raises(BtfError):
        btf.get()
    own = put(tmp_path, "/sys/kernel/btf/vmlinux")
    assert btf.get().code is ResultCode.DEFAULT_BTF
    own.unlink()
    assert btf.get().code is ResultCode.DEFAULT_BTF
    btf.flush()
    with pytest.raises(BtfError):
        btf.get()


def status(mode=0o644, uid=0, gid=0, kind=stat.S_IFREG):
    return os.stat_result((kind | mode, 1, 1, 1, uid, gid, 0, 0, 0, 0))


@pytest.mark.parametrize("good", [status(), status(0o400), status(0o755)])
def test_an_asset_of_root_passes(good):
    check_owner(Path("x.o"), good)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (status(0o664), "mode 0664"),
        (status(0o646), "mode 0646"),
        (status(uid=1000), "owner 1000"),
        (status(gid=5), "group 5"),
        (status(kind=stat.S_IFDIR), "no regular file"),
        (status(kind=stat.S_IFIFO), "no regular file"),
    ],
)
def test_an_asset_of_others_does_not(bad, said):
    with pytest.raises(AssetError, match=said):
        check_owner(Path("x.o"), bad)


@pytest.mark.parametrize(
    ("release", "own", "common"),
    [
        ("5.10.0-32-cloud-amd64", "linux-headers-5.10.0-32-cloud-amd64", "linux-headers-5.10.0-32-common"),
        ("6.1.0-50-amd64", "linux-headers-6.1.0-50-amd64", "linux-headers-6.1.0-50-common"),
        ("7.3.4+deb13-cloud-amd64", "linux-headers-7.3.4+deb13-cloud-amd64", "linux-headers-7.3.4+deb13-common"),
        ("6.6.1", "linux-headers-6.6.1", None),
    ],
)
def test_headers_are_found_in_both_halves(tmp_path, release, own, common):
    assert find_headers(release, root=tmp_path) is None
    wanted = [tmp_path / "usr/src" / name for name in (own, common) if name]
    for tree in wanted:
        (tree / "include/generated").mkdir(parents=True)
    assert find_headers(release, root=tmp_path) == Headers(wanted[0], wanted[-1], None)
    (wanted[0] / "include/generated/utsrelease.h").write_text(f'#define UTS_RELEASE "{release}"\n')
    assert find_headers(release, root=tmp_path) == Headers(wanted[0], wanted[-1], release)
    build = tmp_path / f"lib/modules/{release}/build"
    build.parent.mkdir(parents=True)
    build.symlink_to(wanted[0])
    assert find_headers(release, root=tmp_path) == Headers(wanted[0], wanted[-1], release)


def test_headers_of_another_kernel_are_none(tmp_path):
    (tmp_path / "usr/src/linux-headers-6.1.0-50-amd64/include").mkdir(parents=True)
    assert find_headers("6.1.0-51-amd64", root=tmp_path) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bpf_dir": "/tmp"}, "bpf_dir must be a path"),
        ({"btf_path": 3}, "btf_path must be a path"),
        ({"enable_co_re": "yes"}, "enable_co_re must be True or False"),
        ({"allow_prebuilt_fallback": 1}, "allow_prebuilt_fallback must be True or False"),
    ],
)
def test_settings_of_the_wrong_type_are_refused(changed, said):
    with pytest.raises(SettingsError, match=said):
        BpfSettings(**{"bpf_dir": Path("/tmp"), **changed})
