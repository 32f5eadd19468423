"""Objects, maps and buffers from Python: what is refused and how, and unloading in any order."""

import gc
import struct
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.workloads import libraries
from harness.ebpf import abi, core, maps
from harness.ebpf.btf import BtfLoader, ResultCode
from harness.ebpf.core import CoreLoader
from harness.ebpf.settings import BpfSettings
from harness.errors import AssetError, BpfError, BtfError, ClosedError, FormatError, SettingsError, VerifierError
from harness.kernel_api import LoadOptions, MapEdit, MapType

HOOKS = ("tracepoint__syscalls__sys_enter_openat", "tracepoint__syscalls__sys_exit_openat")
KEY = struct.pack("<Q", 7)


@pytest.fixture(scope="module")
def image(bpf_dir):
    return (bpf_dir / "co-re/shared-libraries.o").read_bytes()


def load(kernel, image, **options):
    return kernel.api.load("shared-libraries", image, LoadOptions(**{"programs": HOOKS, **options}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"programs": ["tracepoint__syscalls__sys_enter_openta"]}, "no program .*did you mean"),
        ({"constants": {"ringbuffers_enable": 1}}, "no constant .*did you mean 'ringbuffers_enabled'"),
        ({"constants": {"ringbuffers_enabled": 1 << 64}}, "has 8 bytes, 18446744073709551616 does not fit"),
        ({"constants": {"ringbuffers_enabled": -1}}, "does not fit"),
        ({"map_edits": {"open_at_arg": MapEdit(max_entries=1)}}, "no map .*did you mean 'open_at_args'"),
        ({"map_edits": {"open_at_args": MapEdit(max_entries=1 << 32)}}, "max_entries cannot be"),
        ({"map_edits": {"open_at_args": MapEdit(max_entries=-1)}}, "max_entries cannot be"),
    ],
)
def test_wrong_words_are_refused(kernel, image, options, said):
    with pytest.raises(SettingsError, match=said):
        load(kernel, image, **options)


@pytest.mark.parametrize(
    "edit",
    [
        MapEdit(max_entries=0),
        # Made, and then refused by the verifier: programs look up keys in it.
        MapEdit(MapType.RINGBUF, key_size=0, value_size=0, max_entries=4097),
        MapEdit(max_entries=(1 << 32) - 1),
    ],
    ids=["empty", "odd ring", "huge"],
)
def test_a_map_that_cannot_be_made_is_refused(kernel, image, edit):
    with pytest.raises(BpfError) as caught:
        load(kernel, image, map_edits={"open_at_args": edit})
    assert "open_at_args" in str(caught.value) or "shared-libraries" in str(caught.value)


def test_what_the_verifier_rejects_is_said_in_a_line(kernel, image):
    """Values of eight bytes: the program would write behind them."""
    with pytest.raises(VerifierError) as caught:
        load(kernel, image, map_edits={"counters": MapEdit(value_size=8)})
    error = caught.value
    assert error.program in HOOKS
    assert "invalid access to map value, value_size=8" in error.reason
    assert "\n" not in str(error)
    assert len(error.log) > len(error.reason)
    assert "processed" not in error.reason


@pytest.mark.parametrize("cut", [1, 63, 64, 1000, 10000])
def test_a_cut_object_is_refused(kernel, image, cut):
    with pytest.raises(FormatError, match="no eBPF object"):
        load(kernel, image[:cut])


def test_maps(kernel, image):
    with load(kernel, image) as loaded:
        stored = loaded.maps["open_at_args"]
        assert stored.get(KEY) is None
        assert stored.delete(KEY) is False
        values = {struct.pack("<Q", n): bytes([n]) * 128 for n in range(50)}
        for key, value in values.items():
            stored.put(key, value)
        assert dict(stored.items()) == values
        assert stored.delete(KEY) is True
        assert stored.get(KEY) is None
        assert len(list(stored.items())) == 49
        for call in (lambda: stored.get(b"short"), lambda: stored.put(KEY, b"short"), lambda: stored.delete(b"")):
            with pytest.raises(SettingsError, match="bytes, not"):
                call()
    with pytest.raises(ClosedError):
        stored.get(KEY)


