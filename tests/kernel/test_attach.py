"""Every kind of program is attached, runs as often as what it is attached to, and comes off again, in any order."""

import ctypes
import os
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.ebpf.elf import contents
from harness.errors import BpfError, ClosedError, FormatError, SettingsError
from harness.kernel_api import Feature, LoadOptions
from harness.watcher.symbols import function_offsets

pytestmark = pytest.mark.thorough

FUNCTION = "__x64_sys_getpgid"
BY_SECTION = ("on_kprobe", "on_kretprobe", "on_fentry", "on_fexit", "on_tracepoint")
KINDS = (
    *BY_SECTION,
    *("on_uprobe", "on_uretprobe", "on_kprobe_multi", "on_kretprobe_multi", "on_uprobe_multi", "on_uretprobe_multi"),
    "on_missing",
)
KPROBE_MULTI = ("on_kprobe_multi", "on_kretprobe_multi")
UPROBE_MULTI = ("on_uprobe_multi", "on_uretprobe_multi")
libc = ctypes.CDLL(None)


@pytest.fixture(scope="module")
def image(bpf_dir):
    return (bpf_dir / "co-re/hooks.o").read_bytes()


@pytest.fixture(scope="module")
def getpgid():
    """Where libc has it: the file and the offset."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = next(line.split()[5] for line in maps if "/libc.so" in line)
    return mapped, place(mapped, "getpgid")


def place(file, function):
    with Path(file).open("rb") as opened:
        return function_offsets(opened, [function])[function]


def load(live, image, programs):
    typed = [p for p in programs if p in ("on_fentry", "on_fexit")]
    known = live.signatures([FUNCTION]) if typed else {}
    signatures = {p: (FUNCTION, known.get(FUNCTION)) for p in typed}
    return live.load("hooks", image, LoadOptions(programs, {"process": os.getpid()}, signatures=signatures))


def attach(loaded, program, getpgid):
    """What takes it off again."""
    file, offset = getpgid
    if program in BY_SECTION or program == "on_missing":
        loaded.attach(program)
        return lambda: loaded.detach(program)
    if program in KPROBE_MULTI:
        return loaded.attach_kprobes(program, [FUNCTION]).close
    if program in UPROBE_MULTI:
        return loaded.attach_uprobes(program, file, [offset]).close
    return loaded.attach_uprobe(program, file, offset).close


def hits(loaded, program):
    return struct.unpack("<Q", loaded.maps["hits"].get(struct.pack("<I", KINDS.index(program))))[0]


def call(times=1):
    for _ in range(times):
        libc.getpgid(0)


def programs(live):
    multi = [KPROBE_MULTI] * bool(live.probe(Feature.KPROBE_MULTI)) + [UPROBE_MULTI] * bool(
        live.probe(Feature.UPROBE_MULTI)
    )
    return list(KINDS[:7]) + [p for pair in multi for p in pair]


@pytest.mark.requires("fentry")
def test_every_kind_counts_every_call_and_none_after_it_is_off(live, image, getpgid):
    chosen = programs(live)
    with load(live, image, chosen) as loaded:
        off = {program: attach(loaded, program, getpgid) for program in chosen}
        call(7)
        assert {p: hits(loaded, p) for p in chosen} == dict.fromkeys(chosen, 7)
        for program in chosen:
            off[program]()
            off[program]()  # a second time does nothing
        call(3)
        assert {p: hits(loaded, p) for p in chosen} == dict.fromkeys(chosen, 7)


@pytest.mark.requires("kprobe_multi")
def test_one_link_for_many_kernel_functions(live, image):
    with load(live, image, KPROBE_MULTI) as loaded:
        link = loaded.attach_kprobes("on_kprobe_multi", [FUNCTION, "__x64_sys_getsid"])
        libc.getsid(0)
        call(2)
        assert hits(loaded, "on_kprobe_multi") == 3
        link.close()
        with pytest.raises(BpfError, match="attaching on_kprobe_multi to no_such_function"):
            loaded.attach_kprobes("on_kprobe_multi", ["no_such_function"])
        with pytest.raises(BpfError, match="no function"):
            loaded.attach_kprobes("on_kprobe_multi", [])


@pytest.mark.requires("uprobe_multi")
def test_one_link_for_many_functions_of_a_file(live, image, getpgid):
    file, offset = getpgid
    other = place(file, "getsid")
    with load(live, image, UPROBE_MULTI) as loaded:
        loaded.attach_uprobes("on_uretprobe_multi", file, [offset, other])
        libc.getsid(0)
        call(2)
        assert hits(loaded, "on_uretprobe_multi") == 3
        with pytest.raises(BpfError, match=r"attaching on_uprobe_multi to /nonexistent at 1 places"):
            loaded.attach_uprobes("on_uprobe_multi", "/nonexistent", [0])


def test_where_a_kernel_has_no_such_programs_it_says_so(live, image):
    """When they are loaded, or when they are attached; never by a program that does not run."""

    def try_(program):
        with load(live, image, [program]) as loaded:
            if program in KPROBE_MULTI:
                loaded.attach_kprobes(program, [FUNCTION])
            else:
                loaded.attach_uprobes(program, "/proc/self/exe", [0])

    for feature, program in ((Feature.KPROBE_MULTI, KPROBE_MULTI[0]), (Feature.UPROBE_MULTI, UPROBE_MULTI[0])):
        assert live.probe(feature) is not None
        if not live.probe(feature):
            with pytest.raises(BpfError):
                try_(program)


def test_places_that_are_not_there(live, image, getpgid):
    with load(live, image, ["on_missing", "on_uprobe"]) as loaded:
        with pytest.raises(BpfError, match="attaching on_missing to kprobe/no_kernel_has_such_a_function"):
            loaded.attach("on_missing")
        with pytest.raises(BpfError, match="attaching on_uprobe to /nonexistent at 0x0"):
            loaded.attach_uprobe("on_uprobe", "/nonexistent", 0)
        with pytest.raises(SettingsError, match=r"is for uprobe, not for kprobe\.multi"):
            loaded.attach_kprobes("on_uprobe", [FUNCTION])
        with pytest.raises(SettingsError, match="is for kprobe/no_kernel_has_such_a_function, not for uprobe"):
            loaded.attach_uprobe("on_missing", *getpgid)


@pytest.mark.requires("fentry")
@given(st.data())
@settings(max_examples=15)
def test_unloading_in_any_order(live, image, getpgid, data):
    """Links, some of them closed before, and the object: whatever is closed first, all go, and later calls are told."""
    chosen = programs(live)
    attached = data.draw(st.lists(st.sampled_from(chosen), unique=True))
    order = data.draw(st.permutations([*attached, "the object", "the object"]))
    loaded = load(live, image, chosen)
    off = {program: attach(loaded, program, getpgid) for program in attached} | {"the object": loaded.close}
    for step in order:
        off[step]()
    with pytest.raises(ClosedError):
        loaded.attach(chosen[0])


def test_a_map_that_is_closed_under_its_users(live, image):
    """Threads that use a map while its object is closed get values or ClosedError, nothing else, and no crash."""
    for _ in range(20):
        loaded = load(live, image, ["on_kprobe"])
        stored, odd, begun = loaded.maps["hits"], [], threading.Barrier(5)

        def use(stored=stored, odd=odd, begun=begun):
            begun.wait()
            try:
                while True:
                    value = stored.get(bytes(4))
                    if value != bytes(8) or len(list(stored.items())) != len(KINDS):
                        odd.append(value)
            except ClosedError:
                pass
            except BaseException as error:
                odd.append(error)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        begun.wait()
        loaded.close()
        for thread in threads:
            thread.join()
        assert odd == []


@given(st.data())
@settings(max_examples=30)
def test_a_damaged_object_is_refused_or_loads_but_never_harms(live, image, data):
    """libbpf is given what our own check let pass."""
    damaged = bytearray(image)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(image) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    damaged = bytes(damaged[: data.draw(st.sampled_from([len(image), len(image) - 64, len(image) // 2]))])
    try:
        contents(damaged)
        passed = True
    except FormatError:
        passed = False
    try:
        loaded = load(live, damaged, ["on_kprobe"])
    except (FormatError, BpfError, SettingsError):
        return
    loaded.close()
    assert passed
