"""An object before it is loaded, by libbpf itself and by the simulator: the same maps, data, choices and objections.

No kernel is asked: libbpf does all of it in the process.
"""

import ctypes
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ebpf import abi, opening
from harness.ebpf.libbpf import BpfObject
from harness.ebpf.maps import BpfMap
from harness.errors import FormatError, SettingsError
from harness.kernel_api import LoadOptions, MapEdit, MapType
from kmt import build, config
from kmt.errors import CannotTellError
from kmt.simulator import objects
from kmt.simulator.kernel import SimulatedKernel
from kmt.simulator.objects import Declared
from kmt.simulator.opening import prepare
from kmt.simulator.profile import recorded
from kmt.simulator.uapi import map_number

pytestmark = pytest.mark.host_only

ROOT = Path(__file__).parents[2]
CPUS = 3
NAMES = ("shared-libraries", "tracer-fentry", "maps", "hooks", "processes")
PERF_EVENT_ARRAY = 4


class Images(dict):
    """Objects by name; shown by their names."""

    def __repr__(self):
        return f"<{', '.join(self)}>"


@pytest.fixture(scope="module")
def built():
    return Images((name, path.read_bytes()) for name, path in build.build(config.load(ROOT)).objects.items())


def by_libbpf(name, image, options):
    """Its maps: type, sizes and entries by name; and what is in the sections of data."""
    library = abi.library()
    entries = library.bpf_map__max_entries
    entries.restype, entries.argtypes = ctypes.c_uint32, [ctypes.c_void_p]
    handle = opening.open_object(name, image, options)
    try:
        maps = {n: BpfMap(h) for n, h in opening.named(handle, "map").items()}
        opening.set_constants(name, handle, maps, options.constants)
        for edited, edit in options.map_edits.items():
            opening.edit_map(maps[edited], edit)
        ask = (library.bpf_map__type, library.bpf_map__key_size, library.bpf_map__value_size, entries)
        told = {n: [int(function(m.handle)) for function in ask] for n, m in maps.items()}
        data = {}
        for n, m in maps.items():
            size = ctypes.c_size_t()
            at = library.bpf_map__initial_value(m.handle, ctypes.byref(size)) if "." in n else None
            if at:
                data[n] = ctypes.string_at(at, size.value)
        return told, data
    finally:
        library.bpf_object__close(handle)


def by_the_simulator(name, image, options):
    opened = prepare(name, objects.parse(image), options, CPUS)
    told = {n: [map_number(d.type), d.key_size, d.value_size, d.max_entries] for n, d in opened.maps.items()}
    return told, {n: opened.data[section] for n, section in opened.sections.items()}


def same(name, image, options):
    real, data = by_libbpf(name, image, options)
    told, simulated = by_the_simulator(name, image, options)
    for definition in real.values():  # that is done when it is loaded
        if definition[0] == PERF_EVENT_ARRAY and not definition[3]:
            definition[3] = CPUS
    assert told == real
    assert simulated == data


@pytest.mark.parametrize("name", NAMES)
def test_maps_are_as_the_object_has_them(built, name):
    same(name, built[name], LoadOptions())


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_data_is_called_by_the_beginning_of_the_objects_name(built, name):
    same(name, built["shared-libraries"], LoadOptions())


sizes = st.none() | st.sampled_from([0, 1, 4, 4095, 4096, 4097, 5000, 1 << 31, (1 << 31) + 1, (1 << 32) - 1])
edits = st.builds(MapEdit, st.none() | st.sampled_from(MapType), sizes, sizes, sizes)


@given(st.sampled_from(["ring", "perf_events", "a_hash", "an_array"]), edits)
def test_maps_are_edited_as_libbpf_edits_them(built, name, edit):
    same("maps", built["maps"], LoadOptions(map_edits={name: edit}))


@given(st.integers(0, (1 << 64) - 1))
def test_constants_are_written_where_libbpf_writes_them(built, value):
    same("shared-libraries", built["shared-libraries"], LoadOptions(constants={"ringbuffers_enabled": value}))


