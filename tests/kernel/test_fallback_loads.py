"""The fallback chain with real loads and real faults: missing, foreign and broken files, hidden BTF, no compiler.

All 128 cases of the plan itself are in ``tests/properties/test_fallback.py``.
"""

import dataclasses
import hashlib
import json
import os
import shutil

import pytest
from mounts import hidden

from fixtures.workloads import libraries
from harness.ebpf import core, embedded
from harness.ebpf.btf import ResultCode
from harness.ebpf.fallback import Stage
from harness.ebpf.live import LiveKernel
from harness.ebpf.prebuilt import modules_in_use
from harness.ebpf.runtime import RuntimeCompilationError, RuntimeResult, compile_asset
from harness.ebpf.settings import BpfSettings
from harness.errors import AssetError, BtfError, FallbackError, FormatError
from harness.watcher import program

OBJECT = "shared-libraries.o"


@pytest.fixture
def place(tmp_path, bpf_dir):
    """A copy of the built programs that a test may spoil."""
    place = tmp_path / "bpf"
    shutil.copytree(bpf_dir, place)
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
        pytest.param("of another owner", AssetError, ResultCode.ASSET_READ_ERROR, marks=pytest.mark.thorough),
        pytest.param("a directory", AssetError, ResultCode.ASSET_READ_ERROR, marks=pytest.mark.thorough),
        pytest.param("garbage", FormatError, ResultCode.LOADER_ERROR, marks=pytest.mark.thorough),
        ("truncated", FormatError, ResultCode.LOADER_ERROR),
        pytest.param("empty", FormatError, ResultCode.LOADER_ERROR, marks=pytest.mark.thorough),
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


@pytest.mark.real
def test_the_runtime_stage_loses_with_its_own_reason(live, kernel, place, no_compiler):
    """Without a compiler it says so where there are headers, and misses the headers first where there are none."""
    spoil(place, "missing")
    shutil.rmtree(place / "runtime/compiled", ignore_errors=True)
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
    shutil.rmtree(place / "runtime/compiled", ignore_errors=True)
    names = [
        "enable_co_re",
        "enable_runtime_compiler",
        "allow_runtime_compiled_fallback",
        "allow_prebuilt_fallback",
    ]
    with pytest.raises(error, match=f"^{said}"):
        program.start(live, BpfSettings(place, **dict(zip(names, switches, strict=True))))


@pytest.mark.requires("btf")
@pytest.mark.parametrize(
    "content",
    ["garbage", *(pytest.param(c, marks=pytest.mark.thorough) for c in ("an ELF file without BTF", "a cut ELF file"))],
)
def test_garbage_for_btf_is_passed_over(live, place, tmp_path, content):
    """A configured file that is no BTF does not stop the kernel's own."""
    garbage = tmp_path / "btf"
    elf = libraries.library(tmp_path, "library.so").read_bytes()
    garbage.write_bytes({"garbage": b"garbage", "a cut ELF file": elf[:100]}.get(content, elf))
    with program.start(live, BpfSettings(place, btf_path=garbage)) as running:
        assert running.stage is Stage.CORE
    assert core.result_codes()["shared-libraries"] is ResultCode.DEFAULT_BTF


@pytest.mark.requires("btf")
@pytest.mark.parametrize("form", ["raw", pytest.param("ELF", marks=pytest.mark.thorough)])
def test_configured_btf_comes_first(live, place, tmp_path, bpf_dir, form):
    """Raw, or as a section: here of an object of ours, which will do where nothing is relocated."""
    custom = tmp_path / "btf"
    shutil.copy("/sys/kernel/btf/vmlinux" if form == "raw" else bpf_dir / "co-re/tracer-fentry.o", custom)
    with program.start(live, BpfSettings(place, btf_path=custom)) as running:
        assert running.stage is Stage.CORE
        assert sees_a_library(running, tmp_path)
    assert core.result_codes()["shared-libraries"] is ResultCode.CUSTOM_BTF


