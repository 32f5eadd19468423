"""What snapshots and checkpoints are to QEMU guests: their keys, freezing a warm guest, bringing one back.

Laws: a guest that comes back has spoken before it is given to anybody; it is told the time when its processors
already run; it gets 512 bits of entropy, a host name and a machine id that no other has.
"""

from __future__ import annotations

import base64
import os
import platform
import re
import secrets
import select
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kmt.backends import qemu_program
from kmt.backends.base import Checkpoint
from kmt.backends.qemu_args import Files
from kmt.backends.qemu_vm import QemuVm
from kmt.backends.qmp import MonitorError
from kmt.boot import accel
from kmt.deadline import Deadline
from kmt.errors import SnapshotError, VmError
from kmt.guest.wire import Kind, pack
from kmt.kernel import Kernel
from kmt.run.link import Link
from kmt.snapshot.freezing import freeze, thaw
from kmt.snapshot.key import Ingredients, key

_TICK = 0.1


def key_of(kernel: Kernel, files: Files, accelerator: str, argv: list[str], modules: Sequence[str]) -> str:
    """The key of a machine's snapshot; ``argv`` is its command line with fixed descriptors."""
    named = {
        # Named by what is in them; the initramfs is made anew when its copy has gone.
        files.initramfs: files.initramfs.name,
        files.vmlinuz: f"{files.vmlinuz.name} {_stat(files.vmlinuz)}",
        **{path: f"{path.name} {_stat(path)}" for path in (files.root, files.kernel, files.compiler) if path},
    }
    processor = accel.processor()
    if accelerator == "kvm":
        processor += f"\n{platform.release()} {platform.version()}"
    made_of = Ingredients(
        qemu=qemu_program.identity(argv[0]),
        accelerator=accelerator,
        processor=processor,
        kernel=f"{kernel.digest} {kernel.release}",
        files={str(path): identity for path, identity in named.items()},
        argv=argv,
        modules=modules,
    )
    return key(made_of)


def _stat(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def warm_and_freeze(vm: QemuVm, deadline: Deadline, factor: float, modules: Sequence[str]) -> bytes:
    """Have a guest that boots warm itself up, with ``modules``, and freeze it; its state. The caller ends it."""
    link = Link(vm, deadline, factor=factor, cancel=threading.Event())
    link.hello()
    link.send(Kind.WARM, {"modules": list(modules)})
    link.receive(Kind.DONE)
    return freeze(vm.monitor, deadline)


def checkpoint(vm: QemuVm, deadline: Deadline) -> Checkpoint:
    """Freeze a guest whose memory is a file of its own; it ends. Raises SnapshotError."""
    if vm.own_ram is None:
        raise SnapshotError("this guest cannot be frozen: it was not launched checkpointable, or it had to boot")
    try:
        state = freeze(vm.monitor, deadline)
    except MonitorError as error:
        raise SnapshotError(f"the guest could not be frozen: {vm.death() or error}") from None
    vm.stop()
    kept = os.fdopen(os.dup(vm.own_ram.fileno()), "r+b")  # the launch closes its own
    return Checkpoint(vm.kernel, vm.machine, kept.fileno(), state, kept)


def resume(vm: QemuVm, state: bytes, name: str, deadline: Deadline) -> None:
    """Bring a machine that waits for ``state`` to life, and its agent to its first word. Raises SnapshotError."""
    vm.restored = True
    try:
        thaw(vm.monitor, state, deadline)
        vm.channel.sendall(pack(Kind.RESUME, fresh(name)))
        _first_word(vm, deadline)
    except (MonitorError, OSError) as error:
        raise SnapshotError(f"QEMU could not go on from it: {vm.said() or vm.death() or error}") from None
    except VmError as error:
        raise SnapshotError(f"the guest did not go on from it: {error}") from None


def fresh(name: str) -> dict[str, Any]:
    """The body of a RESUME: what makes this guest another than all those before it."""
    plain = re.sub(r"[^A-Za-z0-9.-]", "-", name)[:40]
    return {
        "now": time.time(),
        "entropy": base64.b64encode(os.urandom(64)).decode(),
        "hostname": f"kmt-{plain}-{secrets.token_hex(4)}",
        "machine_id": secrets.token_hex(16),
    }


def _first_word(vm: QemuVm, deadline: Deadline) -> None:
    channel: list[socket.socket] = [vm.channel]
    while not select.select(channel, [], [], _TICK)[0]:
        death = vm.death()
        if death is not None:
            raise death
        if deadline.passed():
            raise SnapshotError(f"its agent said nothing in {deadline.seconds:.0f} s")
