"""The embedded BTF collection: which member is meant, and archives that are hostile, broken, or as they should be."""

import io
import lzma
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ebpf import embedded
from harness.ebpf.btf import BtfLoader, Found, ResultCode
from harness.ebpf.embedded import COLLECTION, Embedded, Platform, choose, platform
from harness.errors import BtfError

BTF = bytes.fromhex("9feb0100180000000000000000000000000000000100000000")
RELEASE = "6.1.0-56-cloud-amd64"
AMAZON = "4.14.320-242.534.amzn2.aarch64"
RHEL = "3.10.0-1062.0.0.0.1.el7.x86_64"


def member(place, release):
    return f"{place}/{release}.btf.tar.xz"


@pytest.mark.parametrize(
    ("host", "release", "places", "chosen"),
    [
        (Platform("amzn", "2"), AMAZON, ["amzn"], "amzn"),
        (Platform("ubuntu", "22.04"), AMAZON, ["amzn"], "amzn"),
        (Platform("ubuntu", "22.04"), "4.15.0-1029-aws", ["ubuntu/18.04"], "ubuntu/18.04"),
        (Platform("ubuntu", "20.04"), "5.4.0-80-generic", ["ubuntu/18.04", "ubuntu/20.04"], "ubuntu/20.04"),
        (Platform("rhel", "7"), RHEL, ["centos", "ubuntu/22.04"], "centos"),
        (Platform("debian", "12"), RHEL, ["centos", "ubuntu/22.04"], "centos"),
        (Platform("debian", "12"), RELEASE, ["debian", "fedora"], "debian"),
        (Platform("sles", "15"), "5.14.21-150300.7-default", ["opensuse-leap", "fedora"], "opensuse-leap"),
    ],
)
def test_the_member_that_is_meant(host, release, places, chosen):
    assert choose(host, release, [member(p, release) for p in places]) == member(chosen, release)


@pytest.mark.parametrize(
    ("host", "release", "places", "said"),
    [
        (Platform("ubuntu", "22.04"), "15.0", [], "no BTF file in embedded collection matching kernel version 15.0"),
        (
            Platform("ubuntu", "22.04"),
            "5.4.0-80-generic",
            ["ubuntu/18.04", "ubuntu/20.04"],
            "ubuntu platform version incorrectly detected as 22.04",
        ),
        (
            Platform("debian"),
            "5.4.0-80-generic",
            ["ubuntu/18.04", "ubuntu/20.04"],
            "likely one of ubuntu/18.04, ubuntu",
        ),
        (Platform("debian"), RHEL, ["rhel", "centos"], "likely one of centos, rhel"),
        (Platform("debian"), RHEL, ["fedora", "ubuntu/22.04"], "BTF platform incorrectly detected as debian"),
    ],
)
def test_where_none_or_several_are_meant_it_says_so(host, release, places, said):
    with pytest.raises(BtfError, match=said) as caught:
        choose(host, release, [member(p, release) for p in places])
    assert bool(places) == ("/host/etc/os-release" in caught.value.hint)


PLACES = ["amzn", "centos", "debian", "fedora", "ol", "rhel", "opensuse-leap", "ubuntu/18.04", "ubuntu/22.04"]


@given(
    st.builds(
        Platform, st.sampled_from(sorted(set(embedded.PLATFORMS.values()))), st.sampled_from(["18.04", "22.04", "7"])
    ),
    st.sampled_from(
        [AMAZON, RHEL, RELEASE, "5.8.15-301.fc33.x86_64", "4.18.0-80.el8_1.x86_64", "5.4.17.el7uek.x86_64"]
    ),
    st.sets(st.sampled_from(PLACES)),
    st.randoms(use_true_random=False),
)
def test_the_order_of_candidates_means_nothing(host, release, places, chance):
    """And what is chosen is always one of them."""

    def answer(candidates):
        try:
            return choose(host, release, candidates)
        except BtfError as error:
            return str(error)

    candidates = [member(p, release) for p in sorted(places)]
    shuffled = list(candidates)
    chance.shuffle(shuffled)
    assert answer(candidates) == answer(shuffled) == answer(frozenset(candidates))
    assert answer(candidates) in candidates or not candidates or "detected" in answer(candidates)


