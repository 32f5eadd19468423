"""The fallback chain with real loads and real faults: missing, foreign and broken files, hidden BTF, no compiler.

All 128 cases of the plan itself are in ``tests/properties/test_fallback.py``.
"""

import contextlib
import ctypes
import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from fixtures.workloads import libraries
from harness.ebpf import core
from harness.ebpf.btf import ResultCode
from harness.ebpf.fallback import Stage
from harness.ebpf.live import LiveKernel
from harness.ebpf.prebuilt import modules_in_use
from harness.ebpf.runtime import RuntimeCompilationError, RuntimeResult, compile_asset
from harness.ebpf.settings import BpfSettings
from harness.errors import AssetError, BtfError, FallbackError, FormatError
from harness.watcher import program

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000
OBJECT = "shared-libraries.o"


@pytest.fixture
def place(tmp_path, bpf_dir):
    """A copy of the built programs that a test may spoil, with a prebuilt object: the CO-RE one has no relocations."""
    place = tmp_path / "bpf"
    for room in ("co-re", "runtime"):
        shutil.copytree(bpf_dir / room, place / room)
    shutil.copy(place / "co-re" / OBJECT, place / OBJECT)
    for path in [place, *place.rglob("*")]:
        path.chmod(0o755)
    return place


@pytest.fixture
def no_compiler(monkeypatch):
    """Whatever this machine has: clang is found on PATH only."""
    monkeypatch.setenv("PATH", "/nonexistent")


def lost(running_or_error, stage):
    """Why that stage lost."""
    return next(a.error for a in running_or_error.attempts if a.stage is stage)


def sees_a_library(running, directory):
    path = directory / "libssl.so.1"
    path.touch()
    running.read(0)
    libraries.open_(os.fsencode(path))
    return [event.path for event in running.read(0) if event.pid == os.getpid()] == [os.fsencode(path)]


def spoil(place, how):
    """Make the CO-RE object unusable, one way or another."""
    target = place / "co-re" / OBJECT
    if how == "missing":
        target.unlink()
    elif how == "group may write":
        target.chmod(0o664)
    elif how == "of another owner":
        os.chown(target, 1000, 0)
    elif how == "garbage":
        target.write_bytes(b"garbage" * 100)
    elif how == "truncated":
        target.write_bytes(target.read_bytes()[:1000])
    elif how == "empty":
        target.write_bytes(b"")
    elif how == "a directory":
        target.unlink()
        target.mkdir()


@pytest.mark.parametrize(
    ("how", "error", "code"),
    [
        ("missing", AssetError, ResultCode.ASSET_READ_ERROR),
        ("group may write", AssetError, ResultCode.ASSET_READ_ERROR),
        ("of another owner", AssetError, ResultCode.ASSET_READ_ERROR),
        ("a directory", AssetError, ResultCode.ASSET_READ_ERROR),
        ("garbage", FormatError, ResultCode.LOADER_ERROR),
        ("truncated", FormatError, ResultCode.LOADER_ERROR),
        ("empty", FormatError, ResultCode.LOADER_ERROR),
    ],
)
def test_a_bad_asset_loses_and_the_prebuilt_wins(live, place, no_compiler, tmp_path, how, error, code):
    spoil(place, how)
    settings = BpfSettings(place, allow_runtime_compiled_fallback=False)
    with program.start(live, settings) as running:
        assert running.stage is Stage.PREBUILT
        assert type(lost(running, Stage.CORE)) is error
        assert core.result_codes()["shared-libraries"] is code
        assert sees_a_library(running, tmp_path)
    assert "shared-libraries" in modules_in_use()


def test_the_runtime_stage_loses_with_its_own_reason(live, kernel, place, no_compiler):
    """Without a compiler it says so where there are headers, and misses the headers first where there are none."""
    spoil(place, "missing")
    with program.start(live, BpfSettings(place)) as running:
        assert running.stage is Stage.PREBUILT
        error = lost(running, Stage.RUNTIME)
    wanted = RuntimeResult.NEW_COMPILER_ERROR if kernel.headers else RuntimeResult.HEADER_FETCH_ERROR
    assert isinstance(error, RuntimeCompilationError)
    assert error.result is wanted
    assert error.hint


