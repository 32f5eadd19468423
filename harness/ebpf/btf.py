"""Where BTF of the running kernel comes from: a configured file first, then what the kernel and its packages show.

Laws: sources are asked in the table's order, and none after one that has it; a source that fails never stops the
others; an answer is kept until ``flush``, an error never; the result code belongs to the call that returned it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from harness.ebpf import abi
from harness.ebpf.btf_parser import Btf
from harness.errors import BtfError, FormatError, LibraryError

SYSFS = Path("/sys/kernel/btf/vmlinux")
_FILES = (
    "/boot/vmlinux-{r}",
    "/lib/modules/{r}/vmlinux-{r}",
    "/lib/modules/{r}/build/vmlinux",
    "/usr/lib/modules/{r}/kernel/vmlinux",
    "/usr/lib/debug/boot/vmlinux-{r}",
    "/usr/lib/debug/boot/vmlinux-{r}.debug",
    "/usr/lib/debug/lib/modules/{r}/vmlinux",
)
"""Where packages put a kernel image with its BTF, in libbpf's order."""


class ResultCode(IntEnum):
    """How the load of an asset ended; below 3 it went well, and the code says whose BTF it was."""

    CUSTOM_BTF = 0
    EMBEDDED_BTF = 1
    DEFAULT_BTF = 2
    BTF_NOT_FOUND = 3
    ASSET_READ_ERROR = 4
    VERIFIER_ERROR = 5
    LOADER_ERROR = 6


@dataclass(frozen=True)
class Found:
    """BTF that can be used: ``path`` is what libbpf is told, None where it finds the kernel's own by itself."""

    code: ResultCode
    path: Path | None


class BtfLoader:
    """The sources in order, with what they answered. ``root`` stands for ``/`` (tests hide BTF that way)."""

    def __init__(self, release: str, custom: Path | None = None, *, root: Path = Path("/")) -> None:
        self._release = release
        self._custom_file = custom
        self._root = root
        self._found: Found | None = None
        self._lock = threading.Lock()
        self._sources: tuple[tuple[str, Callable[[], Found | None]], ...] = (
            ("configured BTF file", self._custom),
            ("kernel", self._kernel),
        )

    def get(self) -> Found:
        """The first source that has it. BtfError names what each one said."""
        with self._lock:
            if self._found is None:
                self._found = self._search()
            return self._found

    def flush(self) -> None:
        """Forget the answer: the next ``get`` asks again."""
        with self._lock:
            self._found = None

    def _search(self) -> Found:
        said = []
        for description, source in self._sources:
            try:
                found = source()
            except (BtfError, FormatError, LibraryError, OSError) as error:
                said.append(f"BTF load from {description}: {error}")
            else:
                if found is not None:
                    return found
        raise BtfError("; ".join(said), hint="set btf_path to BTF of this kernel")

    def _custom(self) -> Found | None:
        if self._custom_file is None:
            return None
        check(self._custom_file)
        return Found(ResultCode.CUSTOM_BTF, self._custom_file)

    def _kernel(self) -> Found:
        own = self._under(SYSFS)
        if own.exists():
            return Found(ResultCode.DEFAULT_BTF, None if own == SYSFS else own)
        for template in _FILES:
            path = self._under(Path(template.format(r=self._release)))
            if path.exists():
                check(path)
                return Found(ResultCode.DEFAULT_BTF, path)
        raise BtfError("not supported: neither the kernel nor a package of it shows any")

    def _under(self, path: Path) -> Path:
        return self._root / path.relative_to("/")


def check(path: Path) -> None:
    """FormatError unless the file holds BTF: raw, or as a section of an ELF file, which libbpf reads for us."""
    with path.open("rb") as file:
        data = file.read()
    if data.startswith(b"\x7fELF"):
        with abi.hearing():
            btf = abi.library().btf__parse_elf(os.fsencode(path), None)
        if not btf:
            raise FormatError(f"{path}: an ELF file without readable BTF")
        abi.library().btf__free(btf)
        return
    try:
        Btf.parse(data)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