def test_entries_that_go_while_we_walk(kernel, image):
    with load(kernel, image) as loaded:
        stored = loaded.maps["open_at_args"]
        keys = {struct.pack("<Q", n) for n in range(30)}
        for key in keys:
            stored.put(key, bytes(128))
        seen = []
        for key, _ in stored.items():
            seen.append(key)
            stored.delete(key)
        assert len(seen) == len(set(seen)) == 30


@pytest.mark.parametrize("size", [100, 2000])
def test_a_few_entries_that_go_cost_none_of_the_others(kernel, image, size):
    """Late in the walk, where to begin again costs most; new ones that come may be seen or not."""
    keys = {struct.pack("<Q", n) for n in range(size)}
    with load(kernel, image, map_edits={"open_at_args": MapEdit(max_entries=4 * size)}) as loaded:
        stored = loaded.maps["open_at_args"]
        for key in keys:
            stored.put(key, key * 16)
        seen, gone = [], set()
        for key, value in stored.items():
            assert value == key * 16
            seen.append(key)
            if key in keys and len(seen) > size * 3 // 4 and len(gone) < 5:
                stored.delete(key)
                gone.add(key)
                new = struct.pack("<Q", size + len(gone))
                stored.put(new, new * 16)
        assert len(seen) == len(set(seen))
        assert keys <= set(seen)
        assert len(gone) == 5


@pytest.mark.real
def test_a_bucket_with_more_entries_than_are_asked_for_comes_whole(kernel, image, monkeypatch):
    monkeypatch.setattr(maps, "_BATCH", 1)
    keys = {struct.pack("<Q", n) for n in range(64)}
    with load(kernel, image, map_edits={"open_at_args": MapEdit(max_entries=64)}) as loaded:
        stored = loaded.maps["open_at_args"]
        for key in keys:
            stored.put(key, key * 16)
        assert sorted(stored.items()) == sorted((key, key * 16) for key in keys)


@pytest.mark.real
def test_the_verifiers_log_has_its_place_until_the_object_is_closed(kernel, image, monkeypatch):
    """libbpf keeps the address that it was given and takes no other once the object is loaded."""
    lib = abi.library()
    real, given = lib.bpf_program__set_log_buf, []

    def set_log_buf(program, buffer, size):
        status = real(program, buffer, size)
        given.append((status, buffer and weakref.ref(buffer)))
        return status

    monkeypatch.setattr(lib, "bpf_program__set_log_buf", set_log_buf)
    with load(kernel, image):
        gc.collect()
        assert [status for status, _ in given] == [0] * len(HOOKS)
        assert all(buffer() is not None for _, buffer in given)
    gc.collect()
    assert all(buffer() is None for _, buffer in given)


STEPS = ("buffer", "enter", "exit", "object", "object again")


