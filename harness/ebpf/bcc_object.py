"""BCC as the second engine of the runtime stage: C in BCC's dialect, compiled by the kernel's headers as it is loaded.

It answers as ``libbpf.BpfObject`` does. A program is a function named ``<kind>_on_<where>``: ``kprobe_on_tcp_close``,
``kretprobe_on_tcp_close``, ``tracepoint_on_syscalls__sys_enter_openat``; constants are macros. Laws: a load that
fails leaves nothing behind; whatever BCC prints stays in the error; ``close`` may come at any time, and twice.
BCC has no map edits, no signatures and no BTF: options that ask for them are refused.
"""

from __future__ import annotations

import ctypes as c
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn

from harness.ebpf import verifier
from harness.ebpf.buffers import PerfBuffer, RingBuffer
from harness.ebpf.maps import RINGBUF, BpfMap
from harness.ebpf.opening import unknown
from harness.ebpf.runtime import RuntimeCompilationError, RuntimeResult
from harness.errors import BpfError, ClosedError, LibraryError, SettingsError, VerifierError
from harness.kernel_api import LoadOptions

_NAME = re.compile(r"^int ((kprobe|kretprobe|tracepoint)_on_(\w+))\s*\(", re.MULTILINE | re.ASCII)
_EINVAL = 22
_TABLE = {
    "bpf_table_name": c.c_char_p,
    "bpf_table_fd_id": c.c_int,
    "bpf_table_type_id": c.c_int,
    "bpf_table_key_size_id": c.c_size_t,
    "bpf_table_leaf_size_id": c.c_size_t,
}
"""What libbcc says of a table: its name, and what makes a ``BpfMap``; BCC itself declares only some of them."""


