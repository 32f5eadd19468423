"""``kmt.exec`` and ``kmt.shell``: one kernel booted for one command, or for a person."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from kmt import backends, config, runs
from kmt.backends.base import Machine
from kmt.commands.matrix import rows
from kmt.commands.shown import bars
from kmt.deadline import Deadline
from kmt.errors import ConfigError, KmtError
from kmt.guest.wire import CHUNK, Kind
from kmt.guest_session import environment, send_files
from kmt.kernel_run import fetch
from kmt.link import Link
from kmt.tree import survey

SHELL_SECONDS = 24 * 3600.0


@contextmanager
def booted(root: Path, word: str, backend: str, accel: str, seconds: float = 0) -> Iterator[Link]:
    """A guest of that kernel with the project in it; ``seconds`` overrides the configured timeout."""
    settings = config.load(root)
    chosen = rows(settings, [word], word)
    if len(chosen) != 1:
        raise ConfigError(f"{word!r} means {', '.join(row.name for row in chosen)}", hint="name one kernel")
    name = chosen[0].name
    with runs.start([name], sys.argv) as run:
        with bars() as progress:
            made = backends.get(backend or settings.backend, config=settings, accel=accel or "auto", progress=progress)
            kernel = fetch(chosen[0], made, settings, progress)
            machine = Machine(memory_mib=settings.memory)
            made.prepare(kernel, machine)
        deadline = Deadline(seconds or settings.timeout * made.deadline_factor)
        run.update(name, phase="starting")
        with made.launch(kernel, machine, run.kernel_dir(name), deadline) as vm:
            run.update(name, phase="booting", console=vm.console, vm_pid=getattr(vm, "pid", None))
            link = Link(vm, deadline, factor=made.deadline_factor, cancel=threading.Event())
            link.hello()
            send_files(link, None if made.shares_files else survey(root, settings.file_limit), None)
            run.update(name, phase="ready")
            yield link
            link.goodbye()
        run.update(name, phase="done")
        run.finish(0)


def execute(root: Path, kernel: str, argv: Sequence[str], *, backend: str = "", accel: str = "") -> int:
    """Run one command at the project's root in that kernel; its output is ours, its exit status is returned."""
    if not argv:
        raise ConfigError("no command was given", hint="./inv kmt.exec 6.1 -- uname -r")
    status = 0
    with booted(root, kernel, backend, accel) as link:
        threading.Thread(target=_pass_input_on, args=(link,), daemon=True).start()
        for frame in link.start(argv, cwd=str(root), env=environment(config.load(root).env)):
            if frame.kind is Kind.EXIT:
                status = int(frame.body["status"])
            else:
                stream = sys.stderr if frame.raw[:1] == b"\x02" else sys.stdout
                stream.buffer.write(frame.raw[1:])
                stream.flush()
    return status if status >= 0 else 128 - status


def _pass_input_on(link: Link) -> None:
    with suppress(OSError, KmtError):  # the guest may end first
        while data := os.read(0, CHUNK):
            link.send(Kind.INPUT, raw=data)
        link.send(Kind.INPUT)


def shell(root: Path, kernel: str, *, backend: str = "", accel: str = "") -> int:
    """Boot that kernel and hand its console to the user; 0."""
    raise NotImplementedError
