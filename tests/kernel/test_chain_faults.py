"""Real faults of every stage, drawn with the settings: the chain ends where the table says, and leaves nothing."""

import contextlib
import shutil
from pathlib import Path

import pytest
from chain_faults import FAULTS, copied, without
from chain_table import TABLE, WORDS
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.ebpf import core
from harness.ebpf.fallback import Stage
from harness.ebpf.live import LiveKernel
from harness.ebpf.settings import BpfSettings
from harness.errors import HarnessError
from harness.watcher import program

pytestmark = [pytest.mark.real, pytest.mark.thorough]

LETTERS = dict(zip("CRP", Stage, strict=True))


@pytest.fixture(scope="module")
def pristine(bpf_dir, tmp_path_factory):
    """What this module's program needs of the tree."""
    return copied(bpf_dir, tmp_path_factory.mktemp("chain") / "bpf")


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
