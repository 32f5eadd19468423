"""The shared-libraries program: real dlopens and opens, the exact filter, and every loss accounted for."""

import ctypes
import errno
import itertools
import mmap
import os
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.workloads import libraries
from harness.ebpf import core
from harness.ebpf.fallback import Stage
from harness.ebpf.settings import BpfSettings
from harness.watcher import program

CALLS = ("open", "openat", "openat2")
PATH_MAX = 119


def expected(path):
    """The filter in the words of its specification: the first ".so" at index 6 or later decides."""
    at = path.find(b".so", 6)
    return 1 <= len(path) <= PATH_MAX and at >= 6 and path[at - 6 : at] in (b"libssl", b"crypto", b"gnutls")


@pytest.fixture(scope="module")
def running(live, bpf_dir):
    core.reset()
    with program.start(live, BpfSettings(bpf_dir)) as running:
        yield running


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A directory to be in, so that paths may be as short as we like."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drained(running):
    """The paths that this process opened so far: the event of a call is there before it returns."""
    return [event.path for event in running.read(0) if event.pid == os.getpid()]


def put(path):
    """An empty file there, made without opening it."""
    target = Path(os.fsdecode(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        os.mknod(target, stat.S_IFREG | 0o644)


def test_a_real_dlopen_comes_out(running, tmp_path, record_property):
    path = libraries.library(tmp_path, "libssl.so.3")
    drained(running)
    assert libraries.load(path)
    assert drained(running) == [os.fsencode(path)]
    record_property("kmt.watcher", str(running))


def test_core_wins_where_it_can(running):
    assert running.stage is Stage.CORE
    assert [str(a) for a in running.attempts] == [
        "CO-RE: won",
        "runtime: not tried: CO-RE won before it",
        "prebuilt: not tried: CO-RE won before it",
    ]


VECTORS = {
    "usr/lib/libssl.so.1.1": True,
    "libssl.so": True,
    "a/foo-libssl.so": True,
    "fooroot-crypto.so": True,
    "a/libgnutls.so.30": True,
    "libcrypto.so.3": True,
    "libssl-foo.so": False,
    "ab/foo.so.d/libssl.so": False,
    "x.so": False,
    "ssl.so": False,
    "libssl.s": False,
    # NSS's (its libssl is another library).
    "libssl3.so": False,
    "libnss3.so": False,
    "libnspr4.so": False,
    "libz.so.1": False,
    # ".so" at an index below 6 does not decide.
    "a.so/libssl.so": True,
    "a/foo.so.d/libssl.so": True,
    "/".join(["d" * 50, "e" * 50, "f" * 7, "libssl.so"]): True,
    "/".join(["d" * 50, "e" * 50, "f" * 8, "libssl.so"]): False,
}


def wrong_about(path, *, names=(b"libssl", b"crypto", b"gnutls"), first=6, longest=PATH_MAX, find=bytes.find):
    """The filter, wrong in what is given."""
    at = find(path, b".so", first)
    return 1 <= len(path) <= longest and at >= first and path[max(at - 6, 0) : at] in names


@pytest.mark.parametrize(
    "wrong",
    [
        {"names": (b"libssl", b"crypto")},
        {"names": (b"libssl", b"gnutls")},
        {"names": (b"libssl", b"crypto", b"gnutls", b"ibssl3")},
        {"first": 0},
        {"find": bytes.rfind},
        {"longest": PATH_MAX - 1},
        {"longest": PATH_MAX + 1},
    ],
    ids=str,
)
def test_the_table_tells_a_wrong_filter_from_the_right_one(wrong):
    assert {path: wrong_about(path.encode()) for path in VECTORS} == VECTORS
    assert {path: wrong_about(path.encode(), **wrong) for path in VECTORS} != VECTORS


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p if len(p) < 40 else f"{len(p)} bytes")
def test_the_filter(running, room, path):
    assert expected(path.encode()) is VECTORS[path], "the model of this test agrees with the table"
    put(path)
    drained(running)
    for call in CALLS:
        libraries.open_(path.encode(), call)
        assert drained(running) == ([path.encode()] if VECTORS[path] else []), call


def test_the_longest_path_has_119_bytes():
    assert [len(path) for path in VECTORS if len(path) > 100] == [119, 120]


EDGES = [1, 5, 6, 8, 9, 10, 118, 119, 120, 121, 127, 128, 129, 255, 256, 257, 4094, 4095, 4096, 4097]


@pytest.mark.parametrize("length", EDGES)
@pytest.mark.parametrize("at", ["front", "end"])
def test_the_filter_at_the_edges_of_length(running, room, at, length):
    """Nothing is drawn here: the longest path, the filter's buffer, the kernel's own limit, and one more each."""
    name = b"libssl.so"
    if length < len(name) + 2:
        path = (b"x" * (length - len(name)) + name)[-length:]
    elif at == "front":
        (room / "libssl.so").mkdir()
        path = name + b"/" * (length - len(name))
    else:
        path = b"." + b"/" * (length - len(name) - 1) + name
    assert len(path) == length
    put(path if length < 4096 else name)
    drained(running)
    for call in CALLS:
        if length < 4096:
            libraries.open_(path, call)
        else:
            with pytest.raises(OSError, match="too long"):
                libraries.open_(path, call)
        assert drained(running) == ([path] if len(name) <= length <= PATH_MAX else []), call


PIECES = st.sampled_from(
    [*b"lib libssl crypto gnutls .so .s o so . x ~".split(), bytes([255]), *"é 日本 \u0301".encode().split()]
)
NAMES = st.lists(PIECES, min_size=1, max_size=8).map(b"".join).filter(lambda name: name.strip(b".") != b"")
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join).filter(lambda path: len(path) <= 130)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS, call=st.sampled_from(CALLS))
def test_the_filter_on_any_path(running, room, path, call):
    """What comes out of the kernel is what the specification says, for paths that are hard on it."""
    inside = room / str(next(_numbers))
    inside.mkdir()
    os.chdir(inside)
    put(path)
    drained(running)
    libraries.open_(path, call)
    assert drained(running) == ([path] if expected(path) else [])


