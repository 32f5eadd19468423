"""Keeps a process with a simulated kernel off this machine's own: a test that reaches for it is refused, and so fails.

Laws: it holds for all that the process starts and cannot be undone; it refuses (EPERM) the system calls that load or
watch by way of the kernel or change it, whoever makes them, and lets nothing be written below ``/sys`` and
``/proc/sys`` where this process could (as root). It is no sandbox: files of the user's are the test's own affair.
Sources: seccomp(2), Documentation/userspace-api/seccomp_filter.rst; numbers: asm/unistd_64.h, asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes as c
import errno
import os
import platform
import struct
from pathlib import Path

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CALLS = {
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "move_mount": (429, 429),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "swapon": (167, 224),
    "swapoff": (168, 225),
}
"""What is refused: its number on x86-64 and on arm64."""
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18


class _Program(c.Structure):
    """``struct sock_fprog`` (linux/filter.h)."""

    _fields_ = (("length", c.c_ushort), ("instructions", c.c_char_p))


def close(machine: str = platform.machine()) -> bool:
    """Put it up around this process; False where nobody knows the numbers of that machine's calls, and nothing is."""
    if machine not in _AUDIT_ARCH:
        return False
    _read_only("/sys", "/proc/sys")
    code = program(machine)
    libc = c.CDLL(None, use_errno=True)
    wanted = _Program(len(code) // 8, code)
    for call in (
        (_PR_SET_NO_NEW_PRIVS, c.c_ulong(1), c.c_ulong(0), c.c_ulong(0), c.c_ulong(0)),
        (_PR_SET_SECCOMP, c.c_ulong(_SECCOMP_MODE_FILTER), c.byref(wanted), c.c_ulong(0), c.c_ulong(0)),
    ):
        if libc.prctl(*call) != 0:
            raise OSError(c.get_errno(), "this kernel takes no seccomp filter")
    return True


def program(machine: str) -> bytes:
    """(pure) The filter, in classic BPF: of a system call of that machine, EPERM for those of ``CALLS``."""
    numbers = [pair[machine == "aarch64"] for pair in CALLS.values()]
    code = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 0, len(numbers) + 1, _AUDIT_ARCH[machine]),
        (_LOAD, 0, 0, 0),
        *((_JUMP_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _read_only(*places: str) -> None:
    """Nothing mounted there can be written to by this process; without the right to say so it could not anyway."""
    libc = c.CDLL(None, use_errno=True)
    if os.geteuid() != 0 or libc.unshare(_CLONE_NEWNS) != 0:
        return
    libc.mount(None, b"/", None, c.c_ulong(_MS_REC | _MS_PRIVATE), None)
    for place in places:  # so that each is a mount, and can be one that is read only
        libc.mount(place.encode(), place.encode(), None, c.c_ulong(_MS_BIND | _MS_REC), None)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4]
        if any(point == place or point.startswith(f"{place}/") for place in places):
            flags = c.c_ulong(_MS_REMOUNT | _MS_BIND | _MS_RDONLY)
            libc.mount(None, point.encode(), None, flags, None)