def packed(members):
    """A tar in xz; a value in a tuple is an entry of that type, which points to /etc/passwd."""
    out = io.BytesIO()
    with lzma.open(out, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.mode = 0o640
            if isinstance(content, bytes):
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            else:
                (entry.type,), entry.linkname = content, "/etc/passwd"
                tar.addfile(entry)
    return out.getvalue()


@pytest.fixture
def host(tmp_path):
    """A machine with Debian and an empty collection directory: (root, collection directory)."""
    root, directory = tmp_path / "root", tmp_path / "bpf/co-re/btf"
    (root / "etc").mkdir(parents=True)
    (root / "etc/os-release").write_text('NAME="Debian"\nID=debian\nVERSION_ID="13"\n')
    directory.mkdir(parents=True)
    return root, directory


def collection(host, inner, place="debian", release=RELEASE):
    (host[1] / COLLECTION).write_bytes(packed([("notes.txt", b"x"), (member(place, release), packed(inner))]))
    return Embedded(host[1], release, root=host[0])


def test_a_minimised_member_is_extracted_and_stays(host):
    found = collection(host, [(f"{RELEASE}.btf", BTF)]).find()
    assert found.path == host[1] / "debian" / RELEASE / f"{RELEASE}.btf"
    assert found.path.read_bytes() == BTF
    assert found.path.stat().st_mode & 0o777 == 0o640
    assert found.modules is None
    (host[1] / "debian" / f"{RELEASE}.btf.tar.xz").unlink()
    assert Embedded(host[1], RELEASE, root=host[0]).find() == found, "found on disk, nothing is extracted again"


def test_a_whole_one_has_modules(host):
    loader = BtfLoader(RELEASE, None, host[1], root=host[0], timer=NoTimer)
    collection(host, [("vmlinux", BTF), ("nf_conntrack", BTF)])
    directory = host[1] / "debian" / RELEASE
    assert loader.get() == Found(ResultCode.EMBEDDED_BTF, directory / "vmlinux", directory)
    assert loader.module("nf_conntrack") == directory / "nf_conntrack"
    assert loader.module("nosuch") is None


class NoTimer:
    def __init__(self, seconds, call):
        self.daemon = False

    def start(self):
        pass

    def cancel(self):
        pass

    def join(self):
        pass


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ([], "embedded BTF not found at"),
        ([("other.btf", BTF)], "embedded BTF not found at"),
        ([(f"{RELEASE}.btf", (tarfile.SYMTYPE,))], "embedded BTF not found at"),
        ([(f"{RELEASE}.btf", (tarfile.LNKTYPE,))], "embedded BTF not found at"),
        ([(f"{RELEASE}.btf", (tarfile.FIFOTYPE,))], "embedded BTF not found at"),
    ],
)
def test_members_without_what_is_looked_for(host, inner, said):
    with pytest.raises(BtfError, match=said):
        collection(host, inner).find()


@pytest.mark.parametrize("name", ["../../../../escaped", "/escaped", "a/../../../escaped", "./../escaped"])
def test_nothing_is_written_outside(host, tmp_path, name):
    collection(host, [(name, b"evil"), (f"../{RELEASE}.btf", BTF), (f"{RELEASE}.btf", BTF)]).find()
    assert not (tmp_path / "escaped").exists()
    inside = {p.relative_to(host[1]).as_posix() for p in host[1].rglob("*") if p.is_file()}
    extracted = f"debian/{RELEASE}"
    assert inside - {COLLECTION, member("debian", RELEASE), f"{extracted}/{RELEASE}.btf"} <= {
        f"{extracted}/escaped",
        f"{extracted}/a/escaped",
    }


def test_a_link_that_lies_there_is_replaced_and_not_followed(host, tmp_path):
    target = tmp_path / "precious"
    target.write_text("keep")
    directory = host[1] / "debian" / RELEASE
    directory.mkdir(parents=True)
    (directory / f"{RELEASE}.btf").symlink_to(tmp_path / "nowhere")
    (directory / "other").symlink_to(target)
    collection(host, [("other", b"new"), (f"{RELEASE}.btf", BTF)]).find()
    assert target.read_text() == "keep"


