"""Real faults of every stage, drawn with the settings: the chain ends where the table says, and leaves nothing."""

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

import pytest
from chain_table import TABLE, WORDS
from hypothesis import given, settings
from hypothesis import strategies as st
from mounts import hidden

from harness.ebpf import core, embedded
from harness.ebpf.fallback import Stage
from harness.ebpf.live import LiveKernel
from harness.ebpf.settings import BpfSettings
from harness.errors import HarnessError
from harness.watcher import program

pytestmark = pytest.mark.thorough

MODULE = "shared-libraries"
LETTERS = dict(zip("CRP", Stage, strict=True))
# A helper's number, in a call of it: bpf_get_current_pid_tgid, and one that no kernel has.
CALL, REJECTED = bytes.fromhex("850000000e000000"), bytes.fromhex("85000000ffffff7f")
FILE_FAULTS = (
    "missing",
    "a directory",
    "group may write",
    "of another owner",
    "truncated",
    "empty",
    "of another machine",
    "rejected by the verifier",
)


def spoil(path, how):
    """Make an object unusable, one way or another."""
    image = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "a directory":
        path.unlink()
        path.mkdir()
    elif how == "group may write":
        path.chmod(0o664)
    elif how == "of another owner":
        os.chown(path, 1000, 0)
    else:
        changed = {
            "truncated": image[: len(image) // 2],
            "empty": b"",
            "of another machine": image[:18] + b"\x3e\0" + image[20:],
            "rejected by the verifier": image.replace(CALL, REJECTED),
        }[how]
        assert changed != image
        path.write_bytes(changed)


def break_core(place, how):
    if how == "no BTF anywhere":
        (place / "co-re/btf" / embedded.COLLECTION).unlink()
        return ["/sys/kernel/btf", "/lib/modules"]
    spoil(place / f"co-re/{MODULE}.o", how)
    return []


def break_runtime(place, how):
    """Where the build has compiled it already, what is there is spoilt; there is never a compiler."""
    compiled = next((place / "runtime/compiled").glob(f"{MODULE}-*.o"), None)
    if how == "headers absent":
        return ["/usr/src", "/lib/modules"]
    if how == "headers of another kernel":
        return ["/usr/src", "/lib/modules", "other headers"]
    if how == "source changed":
        with (place / f"runtime/{MODULE}.bpf.c").open("a") as file:
            file.write("\n")
    elif how == "header changed":
        with (place / f"runtime/{MODULE}.h").open("a") as file:
            file.write("\n")
    elif how == "header others may write":
        (place / "runtime/include/interface_types.h").chmod(0o666)
    elif how == "no manifest":
        (place / "runtime/manifest.json").unlink()
    elif how == "no output and no clang":
        shutil.rmtree(place / "runtime/compiled", ignore_errors=True)
    elif compiled is not None:
        spoil(compiled, "rejected by the verifier" if how == "output rejected" else how)
        if how == "output rejected":
            digest = hashlib.sha256(compiled.read_bytes()).hexdigest()
            compiled.with_name(f"{compiled.name}.sha256").write_text(digest)
    return []


def break_prebuilt(place, how):
    path = place / f"{MODULE}.o"
    if how == "of another kernel":
        release = os.uname().release.encode()
        path.write_bytes(path.read_bytes().replace(release, release[:-1] + b"x"))
    elif how == "the CO-RE one":
        shutil.copyfile(place / f"co-re/{MODULE}-debug.o", path)
    else:
        spoil(path, how)
    return []


FAULTS = {
    "C": (break_core, ("no BTF anywhere", *FILE_FAULTS)),
    "R": (
        break_runtime,
        (
            *("headers absent", "headers of another kernel", "source changed", "header changed", "no manifest"),
            *("header others may write", "no output and no clang", "output rejected", "truncated", "group may write"),
        ),
    ),
    "P": (break_prebuilt, ("of another kernel", "the CO-RE one", *FILE_FAULTS)),
}


@pytest.fixture(scope="module")
def pristine(bpf_dir, tmp_path_factory):
    """What this module's program needs of the tree."""
    place = tmp_path_factory.mktemp("chain") / "bpf"
    shutil.copytree(bpf_dir, place, ignore=lambda _, names: [n for n in names if n.endswith(".o") and MODULE not in n])
    (place / "runtime/compiled").mkdir(exist_ok=True)
    for path in [place, *place.rglob("*")]:
        path.chmod(0o755)
    return place


@contextlib.contextmanager
def without(directories, release):
    with contextlib.ExitStack() as stack:
        real = [d for d in directories if d.startswith("/")]
        if real:
            stack.enter_context(hidden(*real))
        if "other headers" in directories:
            generated = Path(f"/usr/src/linux-headers-{release}/include/generated")
            generated.mkdir(parents=True)
            (generated / "utsrelease.h").write_text('#define UTS_RELEASE "6.6.6-other"\n')
        yield


@contextlib.contextmanager
def fresh_loader():
    """Its thread ends with it: one that began among hidden directories would keep this one there (setns(2))."""
    try:
        yield
    finally:
        core.reset()


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@given(
    bits=st.sampled_from(sorted(TABLE)),
    faults=st.fixed_dictionaries({letter: st.none() | st.sampled_from(names) for letter, (_, names) in FAULTS.items()}),
    garbage_btf=st.booleans(),
)
@settings(max_examples=20)
def test_the_chain_ends_where_the_table_says(live, kernel, pristine, monkeypatch_clang, bits, faults, garbage_btf):
    place = pristine.with_name("spoilt")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(pristine, place)
    away = [d for letter, how in faults.items() if how for d in FAULTS[letter][0](place, how)]
    # Without BTF or headers of a kernel, who hides the one may hide the other too.
    works = {letter for letter, how in faults.items() if how is None}
    if not kernel.headers or "/usr/src" in away:
        works.discard("R")
    tried = TABLE[bits]
    end = next((n + 1 for n, letter in enumerate(tried) if letter in works), len(tried))
    names = ("enable_co_re", "enable_runtime_compiler", "allow_runtime_compiled_fallback", "allow_prebuilt_fallback")
    wanted = dict(zip(names, (bit == "1" for bit in bits), strict=True))
    garbage = place / "garbage.btf"  # no object: one built for this kernel has BTF that is enough
    garbage.write_bytes(b"\x9f\xeb" + bytes(range(256)))
    core.reset()
    before = descriptors()
    with without(away, live.release), fresh_loader():
        options = BpfSettings(place, btf_path=garbage if garbage_btf else None, **wanted)
        winner = tried[end - 1] if tried[end - 1] in works else None
        if winner is None:
            with pytest.raises(HarnessError) as caught:
                program.start(LiveKernel(), options)
            assert str(caught.value).startswith(WORDS[tried[-1]])
        else:
            with program.start(LiveKernel(), options) as running:
                assert running.stage is LETTERS[winner]
                assert tuple(a.stage for a in running.attempts if a.tried) == tuple(LETTERS[t] for t in tried[:end])
                lost = [a for a in running.attempts if a.tried and not a.won]
                assert all(isinstance(a.error, HarnessError) for a in lost)
    assert descriptors() == before


@pytest.fixture(scope="module")
def monkeypatch_clang():
    """Whatever this machine has: clang is found on PATH only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nonexistent")
        yield