@pytest.mark.parametrize(
    ("switches", "error", "said"),
    [
        ((True, False, False, False), FallbackError, "co-re load failed: error reading"),
        ((True, True, False, False), FallbackError, "co-re load failed: error reading"),
        ((False, True, False, False), FallbackError, "runtime compilation failed: "),
        ((True, False, True, False), FallbackError, "runtime compilation failed: "),
        ((True, False, True, True), AssetError, "could not find asset"),
        ((False, False, False, False), AssetError, "could not find asset"),
    ],
    ids=lambda v: "".join(map(str, map(int, v))) if isinstance(v, tuple) else None,
)
def test_where_all_lose_the_last_one_speaks(live, place, no_compiler, switches, error, said):
    spoil(place, "missing")
    (place / OBJECT).unlink()
    names = [
        "enable_co_re",
        "enable_runtime_compiler",
        "allow_runtime_compiled_fallback",
        "allow_prebuilt_fallback",
    ]
    with pytest.raises(error, match=f"^{said}"):
        program.start(live, BpfSettings(place, **dict(zip(names, switches, strict=True))))


@pytest.mark.requires("btf")
@pytest.mark.parametrize("content", ["garbage", "an ELF file without BTF", "a cut ELF file"])
def test_garbage_for_btf_is_passed_over(live, place, tmp_path, content):
    """A configured file that is no BTF does not stop the kernel's own."""
    garbage = tmp_path / "btf"
    elf = libraries.library(tmp_path, "library.so").read_bytes()
    garbage.write_bytes({"garbage": b"garbage", "a cut ELF file": elf[:100]}.get(content, elf))
    with program.start(live, BpfSettings(place, btf_path=garbage)) as running:
        assert running.stage is Stage.CORE
    assert core.result_codes()["shared-libraries"] is ResultCode.DEFAULT_BTF


@pytest.mark.requires("btf")
@pytest.mark.parametrize("form", ["raw", "ELF"])
def test_configured_btf_comes_first(live, place, tmp_path, bpf_dir, form):
    """Raw, or as a section: here of an object of ours, which will do where nothing is relocated."""
    custom = tmp_path / "btf"
    shutil.copy("/sys/kernel/btf/vmlinux" if form == "raw" else bpf_dir / "co-re/tracer-fentry.o", custom)
    with program.start(live, BpfSettings(place, btf_path=custom)) as running:
        assert running.stage is Stage.CORE
        assert sees_a_library(running, tmp_path)
    assert core.result_codes()["shared-libraries"] is ResultCode.CUSTOM_BTF


def test_without_btf_the_prebuilt_wins(place, no_compiler, tmp_path):
    """BTF is really hidden: from us, who have not read it before, and from libbpf."""
    with hidden("/sys/kernel/btf", "/lib/modules"):
        live = LiveKernel()
        settings = BpfSettings(place, allow_runtime_compiled_fallback=False)
        with program.start(live, settings) as running:
            assert running.stage is Stage.PREBUILT
            assert isinstance(lost(running, Stage.CORE), BtfError)
            assert sees_a_library(running, tmp_path)
        assert core.result_codes()["shared-libraries"] is ResultCode.BTF_NOT_FOUND
        # And alone it says so.
        core.reset()
        with pytest.raises(FallbackError, match="co-re load failed: BTF load: "):
            program.start(live, dataclasses.replace(settings, allow_prebuilt_fallback=False))


@contextlib.contextmanager
def hidden(*directories):
    """Empty directories over these, for this thread only: in a mount namespace of its own."""
    libc = ctypes.CDLL(None, use_errno=True)

    def done(status, what):
        if status:
            raise OSError(ctypes.get_errno(), what)

    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    at = os.open(".", os.O_RDONLY)
    try:
        done(libc.unshare(CLONE_NEWNS), "unshare")
        done(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount")
        for directory in directories:
            if Path(directory).is_dir():
                done(libc.mount(b"none", directory.encode(), b"tmpfs", 0, None), directory)
        yield
    finally:
        done(libc.setns(before, CLONE_NEWNS), "setns")
        os.fchdir(at)
        os.close(at)
        os.close(before)


@pytest.mark.requires("clang", "headers")
def test_what_this_kernel_compiles_wins_and_is_kept(live, place, tmp_path):
    spoil(place, "missing")
    kept = tmp_path / "kept"
    settings = BpfSettings(place, runtime_output_dir=kept, allow_prebuilt_fallback=False)
    with program.start(live, settings) as running:
        assert running.stage is Stage.RUNTIME
        assert sees_a_library(running, tmp_path)
    assert len(list(kept.iterdir())) == 1, "the object, and nothing half done"
    again = compile_asset(place, "shared-libraries", release=live.release, output_dir=kept, clang=lambda: None)
    assert again.result is RuntimeResult.COMPILED_OUTPUT_FOUND
    (place / "runtime/shared-libraries.bpf.c").write_text("this is no C")
    with pytest.raises(RuntimeCompilationError, match=r"does not compile: .*error: ") as caught:
        compile_asset(place, "shared-libraries", release=live.release, output_dir=kept)
    assert caught.value.result is RuntimeResult.COMPILATION_ERROR
    assert len(list(kept.iterdir())) == 1
