"""Which packages make a kernel, from index text alone; names and versions are those of Debian's archive."""

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.archive import packages, resolve
from kmt.kernel import Version


def paragraph(name, version="1-1", *, arch="amd64", depends="", path="pool/x.deb", size="100", digest=None):
    digest = digest or hashlib.sha256(f"{name} {version} {arch}".encode()).hexdigest()
    fields = {
        "Package": name,
        "Version": version,
        "Architecture": arch,
        "Depends": depends,
        "Filename": path,
        "Size": size,
        "Installed-Size": "7",
        "SHA256": digest,
        "Description": f"a text\n that names Package: linux-image-9.9.9-cloud-amd64 ({name})",
    }
    return "".join(f"{key}: {value}\n" for key, value in fields.items() if value) + "\n"


def single(release, version="1-1", *, unsigned=False, arch="amd64"):
    depends = f"kmod, linux-base (>= 4.3~), linux-base-{release} (= {version}), initramfs-tools | dracut"
    return paragraph(f"linux-image-{release}{'-unsigned' * unsigned}", version, arch=arch, depends=depends)


def split(release, version="1-1", *, gone=()):
    parts = [f"linux-{role}-{release}" for role in ("base", "binary", "modules")]
    shell = paragraph(f"linux-image-{release}", version, depends=", ".join(f"{p} (= {version})" for p in parts))
    return shell + "".join(paragraph(p, version) for p in parts if p.split("-")[1] not in gone)


def headers(release, common, version="1-1", *, gone=()):
    own = paragraph(
        f"linux-headers-{release}", version, depends=f"gcc-14, linux-headers-{common} (= {version}), kbuild"
    )
    shared = paragraph(f"linux-headers-{common}", version, arch="all")
    return ("" if "own" in gone else own) + ("" if "common" in gone else shared)


def newest(text, series="6.1", flavour="cloud-amd64"):
    return resolve.newest_whole(packages.parse(text, "s"), series, flavour, "amd64")


def test_one_package_with_everything_and_its_headers():
    text = "".join(
        single(f"6.1.0-{n}-cloud-amd64", f"6.1.{n}-1")
        + headers(f"6.1.0-{n}-cloud-amd64", f"6.1.0-{n}-common", f"6.1.{n}-1")
        for n in (9, 56, 48)
    )
    found = newest(text)
    assert found.release == "6.1.0-56-cloud-amd64"
    assert [p.name for p in found.packages] == [
        "linux-image-6.1.0-56-cloud-amd64",
        "linux-headers-6.1.0-56-cloud-amd64",
        "linux-headers-6.1.0-56-common",
    ]
    assert found.headers


def test_a_split_kernel_is_its_shell_and_its_parts():
    release = "7.3.4+deb13-cloud-amd64"
    found = newest(split(release), "7.3")
    assert [p.name.split("-")[1] for p in found.packages] == ["image", "binary", "modules", "base"]
    assert not found.headers


def test_a_split_kernel_without_its_modules_is_not_whole_and_an_older_one_may_be():
    text = split("7.1.8+deb13-cloud-amd64", gone=["modules", "base"])
    assert (
        newest(text, "7.1") == "no 7.1 kernel is whole: linux-modules-7.1.8+deb13-cloud-amd64 is gone from the archive"
    )
    found = newest(text + split("7.1.7+deb13-cloud-amd64"), "7.1")
    assert found.release == "7.1.7+deb13-cloud-amd64"


def test_parts_of_another_version_do_not_make_a_kernel_whole():
    release = "7.1.8+deb13-cloud-amd64"
    text = split(release, "2-1", gone=["modules"]) + paragraph(f"linux-modules-{release}", "1-1")
    assert "linux-modules" in newest(text, "7.1")


def test_ubuntus_shape():
    release = "5.15.0-100-generic"
    text = (
        paragraph(f"linux-image-{release}", depends=f"kmod, linux-base, linux-modules-{release}")
        + paragraph(f"linux-modules-{release}")
        + headers(release, "5.15.0-100")
    )
    found = newest(text, "5.15", "generic")
    assert [p.name for p in found.packages] == [
        f"linux-image-{release}",
        f"linux-modules-{release}",
        f"linux-headers-{release}",
        "linux-headers-5.15.0-100",
    ]


