"""Keeps a process with a simulated kernel off this machine's own: a test that reaches for it is refused, and so fails.

Laws: it holds for all threads of the process and for all that it starts, and cannot be undone, nor does a second one
hurt; it refuses (EPERM) the system calls that load or watch by way of the kernel or change it, whoever makes them, the
socket that hears of every process, and every call of another architecture (a 32-bit program does not run); root can
write to nothing below ``/sys`` and ``/proc/sys``, nor can another user to the mount points there: one that stays
writable is a ConfigError. It is no sandbox: files of the user's are the test's own affair.
Sources: seccomp(2), Documentation/userspace-api/seccomp_filter.rst; numbers: asm/unistd_64.h, asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes as c
import errno
import os
import platform
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from kmt.errors import ConfigError

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
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "setns": (308, 268),
    "io_uring_setup": (425, 425),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "swapon": (167, 224),
    "swapoff": (168, 225),
}
"""What is refused: its number on x86-64 and on arm64. What a ring of io_uring is asked for, no filter sees."""
SOCKET = (41, 198)
"""``socket``, which is refused for one purpose only."""
_AF_NETLINK, _NETLINK_CONNECTOR = 16, 11
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_PR_SET_NO_NEW_PRIVS, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 38, 1, 1
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_X32 = 0x40000000
"""From here on an x86-64 kernel takes numbers for those of its x32 ABI (asm/unistd.h)."""
_CLONE_NEWNS = 0x00020000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
_KEPT = {"nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}
"""Options that a mount which belongs to another user namespace must keep (EPERM), by their ``MS_*``."""


class _Program(c.Structure):
    """``struct sock_fprog`` (linux/filter.h)."""

    _fields_ = (("length", c.c_ushort), ("instructions", c.c_char_p))


def close(machine: str = platform.machine()) -> bool:
    """Put it up around this process; False where nobody knows the numbers of that machine's calls, and nothing is.

    Raises ConfigError where something of the kernel's would stay writable, or takes no filter."""
    if machine not in _AUDIT_ARCH:
        return False
    read_only("/sys", "/proc/sys")
    code = program(machine)
    libc = c.CDLL(None, use_errno=True)
    wanted = _Program(len(code) // 8, code)
    nothing = c.c_ulong(0)
    done = libc.prctl(_PR_SET_NO_NEW_PRIVS, c.c_ulong(1), nothing, nothing, nothing)
    if done == 0:
        flag = c.c_ulong(_SECCOMP_FILTER_FLAG_TSYNC)
        done = libc.syscall(c.c_long(_SECCOMP[machine]), c.c_ulong(_SECCOMP_SET_MODE_FILTER), flag, c.byref(wanted))
    if done != 0:  # a number above 0: of the thread that stands in the way
        why = f"thread {done} has another" if done > 0 else os.strerror(c.get_errno())
        raise ConfigError(f"tests cannot be kept away from this machine's kernel: no filter: {why}", hint=_INSTEAD)
    return True


_INSTEAD = "--kernel-backend qemu needs no such thing"


def program(machine: str) -> bytes:
    """(pure) The filter, in classic BPF: EPERM for a system call of ``CALLS``, for a socket of the process connector,
    and for every call that is not of that machine's own ABI."""
    place = machine == "aarch64"
    checks = [(_JUMP_EQUAL, pair[place]) for pair in CALLS.values()]
    if machine == "x86_64":
        checks.insert(0, (_JUMP_AT_LEAST, _X32))
    many = len(checks)
    code = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 0, many + 7, _AUDIT_ARCH[machine]),
        (_LOAD, 0, 0, 0),
        *((kind, many - at + 5, 0, number) for at, (kind, number) in enumerate(checks)),
        (_JUMP_EQUAL, 0, 4, SOCKET[place]),
        (_LOAD, 0, 0, 16),  # the first argument
        (_JUMP_EQUAL, 0, 2, _AF_NETLINK),
        (_LOAD, 0, 0, 32),  # the third
        (_JUMP_EQUAL, 1, 0, _NETLINK_CONNECTOR),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def read_only(*places: str) -> None:
    """See to it that this process can write to nothing that is mounted there.

    It takes the right to mount, which root has. Of another user just the mount points are looked at: a file below that
    is theirs (a cgroup that was delegated) stays so. What counts is what is writable in the end: ConfigError."""
    refused = _remount(places) if os.geteuid() == 0 else ""
    for point, _ in _mounted(places):
        if _writable(point):
            why = refused or "this user may write there, and may not mount"
            raise ConfigError(
                f"tests cannot be kept away from this machine's kernel: {point!r} stays writable: {why}", hint=_INSTEAD
            )


def _writable(point: str) -> bool:
    """Root can write to files below a directory that nobody may write to: ``/proc/sys`` is one, whose mode is 0555."""
    try:
        fd = os.open(point, os.O_PATH)  # where an automount waits, nothing is mounted by that: open(2)
    except OSError:
        return False
    try:
        if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
            return False
    finally:
        os.close(fd)
    return os.geteuid() == 0 or os.access(point, os.W_OK)


def _remount(places: tuple[str, ...]) -> str:
    """Whatever is mounted there, read only for this process. What the kernel first objected to; empty: nothing."""
    libc = c.CDLL(None, use_errno=True)
    objections: list[str] = []

    def done(status: int, what: str) -> None:
        if status != 0:
            objections.append(f"{what}: {os.strerror(c.get_errno())}")

    done(libc.unshare(_CLONE_NEWNS), "unshare")
    if not objections:
        done(libc.mount(None, b"/", None, c.c_ulong(_MS_REC | _MS_PRIVATE), None), "mounts of its own")
    if objections:  # what is mounted now would be for everybody
        return objections[0]
    for place in places:  # so that each is a mount, and can be one that is read only
        name = os.fsencode(place)
        done(libc.mount(name, name, None, c.c_ulong(_MS_BIND | _MS_REC), None), place)
    for point, kept in _mounted(places):
        flags = c.c_ulong(_MS_REMOUNT | _MS_BIND | _MS_RDONLY | kept)
        done(libc.mount(None, os.fsencode(point), None, flags, None), point)
    return objections[0] if objections else ""


def _mounted(places: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """The places, and what is mounted below them."""
    there = dict(mounts(Path("/proc/self/mountinfo").read_bytes()))
    for point in {**dict.fromkeys(places, 0), **there}:
        if any(point == place or point.startswith(f"{place}/") for place in places):
            yield point, there.get(point, 0)


def mounts(mountinfo: bytes) -> Iterator[tuple[str, int]]:
    """(pure) Where something is mounted, and the options (``MS_*``) that it must keep.

    Format: proc_pid_mountinfo(5); blanks, newlines and backslashes of a name are octal there (``\\040``)."""
    for line in mountinfo.split(b"\n"):
        fields = line.split(b" ")
        if len(fields) > 5:
            point = re.sub(rb"\\([0-7]{3})", lambda digits: bytes([int(digits[1], 8)]), fields[4])
            yield os.fsdecode(point), sum(_KEPT.get(word, 0) for word in fields[5].decode().split(","))