LENGTHS = st.one_of(st.integers(PATH_MAX - 8, PATH_MAX + 8), st.integers(1, 4096))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS, length=LENGTHS, filler=st.sampled_from([b"/", b"./", "é/../".encode()]), call=st.sampled_from(CALLS))
def test_the_filter_on_paths_of_any_length(running, room, path, length, filler, call):
    """Up to what the kernel takes (4,095 bytes), and one beyond."""
    inside = room / str(next(_numbers))
    (inside / "é").mkdir(parents=True)
    os.chdir(inside)
    put(path)
    start = os.fsencode(f"{inside}/") if filler == b"/" else b""
    padding = filler * ((length - len(start) - len(path)) // len(filler))
    whole = start + padding + path
    drained(running)
    if len(whole) < 4096:
        libraries.open_(whole, call)
    else:
        with pytest.raises(OSError, match="too long"):
            libraries.open_(whole, call)
    assert drained(running) == ([whole] if expected(whole) else [])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=PATHS, room_behind=st.integers(0, 9), whole=st.booleans())
def test_paths_at_the_edge_of_what_can_be_read(running, room, path, room_behind, whole):
    """A path that ends where its memory does is read; one that has no end there, like one from nowhere, is an error."""
    inside = room / str(next(_numbers))
    inside.mkdir()
    os.chdir(inside)
    put(path)
    ended = path + bytes(1 + room_behind) if whole else path
    drained(running)
    with pages() as (address, write):
        at = address + mmap.PAGESIZE - len(ended)
        write(at, ended)
        assert opened_at(at) is whole
        # Nowhere: unmapped, the kernel's own, none at all.
        for nowhere in (address + mmap.PAGESIZE, (1 << 64) - 4096, 0):
            assert opened_at(nowhere) is False
    assert drained(running) == ([path] if whole and expected(path) else [])