@settings(max_examples=max(5, settings().max_examples // 5))
@given(order=st.permutations(STEPS))
def test_unloading_in_any_order(kernel, image, order):
    loaded = load(kernel, image)
    buffer = loaded.buffer("shared_libraries", 8)
    for hook in HOOKS:
        loaded.attach(hook)
        loaded.attach(hook)
    closers = {
        "buffer": buffer.close,
        "enter": lambda: loaded.detach(HOOKS[0]),
        "exit": lambda: loaded.detach(HOOKS[1]),
        "object": loaded.close,
        "object again": loaded.close,
    }
    for step in order:
        closers[step]()
    with pytest.raises(ClosedError):
        buffer.read(0)
    with pytest.raises(ClosedError):
        loaded.attach(HOOKS[0])
    with pytest.raises(ClosedError):
        loaded.buffer("shared_libraries")


@pytest.mark.real
def test_attached_twice_it_runs_once_and_detached_never(kernel, image, tmp_path):
    path = tmp_path / "libssl.so"
    path.touch()
    with load(kernel, image) as loaded:
        buffer = loaded.buffer("shared_libraries", 8)
        for hook in (*HOOKS, *HOOKS):
            loaded.attach(hook)
        libraries.open_(bytes(path))
        assert len(buffer.read(0)) == 1
        loaded.detach(HOOKS[1])
        libraries.open_(bytes(path))
        assert buffer.read(0) == []


def test_a_program_that_was_not_loaded_cannot_be_attached(kernel, image):
    with load(kernel, image) as loaded, pytest.raises(SettingsError, match="no loaded program"):
        loaded.attach("tracepoint__syscalls__sys_enter_open")


@pytest.mark.parametrize("pages", [0, 3, -8])
def test_a_buffer_of_odd_size_is_refused(kernel, image, pages):
    with load(kernel, image) as loaded, pytest.raises(SettingsError, match="no power of two"):
        loaded.buffer("shared_libraries", pages)


# The asset loader, on real files of root.


@pytest.fixture
def codes():
    return []


@pytest.fixture
def loader(tmp_path, codes):
    (tmp_path / "co-re").mkdir()
    (tmp_path / "co-re/x.o").write_bytes(b"object")
    btf = tmp_path / "root/sys/kernel/btf/vmlinux"
    btf.parent.mkdir(parents=True)
    btf.touch()
    return CoreLoader(
        tmp_path / "co-re",
        BtfLoader("6.1", root=tmp_path / "root"),
        lambda *said: codes.append(said),
    )


def test_the_callback_gets_the_open_asset_and_its_answer_comes_back(loader, codes):
    kept = []

    def start(asset, options):
        kept.append(asset)
        assert options.code is ResultCode.DEFAULT_BTF
        return asset.read()

    assert loader.load("../elsewhere/x.o", start) == b"object", "the directory of a name is dropped"
    assert kept[0].closed
    assert codes == [("x", ResultCode.DEFAULT_BTF)]


def test_the_callbacks_error_is_raised_as_it_was(loader, codes):
    for error, code in [
        (KeyError("x"), ResultCode.LOADER_ERROR),
        (VerifierError("p", 22, "no", "log"), ResultCode.VERIFIER_ERROR),
        (caused(ValueError("x"), VerifierError("p", 22, "no", "log")), ResultCode.VERIFIER_ERROR),
    ]:

        def start(asset, options, error=error):
            raise error

        with pytest.raises(type(error)) as caught:
            loader.load("x.o", start)
        assert caught.value is error
        assert codes.pop() == ("x", code)
    assert codes == []


def caused(error, cause):
    error.__cause__ = cause
    return error


def test_without_asset_or_btf_the_callback_is_not_called(loader, codes, tmp_path):
    def start(asset, options):
        raise AssertionError("called")

    with pytest.raises(AssetError, match=r"error reading y\.o: could not find asset"):
        loader.load("y.o", start)
    (tmp_path / "root/sys/kernel/btf/vmlinux").unlink()
    loader.btf.flush()
    with pytest.raises(BtfError, match="BTF load: "):
        loader.load("x.o", start)
    assert codes == [("y", ResultCode.ASSET_READ_ERROR), ("x", ResultCode.BTF_NOT_FOUND)]


def test_the_loader_of_the_process_is_made_once(settings_of_process, live):
    loaders = [core.setup(s, live) for s in settings_of_process]
    assert loaders[0] is loaders[1]
    core.reset()
    core.reset()
    assert core.setup(settings_of_process[0], live) is not loaders[0]


@pytest.fixture
def settings_of_process(tmp_path):
    return [BpfSettings(tmp_path / name) for name in ("one", "two")]


def test_libbpf_is_heard_whoever_set_its_printer(live):
    """As BCC does, which loads the same library."""
    abi.library().libbpf_set_print(abi.PrintCallback())
    with abi.hearing() as heard:
        assert not abi.library().bpf_object__open_mem(b"garbage", 7, None)
    assert heard
