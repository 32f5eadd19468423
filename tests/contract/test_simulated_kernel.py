"""The simulated kernel with our own objects: what it loads, what it refuses and in which words, attaching, events."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.ebpf import elf
from harness.errors import BpfError, BtfError, ClosedError, FormatError, SettingsError, SignatureError, VerifierError
from harness.kernel_api import Engine, Feature, LoadOptions, MapEdit, MapType, Signature
from harness.tracer import kprobes
from harness.tracer.settings import TracerSettings
from kmt import build, config
from kmt.errors import CannotTellError, ProfileError
from kmt.simulator.faults import Faults
from kmt.simulator.kernel import SimulatedKernel, _identity, simulated
from kmt.simulator.profile import recorded

pytestmark = pytest.mark.host_only

ROOT = Path(__file__).parents[2]
HOOKS = ("tracepoint__syscalls__sys_enter_openat", "tracepoint__syscalls__sys_exit_openat")
EVENTS = "shared_libraries"
RING = MapEdit(MapType.RINGBUF, key_size=0, value_size=0, max_entries=4096)
VERSIONS = ("5.10", "5.15", "6.1", "6.6", "6.12", "6.18", "7.3")
CLOSE = ("fexit/tcp_close", "tcp_close", Signature(("struct sock *", "long int"), "void"))


@pytest.fixture(scope="module")
def built():
    """The project's objects by name."""
    return {name: path.read_bytes() for name, path in build.build(config.load(ROOT)).objects.items()}


@pytest.fixture(scope="module")
def image(built):
    return built["shared-libraries"]


@pytest.fixture
def kernel(tmp_path):
    """One without types: what its profile and gates tell must do."""
    return faulty(tmp_path)


def faulty(proc_root, version="6.1", **faults):
    return SimulatedKernel(recorded()[version], proc_root=proc_root, faults=Faults(**faults), cpus=2)


def load(kernel, image, **options):
    return kernel.load("shared-libraries", image, LoadOptions(**{"programs": HOOKS, **options}))


@pytest.mark.parametrize("version", VERSIONS)
def test_any_version_tells_which_functions_the_kprobe_tracer_may_use(version, tmp_path):
    there = simulated(version, tmp_path).symbols(kprobes.functions() | kprobes.TRACEPOINTS)
    assert kprobes.choose(there, TracerSettings())
    assert (there >= kprobes.TRACEPOINTS) is (version not in ("5.10", "5.15", "6.1"))


@pytest.mark.parametrize("version", VERSIONS)
def test_any_version_answers_and_loads(version, image, tmp_path):
    kernel = simulated(version, tmp_path)
    assert kernel.release.startswith(f"{version}.")
    assert kernel.probe(Feature.BTF) is True
    assert kernel.probe(Feature.UPROBE_MULTI) is (version not in ("5.10", "5.15", "6.1"))
    with load(kernel, image) as loaded:
        assert loaded.programs == HOOKS
        for hook in (*HOOKS, *HOOKS):
            loaded.attach(hook)
        assert loaded.attached == set(HOOKS)
        assert kernel.objects == (loaded,)
    assert kernel.objects == ()


def test_what_is_no_version_is_told(tmp_path):
    with pytest.raises(ProfileError, match="'garbage' is no series of kernels"):
        simulated("garbage", tmp_path)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"map_edits": {"open_at_args": MapEdit(max_entries=0)}}, errno.EINVAL, "map 'open_at_args': failed to create"),
        ({"map_edits": {"open_at_args": MapEdit(max_entries=(1 << 32) - 1)}}, errno.E2BIG, "failed to create"),
        ({"map_edits": {EVENTS: MapEdit(MapType.RINGBUF)}}, errno.EINVAL, "map 'shared_libraries': failed"),
        ({"map_edits": {"counters": MapEdit(value_size=8)}}, errno.EACCES, "value_size=8 off=16 size=8"),
        (
            {"constants": {"ringbuffers_enabled": 1}},
            errno.EINVAL,
            "cannot pass map_type 4 into func bpf_ringbuf",
        ),
        ({"map_edits": {EVENTS: RING}}, errno.EINVAL, "cannot pass map_type 27 into func bpf_perf_event_output"),
        ({"map_edits": {"open_at_args": MapEdit(key_size=64)}}, errno.EACCES, "stack"),
    ],
)
def test_what_the_kernel_refuses(kernel, image, options, code, said):
    with pytest.raises(BpfError, match=said) as caught:
        load(kernel, image, **options)
    assert caught.value.code == code
    assert isinstance(caught.value, VerifierError) == ("failed to create" not in said and "failed" not in said)
    assert kernel.objects == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"programs": ["tracepoint__syscalls__sys_enter_openta"]}, "no program .*did you mean"),
        ({"constants": {"ringbuffers_enable": 1}}, "no constant .*did you mean 'ringbuffers_enabled'"),
        ({"constants": {"ringbuffers_enabled": 1 << 64}}, "has 8 bytes, 18446744073709551616 does not fit"),
        ({"map_edits": {"open_at_arg": MapEdit(max_entries=1)}}, "no map .*did you mean 'open_at_args'"),
        ({"map_edits": {"open_at_args": MapEdit(max_entries=-1)}}, "max_entries cannot be"),
    ],
)
def test_wrong_words_are_refused(kernel, image, options, said):
    with pytest.raises(SettingsError, match=said):
        load(kernel, image, **options)