class BccObject:
    """A loaded object. Use it as a context manager, or ``close`` it."""

    def __init__(self, name: str, source: bytes, options: LoadOptions) -> None:
        if options.map_edits or options.signatures or options.kernel_btf:
            raise SettingsError(f"object {name}: BCC has no map edits, signatures or BTF of its own")
        self.name = name
        self._lock = threading.RLock()
        self._attached: set[str] = set()
        self._buffers: list[PerfBuffer | RingBuffer] = []
        self.maps: Mapping[str, BpfMap] = {}
        found = {m[1]: (m[2], m[3]) for m in _NAME.finditer(source.decode(errors="replace"))}
        for program in options.programs or ():
            if program not in found:
                raise unknown(name, "program", program, found)
        self._where = {p: w for p, w in found.items() if options.programs is None or p in options.programs}
        self._bcc, self._bpf = _compile(name, source, options.constants)
        try:
            self._functions = {program: self._load(program) for program in self._where}
            self.maps = self._tables()
        except BaseException:
            self.close()
            raise

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of those loaded."""
        return tuple(self._where)

    def attach(self, program: str) -> None:
        """Attach where its name says. Attached twice it still runs once."""
        with self._lock:
            self._known(program)
            if program in self._attached:
                return
            kind, where = self._where[program]
            try:
                with _heard() as heard:
                    self._call("attach", kind, where, program)
            except Exception as error:
                raise BpfError(f"attaching {program} to {kind}/{where}", _EINVAL, detail=_line(heard, error)) from None
            self._attached.add(program)

    def detach(self, program: str) -> None:
        """Take it off again; does nothing where it is not attached."""
        with self._lock:
            if program in self._attached:
                self._attached.remove(program)
                self._call("detach", *self._where[program], "")

    def detach_all(self, *, wait: bool = True) -> None:
        """Take off again all that is attached, at once in any case."""
        with self._lock:
            for program in list(self._attached):
                self.detach(program)

    def attach_uprobe(self, program: str, file: str, offset: int) -> NoReturn:
        """Refused: its programs are attached where their names say."""
        raise SettingsError(f"program {program} of BCC is attached where its name says, not to {file}")

    def attach_uprobes(self, program: str, file: str, offsets: Sequence[int]) -> NoReturn:
        """Refused like ``attach_uprobe``."""
        self.attach_uprobe(program, file, 0)

    def attach_kprobes(self, program: str, functions: Sequence[str]) -> NoReturn:
        """Refused: BCC has no multi-kprobes."""
        raise SettingsError(f"program {program} of BCC is attached where its name says, not to many functions")

    def attach_event(self, program: str, descriptor: int) -> NoReturn:
        """Refused, and the descriptor closed, for it is ours."""
        os.close(descriptor)
        raise SettingsError(f"program {program} of BCC is attached where its name says, not to an event")

    def missed(self) -> int:
        """BCC does not tell."""
        return 0

    def buffer(self, name: str, pages: int = 64) -> PerfBuffer | RingBuffer:
        """Read the events of that map; ``pages`` (a power of two) a CPU for a perf event array."""
        with self._lock:
            if self._bpf is None:
                raise ClosedError(f"object {self.name} is closed")
            if name not in self.maps:
                raise unknown(self.name, "map", name, self.maps)
            made = self.maps[name]
            buffer = RingBuffer(name, made.fd) if made.type == RINGBUF else PerfBuffer(name, made.fd, pages)
            self._buffers.append(buffer)
            return buffer

    def close(self) -> None:
        """Detach all, free buffers, maps and programs; a second time does nothing."""
        with self._lock:
            for program in list(self._attached):
                self.detach(program)
            for buffer in self._buffers:
                buffer.close()
            for made in self.maps.values():
                made.close()
            if self._bpf is not None:
                self._bpf.cleanup()
                self._bpf = None

    def __enter__(self) -> BccObject:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _known(self, program: str) -> None:
        if self._bpf is None:
            raise ClosedError(f"object {self.name} is closed")
        if program not in self._where:
            raise unknown(self.name, "loaded program", program, self._where)

    def _load(self, program: str) -> Any:
        kind = self._bcc.BPF.TRACEPOINT if self._where[program][0] == "tracepoint" else self._bcc.BPF.KPROBE
        try:
            with _heard() as heard:
                return self._bpf.load_func(program, kind)
        except Exception as error:
            log = "\n".join(heard)
            raise VerifierError(program, _EINVAL, verifier.reason(log) if log else str(error), log) from None

    def _call(self, verb: str, kind: str, where: str, program: str) -> None:
        words = {"fn_name": program} if program else {}
        if kind == "tracepoint":
            getattr(self._bpf, f"{verb}_tracepoint")(tp=where.replace("__", ":", 1), **words)
        else:
            getattr(self._bpf, f"{verb}_{kind}")(event=where, **words)

    def _tables(self) -> dict[str, BpfMap]:
        lib, module = self._bcc.libbcc.lib, self._bpf.module
        for function, result in _TABLE.items():
            getattr(lib, function).argtypes, getattr(lib, function).restype = (c.c_void_p, c.c_size_t), result
        found = {}
        for number in range(lib.bpf_num_tables(module)):
            name, *numbers = (getattr(lib, function)(module, number) for function in _TABLE)
            decoded = name.decode(errors="replace")
            found[decoded] = BpfMap.of_descriptor(decoded, *map(int, numbers))
        return found


def _compile(name: str, source: bytes, constants: Mapping[str, int]) -> tuple[Any, Any]:
    try:
        import bcc
    except ImportError as error:
        raise LibraryError(f"BCC cannot be used: {error}", hint="install Debian's python3-bpfcc") from None
    flags = [f"-D{constant}={value}" for constant, value in constants.items()]
    try:
        with _heard() as heard:
            return bcc, bcc.BPF(text=source.decode(errors="replace"), cflags=[*flags, "-Wno-macro-redefined"])
    except Exception as error:
        raise RuntimeCompilationError(
            RuntimeResult.COMPILATION_ERROR, f"{name} does not compile: {_line(heard, error)}"
        ) from None


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What is printed on standard error meanwhile: BCC's compiler and loader say it nowhere else."""
    heard: list[str] = []
    before = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield heard
        finally:
            os.dup2(before, 2)
            os.close(before)
            said.seek(0)
            heard.extend(said.read().decode(errors="replace").splitlines())


def _line(heard: list[str], error: Exception) -> str:
    return next((line for line in heard if "error:" in line), heard[0] if heard else str(error))
