"""General feature probes for ``requires(...)``: True, False, or None when this process cannot tell.

Laws: a probe looks at the kernel under it, never at a version number; it leaves nothing loaded or mounted. What a
project adds comes by the hook ``pytest_kmt_probe``.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
_BPF_MAP_CREATE = 0
_BPF_MAP_TYPE_RINGBUF = 27


@cache
def symbols() -> frozenset[str]:
    """The names in /proc/kallsyms (addresses are zero for ordinary users; names are there all the same)."""
    with Path("/proc/kallsyms").open() as file:
        return frozenset(line.split(None, 3)[2] for line in file)


def _has_symbols(*names: str) -> bool | None:
    known = symbols()
    return all(name in known for name in names) if known else None


def btf() -> bool:
    """The running kernel carries its own BTF."""
    return Path("/sys/kernel/btf/vmlinux").is_file()


def fentry() -> bool | None:
    """BPF trampolines: fentry, fexit and fmod_ret programs can attach."""
    trampoline = _has_symbols("arch_prepare_bpf_trampoline")
    return trampoline and btf()


def kprobe_multi() -> bool | None:
    """Multi-kprobe links; a kernel without fprobe has the entry point and answers EOPNOTSUPP."""
    return _has_symbols("bpf_kprobe_multi_link_attach", "register_fprobe_ips")


def uprobe_multi() -> bool | None:
    """Multi-uprobe links."""
    return _has_symbols("bpf_uprobe_multi_link_attach")


def ringbuf() -> bool | None:
    """BPF ring buffers, by making one of a page and closing it."""
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        return None
    attributes = (ctypes.c_uint32 * 18)(_BPF_MAP_TYPE_RINGBUF, 0, 0, os.sysconf("SC_PAGE_SIZE"))
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, _BPF_MAP_CREATE, ctypes.byref(attributes), ctypes.sizeof(attributes))
    if fd >= 0:
        os.close(fd)
        return True
    return False if ctypes.get_errno() == errno.EINVAL else None


def bpf_lsm() -> bool | None:
    """BPF is among the active LSMs, so that lsm/ programs are called."""
    active = Path("/sys/kernel/security/lsm")
    return "bpf" in active.read_text().split(",") if active.is_file() else None


def headers() -> bool:
    """The kernel's headers are there to compile against."""
    return Path(f"/lib/modules/{platform.release()}/build/include").is_dir()


def clang() -> bool:
    """There is a clang to compile with."""
    return shutil.which("clang") is not None


def bcc() -> bool:
    """BCC's Python bindings are installed."""
    return importlib.util.find_spec("bcc") is not None


def root() -> bool:
    """This process may load programs."""
    return os.geteuid() == 0


PROBES: dict[str, Callable[[], bool | None]] = {
    probe.__name__: probe
    for probe in (btf, fentry, kprobe_multi, uprobe_multi, ringbuf, bpf_lsm, headers, clang, bcc, root)
}


def probe(feature: str) -> bool | None:
    """Ask the probe of that name; None where there is none, or where it may not look."""
    found = PROBES.get(feature)
    try:
        return found() if found else None
    except PermissionError:
        return None