@contextmanager
def pages():
    """The address of a page before one that cannot be touched, and how to write to it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    size = mmap.PAGESIZE
    address = libc.mmap(None, 2 * size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert libc.mprotect(address + size, size, 0) == 0
    try:
        yield address, lambda at, data: ctypes.memmove(at, data, len(data))
    finally:
        libc.munmap(address, 2 * size)


def opened_at(address):
    """Does an open of the path that stands there succeed? Its failure must be the address's fault."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.openat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
    fd = libc.openat(-100, address, os.O_RDONLY)
    if fd < 0:
        assert ctypes.get_errno() == errno.EFAULT
        return False
    os.close(fd)
    return True


_numbers = itertools.count()


def test_an_open_that_fails_is_none(running, room):
    drained(running)
    for call in CALLS:
        with pytest.raises(FileNotFoundError):
            libraries.open_(b"libssl.so.404", call)
    with pytest.raises(FileNotFoundError):
        libraries.open_(b"")
    assert drained(running) == []


def test_a_path_whose_page_is_not_there_yet(running, room):
    """The program cannot read it when the call begins; the kernel brings it in, and it is read at the end."""
    put("libssl.so")
    (room / "page").write_bytes(b"libssl.so\0".ljust(mmap.PAGESIZE, b"\0"))
    libc = ctypes.CDLL(None, use_errno=True)
    with (room / "page").open("r+b") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE) as page:
        anchor = ctypes.c_char.from_buffer(page)
        address = ctypes.addressof(anchor)
        before = running.counters()
        drained(running)
        libc.open.argtypes = [ctypes.c_void_p, ctypes.c_int]
        fd = libc.open(address, os.O_RDONLY)
        assert fd >= 0
        os.close(fd)
        assert drained(running) == [b"libssl.so"]
        assert running.counters().unread == before.unread
        del anchor


def test_a_burst_is_read_whole(running, room):
    """In order, none twice. (A hundred thousand are a benchmark.)"""
    names = [b"libssl.so.%d" % n for n in range(1500)]
    for name in names:
        put(name)
    drained(running)
    before = running.counters()
    for name in names:
        os.close(os.open(name, os.O_RDONLY))
    read = drained(running)
    after = running.counters()
    assert read == [name for name in names if name in {*read}]
    assert len(names) - len(read) <= after.missed - before.missed, "but for those that the kernel left out"
    assert (after.lost, after.unread) == (before.lost, before.unread)
    assert after.emitted - before.emitted >= len(read)


@pytest.mark.parametrize(
    "ringbuf",
    [pytest.param(True, marks=pytest.mark.requires("ringbuf")), pytest.param(False, marks=pytest.mark.thorough)],
)
def test_losses_are_counted_exactly(live, bpf_dir, room, monkeypatch, ringbuf):
    """With room for a few dozen, and nobody reading: what was read and what was lost add up."""
    monkeypatch.setattr(program, "RING_BYTES", mmap.PAGESIZE)
    monkeypatch.setattr(program, "PERF_PAGES", 1)
    put("libssl.so")
    with program.start(live, BpfSettings(bpf_dir, enable_ringbuffers=ringbuf)) as running:
        for _ in range(80):
            libraries.open_(b"libssl.so")
        read = drained(running)
        counters = running.counters()
        assert running.ringbuf is ringbuf
        assert counters.lost > 0
        assert len(read) == counters.emitted
        assert counters.emitted + counters.lost == 80
        # There is room again.
        libraries.open_(b"libssl.so")
        assert drained(running) == [b"libssl.so"]


@pytest.mark.parametrize(
    ("openat2", "machine", "calls"),
    [
        (True, "x86_64", ["openat", "openat2", "open"]),
        (False, "x86_64", ["openat", "open"]),
        (True, "aarch64", ["openat", "openat2"]),
        (False, "aarch64", ["openat"]),
    ],
)
def test_which_calls_are_watched(openat2, machine, calls):
    names = [f"tracepoint__syscalls__sys_{side}_{call}" for call in calls for side in ("enter", "exit")]
    assert list(program.hooks(openat2, machine)) == names
