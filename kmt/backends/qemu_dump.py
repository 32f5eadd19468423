"""Crash forensics: a dead or hung guest's memory and registers in a file that drgn and crash open.

The file is an ELF core (``dump-guest-memory``) with the kernel's own VMCOREINFO note, which a driver in the guest
gives to QEMU (fw_cfg; kernel 4.17 and newer), and with holes where memory is empty. A kernel that is to be dumped
must stay when it panics: see ``qemu_args.STAYS_ON_PANIC``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kmt import proc
from kmt.backends.qemu_vm import QemuVm
from kmt.boot.consolelog import free_path
from kmt.deadline import Deadline
from kmt.errors import KmtError, VmPanickedError, VmTimedOutError

SECONDS_A_GIB = 60.0


@contextmanager
def kept_for_forensics(vm: QemuVm, directory: Path) -> Iterator[None]:
    """When what happens in the ``with`` is a panic or a hang, write a core first; the error's hint names it."""
    try:
        yield
    except (VmPanickedError, VmTimedOutError) as error:
        path = free_path(directory, "vmcore").with_suffix("")
        try:
            dump(vm, path)
            error.hint = f"{error.hint}; " * bool(error.hint) + f"memory and registers: {path} (drgn -c, crash)"
        except (KmtError, OSError) as failure:
            path.unlink(missing_ok=True)
            error.hint = f"{error.hint}; " * bool(error.hint) + f"no dump could be written: {failure}"
        raise


def dump(vm: QemuVm, path: Path) -> None:
    """Stop the guest and write its core to ``path``, private. Raises MonitorError, OSError."""
    size = vm.machine.memory_mib << 20
    if shutil.disk_usage(path.parent).free < size:
        raise OSError(f"{path.parent} has no room for {vm.machine.memory_mib} MiB")
    vm.monitor.deadline = Deadline(SECONDS_A_GIB * max(1.0, vm.machine.memory_mib / 1024))
    vm.monitor("stop")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        vm.monitor.pass_fd("vmcore", descriptor)
        vm.monitor("dump-guest-memory", paging=False, protocol="fd:vmcore")
    finally:
        os.close(descriptor)
    proc.run(["fallocate", "--dig-holes", path], check=False)
