"""Where functions are in a library, against the dynamic loader's own answer; damaged files are typed errors."""

from __future__ import annotations

import ctypes
import functools
import io
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import FormatError
from harness.watcher.symbols import LARGEST, function_offsets, offsets


@functools.cache
def library() -> Path:
    """A library of this process with an ordinary symbol table: zlib or another, but not libc (its functions vary)."""
    ctypes.CDLL("libz.so.1")
    maps = Path("/proc/self/maps").read_text().splitlines()
    return Path(next(line.split()[-1] for line in maps if "/libz.so" in line))


@functools.cache
def image() -> bytes:
    return library().read_bytes()


def machine() -> str:
    return str(ELFFile(io.BytesIO(image()))["e_machine"])


def loaded_at(name: str) -> int:
    """The place in the file of what the dynamic loader calls so."""
    address = ctypes.cast(getattr(ctypes.CDLL(str(library())), name), ctypes.c_void_p).value or 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *path = line.split()
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high and path == [str(library())]:
            return address - low + int(offset, 16)
    raise AssertionError(f"{name} is nowhere")


def test_offsets_are_those_of_the_loader() -> None:
    names = ["deflate", "inflate", "crc32_combine", "malloc", "no such function", ""]
    with library().open("rb") as file:
        found = function_offsets(file, names)
    assert found == {name: loaded_at(name) for name in ("deflate", "inflate", "crc32_combine")}


def test_an_offset_is_a_place_in_the_file_wherever_the_code_is_to_be_loaded() -> None:
    """Most linkers make the two alike; here the code's segment and its symbols are moved, as lld and others do."""
    names, elf, moved, far = ["deflate", "inflate"], ELFFile(io.BytesIO(image())), bytearray(image()), 1 << 30
    for n, segment in enumerate(elf.iter_segments()):
        if segment["p_type"] == "PT_LOAD" and segment["p_flags"] & 1:
            struct.pack_into("<Q", moved, elf["e_phoff"] + n * elf["e_phentsize"] + 16, segment["p_vaddr"] + far)
    table = elf.get_section_by_name(".dynsym")
    for n, symbol in enumerate(table.iter_symbols()):
        if symbol.name in names:
            struct.pack_into("<Q", moved, table["sh_offset"] + n * table["sh_entsize"] + 8, symbol["st_value"] + far)
    assert offsets(bytes(moved), names, machine()) == {name: loaded_at(name) for name in names}


def test_a_library_of_another_machine_is_refused() -> None:
    with pytest.raises(FormatError, match="not EM_SPARC"):
        offsets(image(), ["deflate"], "EM_SPARC")


def test_no_library() -> None:
    for content in (b"", b"text", b"\x7fELF", image()[:64], image()[:4000]):
        with pytest.raises(FormatError):
            function_offsets(io.BytesIO(content), ["deflate"])


def test_a_library_without_end_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "libssl.so").open("wb+") as file:
        file.write(image())
        file.truncate(LARGEST + 1)
        file.seek(0)
        with pytest.raises(FormatError, match="taken for no library"):
            function_offsets(file, ["deflate"])


@st.composite
def damage(draw: st.DrawFn) -> bytes:
    """The library with some bytes changed, more of them in its headers and tables, or cut."""
    content = bytearray(image())
    table = ELFFile(io.BytesIO(image())).get_section_by_name(".dynsym")
    places = st.one_of(
        st.integers(0, 63),
        st.integers(64, 1000),
        st.integers(len(content) - 2000, len(content) - 1),
        st.integers(table["sh_offset"], table["sh_offset"] + table["sh_size"] - 1),
        st.integers(0, len(content) - 1),
    )
    for place, value in draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)):
        content[place] = value
    return bytes(content[: draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])


@given(damage())
def test_a_damaged_library_is_found_in_or_refused(content: bytes) -> None:
    try:
        found = function_offsets(io.BytesIO(content), ["deflate", "inflate"])
    except FormatError:
        return
    assert set(found) <= {"deflate", "inflate"}
    assert all(offset >= 0 for offset in found.values())
