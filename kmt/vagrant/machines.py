"""The file that ``vms/Vagrantfile`` reads: which machines there are, what each boots, and its SSH port.

Laws: a port is free on loopback when it is chosen, and kept as long as the machine is in the file, or ``vagrant ssh``
would disagree with ``vagrant up``; one at which somebody else listens by now is chosen anew; no kernel is known by
version in Ruby. Shape: ``{"machines": {NAME: {...}}}``, the fields of a machine as ``entry`` writes them.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from kmt.backends import qemu_args
from kmt.backends.base import Machine
from kmt.backends.vagrant_vm import qemu_of
from kmt.boot import disks
from kmt.errors import VmNeverStartedError
from kmt.kernel import Kernel
from kmt.paths import cache, published
from kmt.vagrant import initramfs
from kmt.vagrant.box import Box

FILE = "machines.json"
USER = "root"


@dataclass(frozen=True)
class Entry:
    """A machine of the file.

    ``port``: of loopback, forwarded to its sshd. ``serial``: where its console is written. ``key``: digest of all that
    it boots from and of its hardware; a machine that was made under another one is stale.
    """

    name: str
    port: int
    serial: Path
    key: str


def people() -> Path:
    """The room of the machines that people start themselves, in ``vms/``."""
    return cache("vagrant")


def entry(room: Path, name: str, *, kernel: Kernel | None, box: Box | str, machine: Machine, accelerator: str) -> Entry:
    """Write one machine into the file of ``room``, beside those that are there.

    ``kernel`` None: the box (a name, then) brings its own. Raises VmNeverStartedError for several processors
    without hardware virtualisation: libvirt cannot have QEMU emulate them on one thread (``qemu_args.py`` says why).
    """
    if accelerator != "kvm" and machine.cpus > 1:
        raise VmNeverStartedError(
            f"{name}: {machine.cpus} processors take hardware virtualisation under Vagrant",
            hint="leave such tests to --kernel-backend qemu",
        )
    fields = _hardware(machine, accelerator) | _box(box)
    if kernel is not None:
        fields |= _boot(kernel, name, machine, accelerator)
    key = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]
    serial = room / "serial" / f"{name}.log"
    serial.parent.mkdir(parents=True, exist_ok=True)
    with _file(room) as known:
        port = known.get(name, {}).get("port")
        if port is None or not (_is_free(port) or _is_ours(port)):
            port = free_port({each["port"] for each in known.values()})
        known[name] = fields | {"port": port, "serial": str(serial)}
    return Entry(name, port, serial, key)


def keep_only(room: Path, names: set[str]) -> None:
    """Drop all other machines from the file."""
    with _file(room) as known:
        for name in set(known) - names:
            del known[name]


def free_port(taken: set[int]) -> int:
    """A port of loopback that nobody listens on at this moment, and no other machine has."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as QEMU does: connections that ended do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _is_ours(port: int) -> bool:
    """A machine that runs has it: the words of ``vms/Vagrantfile`` are in its command line."""
    qemu = qemu_of(f"id=kmt,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22")
    if qemu is not None:
        qemu.close()
    return qemu is not None


def _hardware(machine: Machine, accelerator: str) -> dict[str, Any]:
    return {
        "accelerator": accelerator,
        "cpu": qemu_args.cpu_model(accelerator),
        "cpus": machine.cpus,
        "memory": machine.memory_mib,
    }


def _box(box: Box | str) -> dict[str, Any]:
    if isinstance(box, str):
        return {"box": box}
    return {"box": box.name, "box_url": box.path.as_uri(), "user": USER, "ssh_key": str(initramfs.key())}


def _boot(kernel: Kernel, name: str, machine: Machine, accelerator: str) -> dict[str, Any]:
    files = {"kmt-kernel": disks.kernel_files(kernel).disk}
    if machine.compiler:
        from kmt.roots import compiler  # it needs what most machines do not

        files["kmt-compiler"] = compiler.disk()
    return {
        "kernel": str(kernel.vmlinuz),
        "initrd": str(initramfs.make(kernel)),
        "cmdline": " ".join(_words(kernel, name, accelerator)),
        "disks": {serial: str(path) for serial, path in files.items() if path is not None},
    }


def _words(kernel: Kernel, name: str, accelerator: str) -> list[str]:
    lsm = None
    if kernel.config is not None:
        lsm = qemu_args.configured_lsm(kernel.config.read_text(errors="replace"))
    return qemu_args.kernel_words(accelerator, name=name, lsm=lsm)


@contextmanager
def _file(room: Path) -> Iterator[dict[str, Any]]:
    """The machines of the file, to be changed; written at the end."""
    path = room / FILE
    with FileLock(path.with_suffix(".lock"), mode=0o600):
        known = read(path)
        yield known
        with published(path) as work:
            work.write_text(json.dumps({"machines": known}, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """The machines of a file; none where it is missing or damaged: it is written anew then."""
    try:
        document = json.loads(path.read_text())
        machines = dict(document["machines"])
        whole = all(isinstance(each, Mapping) and isinstance(each["port"], int) for each in machines.values())
        return machines if whole else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
