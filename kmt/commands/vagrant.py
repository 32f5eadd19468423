"""``kmt.box``: the box and the file that ``vms/Vagrantfile`` reads, for people who type ``vagrant`` themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kmt import archive, config
from kmt.backends import qemu_program
from kmt.backends.base import Machine
from kmt.boot import accel
from kmt.commands.matrix import rows
from kmt.commands.shown import bars
from kmt.commands.testing import child
from kmt.config import Config
from kmt.hints import task
from kmt.paths import PACKAGE
from kmt.roots.rootfs import Progress
from kmt.vagrant import box, boxes, daemon, machines


def make(root: Path, words: Sequence[str], command: Sequence[str] = ()) -> tuple[list[str], int]:
    """Make the box, and write the kernels' machines into the file: lines that say what to type, and 0.

    With a ``command``, run it instead where Vagrant talks to a libvirtd of its own that ends with it: its status.
    Raises KmtError.
    """
    settings = config.load(root)
    with bars() as progress:
        made = box.ensure_box(settings, progress)
        if not command:
            return _for_people(settings, words, made, progress), 0
    with daemon.libvirt(settings) as session:
        box.lend(made, session)
        with bars() as progress:
            _write(settings, session.room, words, made, progress)
        return [], child([*session.prefix, *command], PACKAGE / "vms", session.env)


def _for_people(settings: Config, words: Sequence[str], made: box.Box, progress: Progress) -> list[str]:
    entries = _write(settings, machines.people(), words, made, progress)
    lines = [f"box {made.name}: {made.path} ({made.path.stat().st_size / 1e6:.0f} MB)"]
    lines += [f"{each.name}: cd {PACKAGE / 'vms'} && vagrant up {each.name}" for each in entries]
    if os.geteuid() == 0:  # the system's QEMU is another user, who may not read root's cache
        lines.append(f"as root, type that in the shell of {task('box -- bash')}: it has a libvirtd for its time")
    return lines


def _write(
    settings: Config, room: Path, words: Sequence[str], made: box.Box, progress: Progress
) -> list[machines.Entry]:
    """The machines of the rows that are kernels of ours or boxes of the user's, and no others."""
    written = []
    for row in rows(settings, words, ",".join(settings.kernels)):
        if row.ssh or row.simulated:
            continue
        machine = Machine(memory_mib=settings.memory)
        if row.box:  # with the kernel that it brings
            boxes.borrow(row.box)
            word = accel.expected(qemu_program.find())
            written.append(machines.entry(room, row.name, kernel=None, box=row.box, machine=machine, accelerator=word))
            continue
        kernel = archive.prepare(row, config=settings, progress=progress)
        word = accel.choose(qemu_program.find(), kernel).accelerator
        written.append(machines.entry(room, row.name, kernel=kernel, box=made, machine=machine, accelerator=word))
    machines.keep_only(room, {each.name for each in written})
    return written
