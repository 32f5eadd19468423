"""Files that come from outside: any bytes are parsed or refused with FormatError, nothing else."""

import hashlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ebpf import elf
from harness.ebpf.btf_parser import Btf
from harness.ebpf.manifest import Manifest
from harness.ebpf.prebuilt import check_release
from harness.errors import AssetError, FormatError
from kmt import recipes


def obj(sections, machine=elf.EM_BPF):
    """A relocatable ELF file with these sections."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in [*sections, ".shstrtab"])
    contents = [b"", *sections.values(), names]
    offset, headers, body = 64, [], b""
    for number, data in enumerate(contents):
        name = [*sections, ".shstrtab"][number - 1] if number else ""
        at = names.index(b"\0" + name.encode() + b"\0") + 1 if number else 0
        headers.append(
            struct.pack("<IIQQQQIIQQ", at, 1 if number else 0, 0, 0, offset + len(body), len(data), 0, 0, 1, 0)
        )
        body += data
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, machine, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64,
        len(contents), len(contents) - 1,
    )  # fmt: skip
    return header + body + b"".join(headers)


RELOCATED = struct.pack("<HBBIIIIIII", 0xEB9F, 1, 0, 32, 0, 0, 0, 0, 0, 16)
WHOLE = obj({"kernel_release": b"6.1.0", ".BTF.ext": struct.pack("<HBBIIIIIII", 0xEB9F, 1, 0, 32, 0, 0, 0, 0, 0, 0)})
BTF = bytes.fromhex("9feb0100180000000000000000000000000000000100000000")


def test_sections_by_name():
    assert elf.contents(obj({"one": b"1", "two": b""})) == {
        "": b"",
        "one": b"1",
        "two": b"",
        ".shstrtab": b"\0one\0two\0.shstrtab\0",
    }
    assert elf.relocations(WHOLE) == 0
    assert elf.relocations(obj({".BTF.ext": RELOCATED})) == 16
    assert elf.relocations(obj({})) == 0


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"", "too short"),
        (b"garbage" * 20, "begins with 67617262616765"),
        (b"\x7fELF\x01" + bytes(100), "no 64-bit little-endian"),
        (obj({}, machine=62), "for machine 62, not for eBPF"),
        (WHOLE[:16] + b"\x02" + WHOLE[17:], "of type 2"),
        (WHOLE[:-1], "truncated"),
        (WHOLE[:62] + b"\xff" + WHOLE[63:], "without names"),
    ],
)
def test_what_is_no_object_is_said(image, said):
    with pytest.raises(FormatError, match=said):
        elf.contents(image)


def damaged(whole):
    """Bytes near to whole ones: cut, or with some changed."""
    changes = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=8)

    def apply(change):
        edits, size = change
        data = bytearray(whole)
        for at, value in edits:
            data[at] = value
        return bytes(data[:size])

    return st.tuples(changes, st.integers(0, len(whole)) | st.just(len(whole))).map(apply)


@given(st.binary() | damaged(WHOLE))
def test_any_bytes_are_an_object_or_a_format_error(image):
    try:
        found = elf.sections(image, machine=None)
        elf.relocations(image)
    except FormatError:
        return
    assert all(section.data in image for section in found)


@given(st.binary() | damaged(BTF + b"\0" * 16), st.booleans())
def test_any_bytes_are_btf_or_a_format_error(data, of_module):
    base = Btf.parse(BTF) if of_module else None
    try:
        parsed = Btf.parse(data, base=base)
        parsed.functions(["a", ""])
        parsed.section(".rodata")
    except FormatError:
        pass


def test_an_object_for_another_kernel_is_refused():
    check_release(WHOLE, "6.1.0", "x.o")
    for image, said in (
        (WHOLE, r"x\.o was made for 6\.1\.0, this kernel is 6\.1\.1"),
        (obj({}), "does not say which kernel"),
        (obj({"kernel_release": b"6.1.1", ".BTF.ext": RELOCATED}), "CO-RE relocations"),
        (obj({"kernel_release": b"6.1.1\0"}), "was made for"),
    ):
        with pytest.raises(AssetError, match=said):
            check_release(image, "6.1.1", "x.o")
    with pytest.raises(FormatError, match=r"x\.o: no ELF file"):
        check_release(b"", "6.1.1", "x.o")


FILES = {"a.bpf.c": b"a", "b.bpf.c": b"b", "a.h": b"h", "include/c.h": b"c"}
MANIFEST = {"files": {p: hashlib.sha256(d).hexdigest() for p, d in FILES.items()}, "flags": ["-O2", "-I{here}/include"]}
UNAME = ("6.1.0", "#1 SMP", "x86_64")


def manifest(**changed):
    return Manifest.parse(json.dumps(MANIFEST | changed).encode())


def test_a_program_is_made_of_its_source_and_every_header():
    assert set(manifest().inputs("a")) == {"a.bpf.c", "a.h", "include/c.h"}
    assert manifest().inputs("nosuch") == {}


def test_the_name_of_an_output_changes_with_all_that_goes_into_it():
    def names(module):
        edited = [manifest(files=MANIFEST["files"] | {place: "0" * 64}) for place in FILES]
        variants = [manifest(), manifest(flags=["-O1"]), manifest(flags=["-O2", "-I{here}", "/include"]), *edited]
        kernels = [("6.1.1", *UNAME[1:]), (UNAME[0], "#2 SMP", UNAME[2]), (*UNAME[:2], "aarch64")]
        return [v.output_name(module, UNAME) for v in variants] + [manifest().output_name(module, k) for k in kernels]

    # All differ, but that of a file that is not one of its own.
    assert len(set(names("a"))) == len(names("a")) - 1
    assert all(name.startswith("a-") and name.endswith(".o") for name in names("a"))


def test_the_build_calls_and_places_it_as_the_runtime_stage_does():
    flags = recipes.runtime_flags(recipes.TARGETS["x86_64"])
    made, digests = manifest(flags=flags), recipes.digests(FILES)
    assert digests == made.files
    assert recipes.inputs("a", digests) == made.inputs("a")
    assert recipes.output_name("a", UNAME, recipes.inputs("a", digests), flags) == made.output_name("a", UNAME)
    places = {"here": "/h", "own": "/o", "common": "/c"}
    for exists in (lambda path: "uapi" not in path, lambda path: True):
        assert recipes.placed(flags, places, exists) == made.placed(places, exists)


def test_flags_are_placed_and_those_of_missing_files_left_out():
    flags = ["-O2", "-I{here}/include", "-isystem{own}/gone", "-include{common}/there.h", "-DX={other}"]
    places = {"here": "/h", "own": "/o", "common": "/c {own}"}
    placed = manifest(flags=flags).placed(places, lambda path: "gone" not in path)
    assert placed == ["-O2", "-I/h/include", "-include/c {own}/there.h", "-DX={other}"]


@pytest.mark.parametrize(
    "changed",
    [
        {"files": []}, {"files": {"a.h": 1}}, {"flags": "x"}, {"flags": [1]},
        {"files": {"../a.h": "x"}}, {"files": {"/a.h": "x"}}, {"files": {"a/./b": "x"}}, {"files": {"a\0": "x"}},
    ],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(changed):
    with pytest.raises(FormatError):
        manifest(**changed)


@given(st.binary() | damaged(json.dumps(MANIFEST).encode()))
def test_any_bytes_are_a_manifest_or_a_format_error(data):
    try:
        found = Manifest.parse(data)
    except FormatError:
        return
    found.output_name("a", UNAME)
