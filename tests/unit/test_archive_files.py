"""What is read off images, package members and apt's words, without apt, dpkg or a network."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.archive import bzimage, describe, local, mirror, prepare, unpack
from kmt.config import Config
from kmt.errors import ArchiveError, ConfigError, UnavailableError
from kmt.matrix import Row, Source, load

RELEASE = "6.6.9-cloud-amd64"


def bz(release=RELEASE, *, version=0x20F, flags=1, magic=b"HdrS"):
    """The first pages of a bzImage as the x86 boot protocol lays them out."""
    data = bytearray(0x3000)
    data[0x202:0x206] = magic
    struct.pack_into("<H", data, 0x206, version)
    struct.pack_into("<H", data, 0x20E, 0x2000 - 0x200)
    struct.pack_into("<H", data, 0x236, flags)
    text = f"{release} (who@where) #1 SMP\0".encode()
    data[0x2000 : 0x2000 + len(text)] = text
    return bytes(data)


def test_an_image_names_its_release():
    assert bzimage.release_of(bz()) == RELEASE


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no bzImage"),
        (b"MZ" + b"\0" * 5000, "no bzImage"),
        (b"\x7fELF" + b"\0" * 5000, "vmlinux"),
        (b"\x1f\x8b" + b"\0" * 5000, "gzip"),
        (b"!<arch>\n" + b"\0" * 5000, "a package"),
        (b"MZ" + b"\0" * 0x36 + b"ARM\x64" + b"\0" * 5000, "arm64"),
        (bz(flags=0), "32-bit x86"),
        (bz(version=0x203), "32-bit x86"),
        (bz()[:0x2000], "no release"),
        (bz("../../etc"), "no release"),
        (bz("6.1/../../x"), "no release"),
        (bz("weird"), "no release"),
    ],
)
def test_what_is_no_kernel_for_us_says_what_it_is(data, said, tmp_path):
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(ArchiveError, match=said) as caught:
        prepare(Row("x", image=tmp_path / "image"), config=Config(tmp_path))
    assert str(tmp_path / "image") in str(caught.value)


@given(st.binary(max_size=600) | st.binary(max_size=64).map(lambda b: bz()[:0x210] + b))
def test_any_bytes_are_an_image_or_a_typed_error(data):
    try:
        assert bzimage.release_of(data)
    except ValueError as error:
        said = str(error)
        assert said.startswith("it")


def modules_in(path):
    path.mkdir(parents=True)
    (path / "modules.dep").touch()
    return path


def test_an_image_finds_its_modules_beside_it(tmp_path):
    image = tmp_path / "boot" / "vmlinuz"
    image.parent.mkdir()
    image.write_bytes(bz())
    row = Row("mine", image=image)
    assert local.kernel(row).modules is None
    far = modules_in(tmp_path / "lib" / "modules" / RELEASE)
    assert local.kernel(row).modules == far
    kernel = local.kernel(Row("mine", image=image, modules=tmp_path))
    assert (kernel.name, kernel.release, kernel.modules, kernel.vmlinuz) == ("mine", RELEASE, far, image)


def test_identity_follows_content(tmp_path):
    image = tmp_path / "vmlinuz"
    image.write_bytes(bz())
    row = Row("mine", image=image)
    before = local.kernel(row).digest
    assert local.kernel(row).digest == before
    found = modules_in(tmp_path / "lib" / "modules" / RELEASE)
    with_modules = local.kernel(row).digest
    (found / "x.ko").write_text("x")
    assert len({before, with_modules, local.kernel(row).digest}) == 3


def test_a_built_tree_stands_for_its_image(tmp_path):
    image = tmp_path / "arch" / "x86" / "boot" / "bzImage"
    image.parent.mkdir(parents=True)
    image.write_bytes(bz())
    assert local.kernel(Row("mine", image=tmp_path)).vmlinuz == image


@pytest.mark.parametrize("missing", ["image", "modules", "btf"])
def test_a_file_that_is_not_there_is_named(tmp_path, missing):
    (tmp_path / "image").write_bytes(bz())
    row = Row("x", image=tmp_path / ("no" if missing == "image" else "image"))
    row = Row("x", image=row.image, **({missing: tmp_path / "no"} if missing != "image" else {}))
    with pytest.raises(ConfigError, match=str(tmp_path / "no")):
        local.kernel(row)


def test_btf_is_looked_at(tmp_path):
    (tmp_path / "image").write_bytes(bz())
    (tmp_path / "btf").write_bytes(b"\x9f\xeb\x01\x00")
    assert local.kernel(Row("x", image=tmp_path / "image", btf=tmp_path / "btf")).btf == tmp_path / "btf"
    (tmp_path / "btf").write_bytes(b"\x7fELF")
    with pytest.raises(ArchiveError, match="no raw BTF"):
        local.kernel(Row("x", image=tmp_path / "image", btf=tmp_path / "btf"))


def test_the_row_of_no_archive_names_the_ways_to_bring_one(tmp_path):
    (row,) = load().select(["5.15"])
    with pytest.raises(UnavailableError) as caught:
        prepare(row, config=Config(tmp_path))
    for way in ("image", "archive", "--kernel"):
        assert way in str(caught.value)
    assert row.note in str(caught.value)
    described = describe(row, config=Config(tmp_path))
    assert (described.release, described.cached) == (None, False)
    assert row.note in described.note


def test_a_row_for_another_architecture_is_unavailable(tmp_path):
    with pytest.raises(UnavailableError, match="arm64"):
        prepare(Row("x", "6.1", arch="arm64", suites=("s",)), config=Config(tmp_path))


@pytest.mark.parametrize(
    ("member", "place"),
    [
        ("./boot/vmlinuz-R", "boot/vmlinuz-R"),
        ("./boot/config-R", "boot/config-R"),
        ("./boot/vmlinuz-other", None),
        ("./lib/modules/R/kernel/a.ko.xz", "lib/modules/R/kernel/a.ko.xz"),
        ("./usr/lib/modules/R/kernel/a.ko.xz", "lib/modules/R/kernel/a.ko.xz"),
        ("./usr/lib/modules/R/vmlinuz", "boot/vmlinuz-R"),
        ("./usr/lib/modules/R/config", "boot/config-R"),
        ("./lib/modules/R/build", None),
        ("./lib/modules/R/source", None),
        ("./lib/modules/other/a.ko", None),
        ("./usr/src/linux-headers-R/Makefile", "usr/src/linux-headers-R/Makefile"),
        ("./usr/src/other/x", None),
        ("./usr/share/doc/x", None),
        ("./etc/passwd", None),
        ("../boot/vmlinuz-R", None),
        ("/boot/vmlinuz-R", None),
        ("./lib/modules/R/../../../etc/passwd", None),
        ("./usr/src/linux-headers-R/../../../../etc/passwd", None),
    ],
)
def test_members_are_taken_by_place(member, place):
    assert unpack.wanted(member, "R") == place


names = st.lists(
    st.sampled_from(["..", ".", "", "usr", "src", "linux-headers-R", "lib", "modules", "R", "x"]), max_size=9
)


@given(names.map("/".join))
def test_no_member_leads_out(member):
    place = unpack.wanted(member, "R")
    assert place is None or not (place.startswith("/") or ".." in place.split("/"))


@pytest.mark.parametrize(
    ("name", "link", "good"),
    [
        ("usr/src/linux-headers-R/scripts", "../../lib/linux-kbuild/scripts", True),
        ("usr/src/linux-headers-R/a", "b", True),
        ("usr/src/linux-headers-R/a", "/etc/passwd", False),
        ("usr/src/linux-headers-R/a", "../../../../etc/passwd", False),
        ("usr/src/linux-headers-R/a", "../../..", True),
        ("usr/src/linux-headers-R/a", "../../../..", False),
    ],
)
def test_links_stay_inside(name, link, good):
    assert unpack.stays(name, link) is good


PRESENT = """\
Somebody|bookworm|http://other.invalid/debian/
Debian|bookworm|http://a.invalid/debian/
Debian|bookworm-updates|http://a.invalid/debian/
Debian|bookworm-security|http://a.invalid/debian-security/
"""
PLANNED = """\
'http://docker.invalid/linux/debian/dists/bookworm/InRelease' x 0
'mirror+file:/etc/apt/mirrors/debian.list/dists/trixie/InRelease' x 0
'mirror+file:/etc/apt/mirrors/debian.list/dists/trixie-updates/InRelease' x 0
'http://b.invalid/security/dists/trixie-security/InRelease' x 0
'http://b.invalid/nodistro/dists/nodistro/InRelease' x 0
'http://b.invalid/debian/dists/trixie/main/binary-amd64/Packages.xz' x 0
"""


def test_the_mirror_is_read_from_what_apt_has():
    assert mirror.known(PRESENT, PLANNED) == mirror.Mirror(
        "http://a.invalid/debian", "http://a.invalid/debian-security"
    )


def test_a_machine_that_never_updated_still_names_its_mirror():
    found = mirror.known("", PLANNED)
    assert found == mirror.Mirror("mirror+file:/etc/apt/mirrors/debian.list", "http://b.invalid/security")


def test_a_machine_without_a_security_archive_gets_the_usual_place():
    found = mirror.known("Debian|sid|http://a.invalid/debian/", "")
    assert found.of("bullseye-security") == "http://a.invalid/debian-security"
    assert found.of("trixie-backports") == "http://a.invalid/debian"


def test_a_machine_of_another_distribution_names_none():
    assert (
        mirror.known("Ubuntu|noble|http://a.invalid/ubuntu/\n", "'http://a.invalid/ubuntu/dists/noble/InRelease' x 0\n")
        is None
    )


def test_the_environment_overrules(monkeypatch, tmp_path):
    monkeypatch.setenv("KMT_MIRROR", "http://me.invalid/debian/")
    monkeypatch.delenv("KMT_MIRROR_SECURITY", raising=False)
    assert mirror.mirror() == mirror.Mirror("http://me.invalid/debian", "http://me.invalid/debian-security")
    monkeypatch.setenv("KMT_MIRROR_SECURITY", "http://sec.invalid/x")
    monkeypatch.setenv("KMT_KEYRING", str(tmp_path / "k.gpg"))
    with pytest.raises(ConfigError, match=r"k\.gpg"):
        mirror.keyring()
    (tmp_path / "k.gpg").touch()
    assert mirror.sources(["bullseye-security"]) == [
        f"deb [signed-by={tmp_path}/k.gpg] http://sec.invalid/x bullseye-security main"
    ]


def test_an_archive_of_a_rows_own_needs_its_keyring(tmp_path):
    with pytest.raises(ConfigError, match="no keyring at"):
        mirror.source("jammy", Source("http://x.invalid/ubuntu", tmp_path / "none.gpg"))