def test_what_is_no_object_or_is_not_simulated_is_told(kernel, image):
    with pytest.raises(FormatError, match="object shared-libraries is no eBPF object"):
        load(kernel, image[:1000])
    with pytest.raises(CannotTellError, match="bcc"):
        load(kernel, image, engine=Engine.BCC)
    with pytest.raises(CannotTellError, match="is a section of data"):
        load(kernel, image, map_edits={"shared_l.rodata": MapEdit(max_entries=2)})


def test_a_helper_that_no_kernel_has(kernel, image):
    call, unknown = bytes.fromhex("850000000e000000"), bytes.fromhex("85000000ffffff7f")
    with pytest.raises(VerifierError, match="invalid func unknown#2147483647"):
        load(kernel, image.replace(call, unknown))


@pytest.mark.parametrize(
    ("faults", "code", "times"),
    [({"denied": True}, errno.EPERM, 0), ({"no_memory": True}, errno.ENOMEM, 0), ({"interrupted": 5}, errno.EAGAIN, 0)],
)
def test_injected_faults(tmp_path, image, faults, code, times):
    kernel = faulty(tmp_path, **faults)
    with pytest.raises(BpfError) as caught:
        load(kernel, image)
    assert caught.value.code == code
    assert kernel.objects == ()
    load(faulty(tmp_path, interrupted=4), image).close()


def test_without_btf(tmp_path, built):
    kernel = faulty(tmp_path, no_btf=True)
    assert kernel.probe(Feature.BTF) is False
    assert kernel.probe(Feature.FENTRY) is False
    with pytest.raises(BtfError):
        kernel.signatures(["tcp_close"])
    load(kernel, built["shared-libraries"]).close()  # it has no relocation
    with pytest.raises(BpfError) as caught:
        kernel.load("tracer", built["tracer"], LoadOptions(["kprobe__tcp_connect"]))
    assert caught.value.code == errno.ESRCH


def test_maps(kernel, image):
    key, value = bytes(8), bytes(range(128))
    with load(kernel, image) as loaded:
        stored = loaded.maps["open_at_args"]
        assert (stored.get(key), stored.delete(key), list(stored.items())) == (None, False, [])
        stored.put(key, value)
        assert (stored.get(key), list(stored.items())) == (value, [(key, value)])
        for call in (lambda: stored.get(b"short"), lambda: stored.put(key, b"short"), lambda: stored.delete(b"")):
            with pytest.raises(SettingsError, match="bytes, not"):
                call()
        with pytest.raises(BpfError, match="update of map counters: E2BIG"):
            loaded.maps["counters"].put(b"\1\0\0\0", bytes(24))
        with pytest.raises(BpfError, match="delete from map counters: EINVAL"):
            loaded.maps["counters"].delete(bytes(4))
    for call in (lambda: stored.get(key), lambda: loaded.attach(HOOKS[0]), lambda: loaded.buffer(EVENTS)):
        with pytest.raises(ClosedError):
            call()


@pytest.mark.parametrize("ring", [False, True])
def test_events_and_their_losses(kernel, image, ring):
    options = {"map_edits": {EVENTS: RING}, "constants": {"ringbuffers_enabled": 1}} if ring else {}
    with load(kernel, image, **options) as loaded:
        buffer = loaded.buffer(EVENTS, 1)
        events = [bytes([n]) * 128 for n in range(40)]
        told = [kernel.inject(EVENTS, event, 1) for event in events]
        fits = told.index(-errno.EAGAIN if ring else -errno.ENOSPC)
        assert fits == (4096 - 1) // (136 if ring else 144)
        assert [record[:128] for record in buffer.read(0)] == events[:fits]
        assert buffer.lost == 0
        assert kernel.inject(EVENTS, b"after", 1) == 0
        assert len(buffer.read(0)) == 1
        assert buffer.lost == (0 if ring else 40 - fits), "perf says it with the next event that fits"