@pytest.mark.parametrize("how", ["garbage", "cut", "missing", "empty"])
def test_a_collection_that_cannot_be_read_is_an_empty_one(host, how):
    whole = packed([(member("debian", RELEASE), packed([(f"{RELEASE}.btf", BTF)]))])
    content = {"garbage": b"garbage" * 100, "cut": whole[: len(whole) // 2], "empty": b""}
    if how in content:
        (host[1] / COLLECTION).write_bytes(content[how])
    with pytest.raises(BtfError, match="no BTF file in embedded collection"):
        Embedded(host[1], RELEASE, root=host[0]).find()


def test_a_member_that_cannot_be_read_is_an_error(host):
    (host[1] / COLLECTION).write_bytes(packed([(member("debian", RELEASE), b"garbage")]))
    with pytest.raises(BtfError, match="extract kernel BTF from tarball"):
        Embedded(host[1], RELEASE, root=host[0]).find()


def test_an_archive_that_unpacks_to_too_much_is_refused(host, monkeypatch):
    monkeypatch.setattr(embedded, "LIMIT", 1 << 20)
    with pytest.raises(BtfError, match="unpacks to more than 1 MiB"):
        collection(host, [("vmlinux", bytes(2 << 20))]).find()
    assert not list(host[1].rglob(".btf-*"))


def test_bytes_that_are_no_btf_are_refused_though_they_lie_there(host):
    collection(host, [(f"{RELEASE}.btf", b"garbage")])
    with pytest.raises(BtfError, match=r"embedded collection: .*no BTF"):
        BtfLoader(RELEASE, None, host[1], root=host[0]).get()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ID=ubuntu\nVERSION_ID='22.04'\n", Platform("ubuntu", "22.04")),
        ('ID="amzn"\nVERSION_ID="2"\n', Platform("amzn", "2")),
        ("ID=rhel\n", Platform("rhel")),
    ],
)
def test_the_platform(tmp_path, text, wanted):
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/os-release").write_text(text)
    assert platform(tmp_path) == wanted
    (tmp_path / "host/etc").mkdir(parents=True)
    (tmp_path / "host/etc/os-release").write_text("ID=fedora\n")
    assert platform(tmp_path) == Platform("fedora"), "the host's own, where a container shows it"


@pytest.mark.parametrize("text", ["ID=arch\n", "", None])
def test_an_unknown_platform_is_unsupported(host, text):
    (host[0] / "etc/os-release").unlink()
    if text is not None:
        (host[0] / "etc/os-release").write_text(text)
    with pytest.raises(BtfError, match="unsupported") as caught:
        collection(host, [(f"{RELEASE}.btf", BTF)]).find()
    assert "/host/etc/os-release" in caught.value.hint


def test_all_eight_ways_the_sources_can_be(host, tmp_path):
    """The first that has it wins, in the order custom, kernel, embedded."""
    for bits in range(8):
        has = {"custom": bits & 4, "kernel": bits & 2, "embedded": bits & 1}
        root, directory = tmp_path / f"root{bits}", tmp_path / f"btf{bits}"
        (root / "etc").mkdir(parents=True)
        directory.mkdir()
        (root / "etc/os-release").write_text("ID=debian\n")
        if has["custom"]:
            (tmp_path / "custom").write_bytes(BTF)
        if has["kernel"]:
            (root / "boot").mkdir()
            (root / f"boot/vmlinux-{RELEASE}").write_bytes(BTF)
        if has["embedded"]:
            collection((root, directory), [(f"{RELEASE}.btf", BTF)])
        custom = tmp_path / ("custom" if has["custom"] else "none")
        loader = BtfLoader(RELEASE, custom, directory, root=root, timer=NoTimer)
        if not bits:
            with pytest.raises(BtfError, match="embedded collection: no BTF file"):
                loader.get()
            continue
        codes = {"custom": ResultCode.CUSTOM_BTF, "kernel": ResultCode.DEFAULT_BTF, "embedded": ResultCode.EMBEDDED_BTF}
        assert loader.get().code is next(codes[name] for name in codes if has[name])
        assert (directory / "debian").exists() == (bits == 1), "what comes after a source that has it is not touched"


def test_the_answer_is_forgotten_a_while_after_its_last_use(host):
    timers = []

    class Timer(NoTimer):
        def __init__(self, seconds, call):
            self.seconds, self.call, self.live = seconds, call, True
            timers.append(self)

        def cancel(self):
            self.live = False

    collection(host, [(f"{RELEASE}.btf", BTF)])
    loader = BtfLoader(RELEASE, None, host[1], root=host[0], timer=Timer)
    first = loader.get()
    assert loader.get() is first
    assert [timer.live for timer in timers] == [False, True], "each use begins the wait anew"
    assert timers[-1].seconds == 60
    timers[-1].call()
    assert loader.get() is not first
    assert loader.get() == first
