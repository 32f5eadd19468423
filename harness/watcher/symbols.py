"""(pure, but for ``function_offsets``) Where the functions of a shared library are, for uprobes.

Laws: an offset is a place in the file, whatever address the code is loaded at; only functions that the file itself
defines count; any bytes but those of an ELF file for this machine raise FormatError, and nothing else.
"""

from __future__ import annotations

import io
import platform
from collections.abc import Collection
from typing import BinaryIO

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from harness.errors import FormatError

LARGEST = 1 << 28
"""Bytes of a library; a sparse file can be as large as it likes."""

_MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}


def function_offsets(file: BinaryIO, names: Collection[str]) -> dict[str, int]:
    """Offsets in an open file of those of the functions that it exports.

    FormatError for what is no ELF file of this machine, or larger than ``LARGEST``.
    """
    image = file.read(LARGEST + 1)
    if len(image) > LARGEST:
        raise FormatError(f"a file of more than {LARGEST} bytes is taken for no library")
    return offsets(image, names, _MACHINES.get(platform.machine(), ""))


def offsets(image: bytes, names: Collection[str], machine: str) -> dict[str, int]:
    """The same for the bytes of a file and a machine in ELF's words."""
    try:
        elf = ELFFile(io.BytesIO(image))
        if elf["e_machine"] != machine:
            raise FormatError(f"an ELF file for {elf['e_machine']}, not {machine}")
        return _exported(elf, names)
    except FormatError:
        raise
    # A damaged file comes out of the parser as whatever its numbers led to.
    except (ELFError, ConstructError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise FormatError(f"no ELF file: {error}") from None
    except (MemoryError, RecursionError, AssertionError) as error:
        raise FormatError(f"no ELF file: {type(error).__name__}") from None


def _exported(elf: ELFFile, names: Collection[str]) -> dict[str, int]:
    table = elf.get_section_by_name(".dynsym")
    found: dict[str, int] = {}
    if not isinstance(table, SymbolTableSection):
        return found
    code = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
    for name in names:
        for symbol in table.get_symbol_by_name(name) or ():
            if symbol["st_info"]["type"] != "STT_FUNC" or symbol["st_shndx"] == "SHN_UNDEF":
                continue
            address = symbol["st_value"]
            for segment in code:
                start = segment["p_vaddr"]
                if start <= address < start + segment["p_filesz"]:
                    found[name] = address - start + segment["p_offset"]
    return found