@pytest.mark.parametrize("programs", [None, (), ("on_fexit", "on_kprobe"), ("on_kprobe", "on_kprobe")])
def test_programs_are_chosen_in_the_objects_order(built, programs):
    handle = opening.open_object("hooks", built["hooks"], LoadOptions())
    try:
        wanted = opening.choose("hooks", opening.named(handle, "program"), programs)
    finally:
        abi.library().bpf_object__close(handle)
    opened = prepare("hooks", objects.parse(built["hooks"]), LoadOptions(programs), CPUS)
    assert tuple(program.name for program in opened.programs) == wanted


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("hooks", {"programs": ["on_kprob"]}, "no program 'on_kprob' (did you mean 'on_kprobe'?)"),
        (
            "hooks",
            {"programs": ["on_kprobe"], "constants": {"proces": 1}},
            "no constant 'proces' (did you mean 'process'?)",
        ),
        ("hooks", {"programs": ["on_kprobe"], "constants": {"process": 1 << 64}}, "18446744073709551616 does not fit"),
        (
            "hooks",
            {"programs": ["on_kprobe"], "constants": {"process": -1}},
            "constant process has 8 bytes, -1 does not fit",
        ),
        ("maps", {"map_edits": {"rin": MapEdit()}}, "no map 'rin' (did you mean 'ring'?)"),
        ("maps", {"map_edits": {"ring": MapEdit(key_size=1 << 32)}}, "map ring: key_size cannot be 4294967296"),
        ("maps", {"map_edits": {"ring": MapEdit(value_size=-1)}}, "map ring: value_size cannot be -1"),
        ("maps", {"map_edits": {"ring": MapEdit(max_entries=1 << 40)}}, "map ring: max_entries cannot be"),
        ("hooks", {"programs": ["on_fentry"]}, "no signature of __x64_sys_getpgid was given for it"),
        ("hooks", {"programs": ["on_fentry"], "constants": {"no": 1}}, "no signature of __x64_sys_getpgid"),
        ("hooks", {"programs": ["on_kprobe"], "constants": {"no": 1}, "map_edits": {"no": MapEdit()}}, "no constant"),
    ],
)
def test_wrong_words_are_refused_in_the_same_words(built, tmp_path, name, options, said):
    kernel = SimulatedKernel(recorded()["6.12"], proc_root=tmp_path)
    errors = []
    for load in (BpfObject, kernel.load):
        with pytest.raises(SettingsError) as caught:
            load(name, built[name], LoadOptions(**options))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert said in errors[0]


def test_what_opening_does_and_is_not_simulated_is_told(built):
    whole = objects.parse(built["maps"])
    (data,) = prepare("maps", whole, LoadOptions(), CPUS).sections
    for edit in (MapEdit(), MapEdit(max_entries=2)):
        with pytest.raises(CannotTellError, match=f"{data} is a section of data; its edits are not simulated"):
            prepare("maps", whole, LoadOptions(map_edits={data: edit}), CPUS)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (Declared(99, 4, 4, 1, 0), "map new is of type 99, which is not known"),
        (Declared(1, 4, 4, 1, 0x80), "map new is read only for programs, which is not simulated"),
    ],
)
def test_maps_that_nobody_has_heard_of_are_told(built, declared, said):
    whole = objects.parse(built["maps"])
    with pytest.raises(CannotTellError, match=said):
        prepare("maps", replace(whole, declared={**whole.declared, "new": declared}), LoadOptions(), CPUS)


def test_questions_for_the_kernels_configuration_are_told(built):
    asks = built["maps"].replace(b"an_array", b".kconfig")
    with pytest.raises(CannotTellError, match=r"object maps asks for the kernel's configuration \(\.kconfig\)"):
        prepare("maps", objects.parse(asks), LoadOptions(), CPUS)


def damaged(image, what):
    """An object with one thing in it that nobody has heard of."""
    content = objects.elf.contents(image)
    if what == "section":
        return image.replace(b"tracepoint/syscalls", b"tracepaint/syscalls")
    if what == "truncated":
        return image[: len(image) // 2]
    changed = bytearray(image)
    extension = content[".BTF.ext"]
    header, offset = (int.from_bytes(extension[at : at + 4], "little") for at in (4, 24))
    changed[image.index(extension) + header + offset + 4 + 8 + 12] = 99
    return bytes(changed)


@pytest.mark.parametrize(
    ("name", "what", "error", "said"),
    [
        ("maps", "section", CannotTellError, "section 'tracepaint/syscalls/sys_enter_getpgid' is of no known type"),
        ("tracer-fentry", "relocation", CannotTellError, "a CO-RE relocation of the unknown kind 99"),
        ("maps", "truncated", FormatError, "object maps is no eBPF object"),
    ],
)
def test_an_object_with_something_unheard_of_is_told(built, tmp_path, name, what, error, said):
    kernel = SimulatedKernel(recorded()["6.12"], proc_root=tmp_path)
    with pytest.raises(error, match=said):
        kernel.load(name, damaged(built[name], what), LoadOptions())
    assert kernel.objects == ()