@pytest.mark.parametrize("gone", [["own"], ["common"], ["own", "common"]])
def test_headers_come_with_their_common_part_or_not_at_all(gone):
    release = "6.1.0-56-cloud-amd64"
    found = newest(single(release) + headers(release, "6.1.0-56-common", gone=gone))
    assert [p.name for p in found.packages] == [f"linux-image-{release}"]


def test_signed_before_unsigned_and_unsigned_before_nothing():
    release = "6.1.0-56-cloud-amd64"
    both = newest(single(release, unsigned=True) + single(release))
    assert both.packages[0].name == f"linux-image-{release}"
    assert newest(single(release, unsigned=True)).packages[0].name == f"linux-image-{release}-unsigned"


def test_metapackages_debug_symbols_and_other_flavours_are_no_kernels():
    text = (
        paragraph("linux-image-6.1-cloud-amd64", depends="linux-image-6.1.0-56-cloud-amd64 (= 1)")
        + paragraph("linux-image-cloud-amd64", depends="linux-image-6.1.0-56-cloud-amd64")
        + single("6.1.0-57-rt-amd64")
        + single("6.1.0-58-cloud-amd64").replace("amd64\nVersion", "amd64-dbg\nVersion")
        + single("6.1.0-59-amd64")
        + single("6.1.0-56-cloud-amd64")
    )
    assert newest(text).release == "6.1.0-56-cloud-amd64"
    assert newest(text, flavour="amd64").release == "6.1.0-59-amd64"
    assert newest(text, flavour="rt-amd64").release == "6.1.0-57-rt-amd64"


def test_what_is_there_instead_is_named():
    text = single("5.10.0-46-cloud-amd64") + single("6.12.1+deb13-cloud-amd64")
    assert newest(text, "5.15") == "no 5.15 kernel of flavour cloud-amd64; there now: 5.10, 6.12"
    assert newest("", "5.15").endswith("there now: none at all")


def test_kernels_for_another_architecture_do_not_count():
    assert newest(single("6.1.0-56-cloud-amd64", arch="arm64")) == "only kernels for arm64 there, none for amd64"


@given(st.sets(st.integers(1, 60), min_size=1), st.randoms(use_true_random=False))
def test_the_newest_wins_in_whatever_order_the_index_is(numbers, shuffle: random.Random):
    texts = [single(f"6.12.{n}+deb13-cloud-amd64") for n in numbers]
    shuffle.shuffle(texts)
    assert Version.parse(newest("".join(texts), "6.12").release).patch == max(numbers)


@given(st.lists(st.sampled_from(["base", "binary", "modules"])))
def test_no_release_without_its_image_or_modules_is_ever_chosen(gone):
    found = newest(split("7.1.8+deb13-cloud-amd64", gone=gone), "7.1")
    assert isinstance(found, str) == bool({"binary", "modules"} & set(gone))


@pytest.mark.parametrize(
    "bad",
    [
        {"path": "../../etc/passwd"},
        {"path": "/etc/passwd"},
        {"path": "pool/../../x"},
        {"path": ""},
        {"size": "many"},
        {"digest": "0" * 63},
        {"digest": "z" * 64},
    ],
)
def test_a_paragraph_that_cannot_be_trusted_is_no_package(bad):
    assert packages.parse(paragraph("linux-image-6.1.0-1-amd64", **bad), "s") == []


def test_packages_by_name():
    text = paragraph("busybox") + paragraph("busybox-static", "1:1.37-6") + single("6.1.0-1-amd64")
    (found,) = packages.parse(text, "trixie", ["busybox-static"])
    assert found.suite == "trixie"
    assert found.file_name == f"busybox-static_1%3a1.37-6_{found.sha256[:12]}.deb"


def test_dependencies_are_read_with_versions_alternatives_and_architectures():
    text = paragraph("linux-base-x", depends="a (>= 1) | b, c:any (= 2), d")
    assert packages.parse(text, "s")[0].depends == ("a", "b", "c", "d")
