"""Where BTF of the running kernel comes from: a configured file, what the kernel and its packages show, the embedded
collection.

Laws: sources are asked in the table's order, and none after one that has it; a source that fails never stops the
others; an answer is kept until ``flush``, an error never; the result code belongs to the call that returned it.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from harness.ebpf import abi
from harness.ebpf.btf_parser import Btf
from harness.ebpf.embedded import Embedded
from harness.errors import BtfError, FormatError, LibraryError

SYSFS = Path("/sys/kernel/btf/vmlinux")
FLUSH_AFTER = 60.0
"""Seconds."""
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


log = logging.getLogger(__name__)


class ResultCode(IntEnum):
    """How the load of an asset ended; below 3 it went well, and the code says whose BTF it was."""

    CUSTOM_BTF = 0
    EMBEDDED_BTF = 1
    DEFAULT_BTF = 2
    BTF_NOT_FOUND = 3
    ASSET_READ_ERROR = 4
    VERIFIER_ERROR = 5
    LOADER_ERROR = 6

    @property
    def words(self) -> str:
        """What telemetry calls it: ``custom``, ``btf_not_found``, ``verifier`` ..."""
        name = self.name.lower()
        return name if self is ResultCode.BTF_NOT_FOUND else name.removesuffix("_btf").removesuffix("_error")


@dataclass(frozen=True)
class Found:
    """BTF that can be used: ``path`` is what libbpf is told, None where it finds the kernel's own by itself.

    ``modules`` is the directory with BTF of the kernel's modules, None where there is none.
    """

    code: ResultCode
    path: Path | None
    modules: Path | None = None


class BtfLoader:
    """The sources in order, with what they answered. ``root`` stands for ``/`` (tests hide BTF that way).

    ``shown`` says whether the kernel shows its own (by default, whether the file is there); ``embedded`` is the
    directory of the embedded collection. The answer is forgotten ``flush_after`` seconds after the last use; ``timer``
    makes what does it (a ``threading.Timer``).
    """

    def __init__(
        self,
        release: str,
        custom: Path | None = None,
        embedded: Path | None = None,
        *,
        root: Path = Path("/"),
        shown: Callable[[], bool | None] | None = None,
        flush_after: float = FLUSH_AFTER,
        timer: Callable[[float, Callable[[], None]], threading.Timer] = threading.Timer,
    ) -> None:
        self._release = release
        self._custom_file = custom
        self._collection = Embedded(embedded, release, root=root) if embedded else None
        self._root = root
        self._shown = shown or self._under(SYSFS).exists
        self._found: Found | None = None
        self._lock = threading.Lock()
        self._flush_after, self._make_timer = flush_after, timer
        self._timer: threading.Timer | None = None
        self._sources: tuple[tuple[str, Callable[[], Found | None]], ...] = (
            ("configured BTF file", self._custom),
            ("kernel", self._kernel),
            ("embedded collection", self._embedded),
        )

    def get(self) -> Found:
        """The first source that has it. BtfError names what each one said."""
        with self._lock:
            if self._found is None:
                self._found = self._search()
            self._arm()
            return self._found

    def module(self, name: str) -> Path | None:
        """Raw BTF of that module of the kernel, from where the kernel's came from; None where it has none."""
        found = self.get()
        path = found.modules / name if found.modules is not None else None
        return path if path is not None and path.is_file() else None

    def flush(self) -> None:
        """Forget the answer: the next ``get`` asks again. Leaves no thread behind."""
        with self._lock:
            self._found = None
            timer, self._timer = self._timer, None
        if timer is not None and timer is not threading.current_thread():
            timer.cancel()
            timer.join()
        forget_kernels()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()  # its thread ends by itself
        self._timer = self._make_timer(self._flush_after, self.flush)
        self._timer.daemon = True
        self._timer.start()

    def _search(self) -> Found:
        said = []
        for description, source in self._sources:
            try:
                found = source()
            except (BtfError, FormatError, LibraryError, OSError) as error:
                said.append(f"BTF load from {description}: {error}")
                log.debug("%s", said[-1])
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
        if self._shown():
            return Found(ResultCode.DEFAULT_BTF, None if own == SYSFS else own, own.parent)
        for template in _FILES:
            path = self._under(Path(template.format(r=self._release)))
            if path.exists():
                check(path)
                return Found(ResultCode.DEFAULT_BTF, path)
        raise BtfError("not supported: neither the kernel nor a package of it shows any")

    def _embedded(self) -> Found | None:
        if self._collection is None:
            return None
        extracted = self._collection.find()
        check(extracted.path)
        return Found(ResultCode.EMBEDDED_BTF, extracted.path, extracted.modules)

    def _under(self, path: Path) -> Path:
        return self._root / path.relative_to("/")


def check(path: Path) -> None:
    """FormatError unless the file holds BTF: raw, or as a section of an ELF file, which libbpf reads for us."""
    with path.open("rb") as file:
        is_elf = file.read(4) == b"\x7fELF"
    if is_elf:
        with abi.hearing():
            btf = abi.library().btf__parse_elf(os.fsencode(path), None)
        if not btf:
            raise FormatError(f"{path}: an ELF file without readable BTF")
        abi.library().btf__free(btf)
        return
    try:
        Btf.parse(path.read_bytes())
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None


def of_kernel(path: Path) -> Btf:
    """The kernel's BTF in that file, parsed; kept until ``forget_kernels``. Raises BtfError or FormatError."""
    try:
        status = path.stat()
        return _parsed(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise BtfError(
            f"the running kernel shows no BTF: {error}", hint="its configuration needs CONFIG_DEBUG_INFO_BTF"
        ) from None


def forget_kernels() -> None:
    """Free what ``of_kernel`` keeps."""
    _parsed.cache_clear()


@functools.lru_cache(maxsize=2)
def _parsed(path: Path, _identity: tuple[int, ...]) -> Btf:
    return Btf.parse(path.read_bytes())
