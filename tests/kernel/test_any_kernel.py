"""Laws that hold on every kernel, real or simulated: which probes are chosen, which stage wins, what maps keep.

They reach the kernel by ``kernel.api`` and by nothing else, so they run wherever there is one.
"""

import dataclasses
import shutil
import struct

import pytest
from chain_table import TABLE, WORDS
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.ebpf import core, error_telemetry
from harness.ebpf.btf import ResultCode
from harness.ebpf.fallback import Stage
from harness.ebpf.loading import load_module
from harness.ebpf.settings import BpfSettings
from harness.errors import HarnessError
from harness.kernel_api import Feature, LoadOptions, MapEdit, MapType
from harness.tracer import kprobes, probes
from harness.tracer.settings import TracerSettings

MODULE = "shared-libraries"
HOOKS = ("tracepoint__syscalls__sys_enter_openat", "tracepoint__syscalls__sys_exit_openat")
LETTERS = dict(zip("CRP", Stage, strict=True))
SWITCHES = ("enable_co_re", "enable_runtime_compiler", "allow_runtime_compiled_fallback", "allow_prebuilt_fallback")
COLLECTED = tuple(field.name for field in dataclasses.fields(TracerSettings) if field.name.startswith("collect_"))
ASKED = st.builds(TracerSettings, **dict.fromkeys(COLLECTED, st.booleans()))
FEW = settings(max_examples=max(5, settings().max_examples // 5))


@pytest.fixture(scope="module")
def signatures(kernel):
    return kernel.api.signatures(probes.functions())


@pytest.fixture(scope="module")
def symbols(kernel):
    """Reading them all takes a second of an emulated kernel."""
    return kernel.api.symbols(kprobes.functions())


@pytest.mark.requires("btf", "fentry")
@given(ASKED)
def test_the_fentry_probes_fit_and_asking_for_less_chooses_no_other(signatures, asked):
    chosen, all_of_them = probes.choose(signatures, asked), probes.choose(signatures, TracerSettings())
    assert all(signatures[probe.function] == probe.signature for probe in chosen)
    assert len({probe.program for probe in chosen}) == len(chosen)
    assert set(chosen) <= set(all_of_them) <= set(probes.loadable(signatures))
    assert bool(chosen) == (asked.tcp or asked.udp)
    receiving = [probe for hook in probes.UDP_HOOKS for probe in hook if probe in chosen]
    assert bool(receiving) == asked.udp


@given(ASKED)
def test_the_kprobes_are_on_functions_that_are_there(symbols, asked):
    chosen = kprobes.choose(symbols, asked)
    functions = {kprobes.PLACES[program].function for program in chosen} - {""}
    assert functions <= symbols
    assert set(chosen) <= set(kprobes.loadable(symbols))
    assert bool(chosen) == (asked.tcp or asked.udp)


def test_a_feature_that_is_part_of_another_is_never_there_without_it(kernel):
    has = {feature: kernel.api.probe(feature) for feature in Feature}
    assert not has[Feature.FENTRY] or has[Feature.BTF] is not False
    assert set(has.values()) <= {True, False, None}


@FEW
@given(size=st.integers(1, 40), keys=st.lists(st.integers(0, 60), min_size=1, max_size=120))
def test_a_map_that_was_made_smaller_keeps_what_was_used_last(kernel, image, size, keys):
    """An LRU map: whatever it drops, it is never more than it has room for, nor what was just put in."""
    edit = {"open_at_args": MapEdit(max_entries=size)}
    with kernel.api.load(MODULE, image, LoadOptions(programs=HOOKS, map_edits=edit)) as loaded:
        stored, put = loaded.maps["open_at_args"], {}
        for number, key in enumerate(keys):
            packed = struct.pack("<Q", key)
            put[packed] = struct.pack("<Q", number) * 16
            stored.put(packed, put[packed])
            assert stored.get(packed) == put[packed]
        kept = dict(stored.items())
        assert len(kept) <= size
        assert kept.items() <= put.items()


@FEW
@given(pages=st.integers(0, 6), ring=st.booleans())
def test_events_go_through_the_buffer_that_the_kernel_has(kernel, image, pages, ring):
    """A ring buffer where there are any, as large as was asked for, else a perf buffer; programs are attached to it."""
    ring = ring and kernel.api.probe(Feature.RINGBUF) is True
    edits = {"shared_libraries": MapEdit(MapType.RINGBUF, 0, 0, 4096 << pages)} if ring else {}
    constants = {"ringbuffers_enabled": int(ring)}
    options = LoadOptions(programs=HOOKS, map_edits=edits, constants=constants)
    with kernel.api.load(MODULE, image, options) as loaded:
        buffer = loaded.buffer("shared_libraries", 1 << pages)
        for hook in HOOKS:
            loaded.attach(hook)
        assert buffer.lost == 0
        for hook in HOOKS:
            loaded.detach(hook)
        buffer.close()


@pytest.fixture(scope="module")
def image(bpf_dir):
    return (bpf_dir / f"co-re/{MODULE}.o").read_bytes()


@pytest.fixture(scope="module")
def places(bpf_dir, tmp_path_factory):
    """The module's objects, with and without each of the two that are there ready made."""
    found = {}
    for there in ("", "C", "P", "CP"):
        place = found[there] = tmp_path_factory.mktemp("chain") / "bpf"
        (place / "co-re").mkdir(parents=True)
        shutil.copytree(bpf_dir / "runtime", place / "runtime", ignore=shutil.ignore_patterns("compiled"))
        if "C" in there:
            shutil.copy(bpf_dir / f"co-re/{MODULE}.o", place / "co-re")
        if "P" in there and (bpf_dir / f"{MODULE}.o").exists():
            shutil.copy(bpf_dir / f"{MODULE}.o", place)
        for path in [place, *place.rglob("*")]:
            path.chmod(0o755)
    return found


@pytest.mark.thorough
@FEW
@given(bits=st.sampled_from(sorted(TABLE)), there=st.sampled_from(["", "C", "P", "CP"]), btf=st.booleans())
def test_the_chain_ends_where_the_table_says(kernel, places, no_compiler, bits, there, btf):
    """Nothing can be compiled; a kernel that nobody has built for has no prebuilt object."""
    place, api = places[there], kernel.api
    works = {letter for letter in there if letter != "C" or api.probe(Feature.BTF)}
    works -= set() if (place / f"{MODULE}.o").exists() else {"P"}
    garbage = place / "garbage.btf"
    garbage.write_bytes(b"no BTF")
    wanted = dict(zip(SWITCHES, (bit == "1" for bit in bits), strict=True))
    tried = TABLE[bits]
    winner = next((letter for letter in tried if letter in works), None)

    def start(given, options):
        constants = error_telemetry.constants(error_telemetry.counted(given))
        api.load(MODULE, given, dataclasses.replace(options, programs=HOOKS, constants=constants)).close()

    core.reset()
    chosen = BpfSettings(place, btf_path=None if btf else garbage, **wanted)
    if winner is None:
        with pytest.raises(HarnessError) as caught:
            load_module(api, chosen, MODULE, start)
        assert str(caught.value).startswith(WORDS[tried[-1]])
    else:
        loaded = load_module(api, chosen, MODULE, start)
        assert loaded.stage is LETTERS[winner]
        steps = tried[: tried.index(winner) + 1]
        assert [a.stage for a in loaded.attempts if a.tried] == [LETTERS[letter] for letter in steps]
        assert loaded.btf is (ResultCode.DEFAULT_BTF if winner == "C" else None)
    core.reset()


@pytest.fixture(scope="module")
def no_compiler():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/nonexistent")
        yield
