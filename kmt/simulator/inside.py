"""Runs in a guest, alone, with nothing but the standard library: what bpftool does not ask, as JSON on stdout.

The request is the last argument, JSON: ``functions`` to look for, and for program types whose helpers need a function
to be attached to, ``programs``: name to [type, attach type, BTF id]; ``helpers``: name to number. A helper may be
called if the verifier's objection to a call without arguments is not that there is none for such programs.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_BPF = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD = 5
_CALL, _EXIT = 0x85, 0x95
_ABSENT = ("unknown func", "invalid func", "program of this type cannot use helper")
_NO_HELPER = 1 << 30
_LOG = 1 << 16


def text(path: str) -> str:
    """A file's text; empty where there is none."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def load(kind: int, attach: int, btf_id: int, helper: int, licence: bytes = b"GPL") -> str:
    """What the verifier says of a program that calls the helper; empty when it says nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = struct.pack("<BBhi", _CALL, 0, 0, helper) + struct.pack("<BBhi", _EXIT, 0, 0, 0)
    log, program, under = (ctypes.create_string_buffer(what) for what in (_LOG, code, licence))
    attributes = bytearray(128)
    head = (kind, 2, ctypes.addressof(program), ctypes.addressof(under), 1, _LOG,
            ctypes.addressof(log))  # fmt: skip
    struct.pack_into("<IIQQIIQ", attributes, 0, *head)
    struct.pack_into("<I", attributes, 68, attach)  # expected_attach_type
    struct.pack_into("<I", attributes, 108, btf_id)  # attach_btf_id
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    fd = libc.syscall(_BPF[platform.machine()], _PROG_LOAD, buffer, len(attributes))
    if fd >= 0:
        os.close(fd)
        return ""
    return log.value.decode(errors="replace")


def callable_helpers(program: tuple[int, int, int], helpers: Mapping[str, int]) -> list[str] | None:
    """Those that such a program may call; None where the verifier does not get as far as looking at calls."""
    if not absent(load(*program, _NO_HELPER)):
        return None
    return sorted(name for name, number in helpers.items() if not absent(load(*program, number)))


def absent(said: str) -> bool:
    """Whether that is what is said of a call that such programs have not."""
    return any(words in said for words in _ABSENT)


def symbols(names: Iterable[str]) -> list[str]:
    """Those of the names that the symbol table has."""
    table = Path("/proc/kallsyms").read_bytes()
    return sorted(n for n in names if any(b" %b%b" % (n.encode(), end) in table for end in (b"\n", b"\t")))


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """All that was asked."""
    tracing = "/sys/kernel/tracing"
    btf = Path("/sys/kernel/btf/vmlinux")
    probes = set(text(f"{tracing}/available_filter_functions").split())
    return {
        "release": platform.release(),
        "version": platform.version(),
        "machine": platform.machine(),
        "symbols": symbols(request["functions"]),
        "traceable": sorted(probes & set(request["functions"])),
        "tracepoints": sorted(text(f"{tracing}/available_events").split()),
        "btf": hashlib.sha256(btf.read_bytes()).hexdigest() if btf.is_file() else "",
        "btf_modules": sorted(path.name for path in btf.parent.glob("*") if path != btf),
        "lsm": text("/sys/kernel/security/lsm"),
        "lockdown": text("/sys/kernel/security/lockdown"),
        "jit": text("/proc/sys/net/core/bpf_jit_enable"),
        "helpers": {
            n: callable_helpers(tuple(program), request["helpers"]) for n, program in request["programs"].items()
        },
    }


if __name__ == "__main__":
    json.dump(answer(json.loads(sys.argv[-1])), sys.stdout)
