"""Links that the kernel closes by itself, when nobody here waits for it; and the wait for programs that run.

Some kernels (6.12) close a link to a kernel function only when no task can be in the function's trampoline any more: a
tenth of a second, one function after another, in whoever gives the last descriptor back, the end of a process included
(``synchronize_rcu_tasks`` in ``ftrace_shutdown``). Where the last that holds a link is a name in a BPF file system, a
worker of the kernel closes it. So the links get names in one that has no mount point, and it goes: nothing is to be
seen in any file system, nothing needs this process, and nothing can stay behind, for nobody else can get at them.
"""

from __future__ import annotations

import ctypes as c
import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from harness.ebpf import abi
from harness.ebpf.maps import ARRAY, ARRAY_OF_MAPS
from harness.errors import BpfError

_CREATE = 6
"""FSCONFIG_CMD_CREATE (linux/mount.h)."""
_CLOEXEC = 1
"""FSOPEN_CLOEXEC and FSMOUNT_CLOEXEC."""
_FOUR = 4
"""Bytes of a key, of a value and of a descriptor."""
_log = logging.getLogger(__name__)
_libc = c.CDLL(None, use_errno=True)


@contextmanager
def by_the_kernel(links: Iterable[int]) -> Iterator[None]:
    """In it these descriptors of links are to be closed, which takes no time; at its end the kernel closes the links.

    What ran before has come to its end when it begins. Where it may not be (no right to mount or to make a map, no
    procfs), closing a descriptor takes as long as ever.
    """
    with ExitStack() as stack:
        try:
            wait_for_programs()
            room = _file_system()
            stack.callback(os.close, room)
            for number, link in enumerate(links):
                if status := abi.library().bpf_obj_pin(link, f"/proc/self/fd/{room}/{number}".encode()):
                    raise OSError(-status, os.strerror(-status))
        except (OSError, BpfError) as error:
            _log.debug("programs are taken off one by one: %s", error)
        yield


def wait_for_programs() -> None:
    """Until every program that runs now has come to its end. BpfError where the kernel makes no map.

    A change of a map of maps returns only when no program can have what was there before (4.20).
    """
    with ExitStack() as stack:
        inner = _array(stack, ARRAY, None)
        outer = _array(stack, ARRAY_OF_MAPS, inner)
        value = inner.to_bytes(_FOUR, "little")
        if status := abi.library().bpf_map_update_elem(outer, bytes(_FOUR), value, 0):
            raise BpfError("waiting for programs to end", -status)


def _array(stack: ExitStack, kind: int, inner: int | None) -> int:
    options = abi.MapOptions(sz=c.sizeof(abi.MapOptions), inner_map_fd=inner or 0)
    made = int(abi.library().bpf_map_create(kind, b"wait", _FOUR, _FOUR, 1, c.byref(options)))
    if made < 0:
        raise BpfError("making a map to wait for programs with", -made)
    stack.callback(os.close, made)
    return made


def _file_system() -> int:
    """The descriptor of a BPF file system of our own, which has no name and goes with it (5.2)."""
    with ExitStack() as stack:
        made = _call("fsopen", b"bpf", _CLOEXEC)
        stack.callback(os.close, made)
        _call("fsconfig", made, _CREATE, None, None, 0)
        return _call("fsmount", made, _CLOEXEC, 0)


def _call(name: str, *arguments: bytes | int | None) -> int:
    """A function of the C library (glibc has these from 2.36 on). OSError if it fails or is not there."""
    try:
        function: Callable[..., int] = getattr(_libc, name)
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), name) from None
    if (status := function(*arguments)) < 0:
        raise OSError(c.get_errno(), os.strerror(c.get_errno()), name)
    return status