def test_without_btf_the_embedded_collection_has_it_and_then_the_prebuilt_wins(place, no_compiler, tmp_path):
    """BTF is really hidden: from us, who have not read it before, and from libbpf."""
    with hidden("/sys/kernel/btf", "/lib/modules"):
        live = LiveKernel()
        settings = BpfSettings(place, allow_runtime_compiled_fallback=False)
        with program.start(live, settings) as running:
            assert running.stage is Stage.CORE
            assert sees_a_library(running, tmp_path)
        assert core.result_codes()["shared-libraries"] is ResultCode.EMBEDDED_BTF
        extracted = place / f"co-re/btf/debian/{live.release}/{live.release}.btf"
        assert extracted.is_file(), "for the next start"
        # Without the collection: not what was found before, and not what lies there from before.
        (place / "co-re/btf" / embedded.COLLECTION).unlink()
        core.flush_btf()
        with program.start(live, settings) as running:
            assert running.stage is Stage.PREBUILT
            assert isinstance(lost(running, Stage.CORE), BtfError)
            assert sees_a_library(running, tmp_path)
        assert core.result_codes()["shared-libraries"] is ResultCode.BTF_NOT_FOUND
        # And alone it says so.
        core.reset()
        with pytest.raises(FallbackError, match="co-re load failed: BTF load: "):
            program.start(live, dataclasses.replace(settings, allow_prebuilt_fallback=False))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("of another kernel", "was made for .*, this kernel is "),
        ("the CO-RE one", "does not say which kernel it was made for"),
        ("cut", "truncated"),
        ("of another machine", "for machine 62, not for eBPF"),
    ],
)
def test_only_an_object_made_for_this_kernel_is_prebuilt(live, place, how, said):
    path = place / OBJECT
    image, release = path.read_bytes(), live.release.encode()
    assert image.count(release) == 1
    if how == "of another kernel":
        image = image.replace(release, release[:-1] + b"x")
    elif how == "the CO-RE one":
        image = (place / "co-re" / OBJECT).read_bytes()
    elif how == "of another machine":
        image = image[:18] + b"\x3e\0" + image[20:]
    else:
        image = image[:-100]
    path.write_bytes(image)
    with pytest.raises((AssetError, FormatError), match=said):
        program.start(live, BpfSettings(place, enable_co_re=False))


@pytest.mark.requires("headers")
def test_what_the_build_has_compiled_for_this_kernel_is_found(live, place, no_compiler, tmp_path):
    settings = BpfSettings(place, enable_co_re=False, enable_runtime_compiler=True, allow_prebuilt_fallback=False)
    with program.start(live, settings) as running:
        assert running.stage is Stage.RUNTIME
        assert sees_a_library(running, tmp_path)
    assert compile_asset(place, "shared-libraries").result is RuntimeResult.COMPILED_OUTPUT_FOUND


@pytest.mark.requires("clang", "headers")
def test_what_this_kernel_compiles_wins_and_is_kept(live, place, tmp_path):
    spoil(place, "missing")
    shutil.rmtree(place / "runtime/compiled")
    kept = tmp_path / "kept"
    settings = BpfSettings(place, runtime_output_dir=kept, allow_prebuilt_fallback=False)
    with program.start(live, settings) as running:
        assert running.stage is Stage.RUNTIME
        assert sees_a_library(running, tmp_path)
    (made,) = kept.glob("*.o")
    assert len(list(kept.iterdir())) == 2, "the object and its digest, and nothing half done"
    again = compile_asset(place, "shared-libraries", output_dir=kept, clang=lambda: None)
    assert again.result is RuntimeResult.COMPILED_OUTPUT_FOUND
    # What is no longer what was compiled is compiled again; what others may write is not even looked at.
    made.write_bytes(made.read_bytes()[:-1])
    with pytest.raises(RuntimeCompilationError) as caught:
        compile_asset(place, "shared-libraries", output_dir=kept, clang=lambda: None)
    assert caught.value.result is RuntimeResult.NEW_COMPILER_ERROR
    made.chmod(0o666)
    with pytest.raises(RuntimeCompilationError) as caught:
        compile_asset(place, "shared-libraries", output_dir=kept)
    assert caught.value.result is RuntimeResult.RESULT_READ_ERROR


@pytest.mark.requires("clang", "headers")
def test_an_error_of_the_compiler_is_said_in_a_line(place, tmp_path):
    source = place / "runtime/shared-libraries.bpf.c"
    source.write_text("this is no C")
    manifest = json.loads((place / "runtime/manifest.json").read_text())
    manifest["files"][source.name] = hashlib.sha256(source.read_bytes()).hexdigest()
    (place / "runtime/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        RuntimeCompilationError, match=r"does not compile: shared-libraries\.bpf\.c:1:1: error: "
    ) as caught:
        compile_asset(place, "shared-libraries", output_dir=tmp_path / "kept")
    assert caught.value.result is RuntimeResult.COMPILATION_ERROR
    assert list((tmp_path / "kept").iterdir()) == []