def test_programs_on_functions(tmp_path, built):
    kernel = faulty(tmp_path, "5.10")
    known = kernel.signatures(["tcp_close"])["tcp_close"]
    image = built["tracer-fentry"]
    with pytest.raises(SettingsError, match="no signature of tcp_close was given"):
        kernel.load("tracer-fentry", image, LoadOptions(["tcp_close"]))
    wrong = Signature(("int",), "int")
    with pytest.raises(SignatureError):
        kernel.load("tracer-fentry", image, LoadOptions(["tcp_close"], signatures={"tcp_close": ("tcp_close", wrong)}))
    with pytest.raises(CannotTellError, match="its types are not at hand"):
        kernel.load("tracer-fentry", image, LoadOptions(["tcp_close"], signatures={"tcp_close": ("tcp_close", known)}))


def test_a_verdict_is_of_the_types_that_the_file_has_now(tmp_path):
    file = tmp_path / "btf"
    assert _identity(None) is None
    assert _identity(file) == ()
    file.write_bytes(b"1")
    first = _identity(file)
    file.write_bytes(b"22")
    assert () != first != _identity(file)


def test_places_that_are_not_there(kernel, built, tmp_path):
    known = kernel.load("hooks", built["hooks"], LoadOptions(["on_uprobe", "on_kprobe_multi"]))
    (tmp_path / "file").write_bytes(bytes(100))
    with known as loaded:
        loaded.attach_uprobe("on_uprobe", str(tmp_path / "file"), 50).close()
        for file, offset, code in (("nothing", 0, errno.ENOENT), (".", 0, errno.EINVAL), ("file", 101, errno.EINVAL)):
            with pytest.raises(BpfError) as caught:
                loaded.attach_uprobe("on_uprobe", str(tmp_path / file), offset)
            assert caught.value.code == code
        with pytest.raises(BpfError, match="attaching on_kprobe_multi to tcp_close") as caught:
            loaded.attach_kprobes("on_kprobe_multi", ["tcp_close"])
        assert caught.value.code == errno.EOPNOTSUPP, "this 6.1 has no fprobe"
        with pytest.raises(SettingsError, match=r"is for uprobe, not for kprobe\.multi"):
            loaded.attach_kprobes("on_uprobe", ["tcp_close"])
        with pytest.raises(BpfError, match="ENOTSUP"):
            loaded.attach("on_uprobe")


def test_what_nothing_tells_is_not_guessed(kernel):
    with pytest.raises(CannotTellError, match="has a function no_such_function"):
        kernel.symbols(["no_such_function"])
    assert kernel.symbols(["tcp_close", "tcp_sendpage"]) == {"tcp_close", "tcp_sendpage"}
    assert simulated("6.12", kernel.proc_root).symbols(["tcp_close", "tcp_sendpage"]) == {"tcp_close"}


def test_it_is_the_same_under_any_hash_seed(built, tmp_path):
    """The order of a hash's keys is the seed's, not the interpreter's."""
    script = (
        "import sys; from pathlib import Path; from kmt.simulator.stores import Definition, make\n"
        "s = make(Definition('hash', 4, 4, 64), 1, seed=5)\n"
        "for n in range(64): s.put(n.to_bytes(4, 'little'), bytes(4))\n"
        "print([k.hex() for k in s.keys()])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": str(n)},
            capture_output=True,
            check=True,
        ).stdout
        for n in range(3)
    }
    assert len(said) == 1


@pytest.mark.parametrize("licence", [b"", b"BSD", b"gpl"])
def test_a_program_that_is_not_under_the_gpl_gets_no_helpers_that_want_it(kernel, image, licence):
    words = elf.contents(image)["license"]
    other = image.replace(words, licence.ljust(len(words), b"\0"))
    with pytest.raises(VerifierError, match="cannot call GPL-restricted function from non-GPL compatible") as caught:
        load(kernel, other)
    assert (caught.value.program, caught.value.code) == (HOOKS[0], errno.EINVAL)
    assert kernel.objects == ()
