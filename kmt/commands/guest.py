"""``kmt.exec``, ``kmt.shell`` and ``kmt.start --demo``: one kernel booted for one command, or for a person."""

from __future__ import annotations

import os
import shlex
import sys
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pexpect

from kmt import backends, build, build_kernel, config, proc, runs
from kmt.backends.base import Backend, Machine
from kmt.backends.kept import KeptBackend
from kmt.backends.simulated import NAME as SIMULATED
from kmt.backends.ssh import SshBackend
from kmt.backends.vagrant import VagrantBackend
from kmt.commands import terminal
from kmt.commands.matrix import rows
from kmt.commands.shown import bars
from kmt.config import Config
from kmt.deadline import Deadline
from kmt.errors import ConfigError, KmtError, VmNeverStartedError
from kmt.guest.wire import CHUNK, Kind
from kmt.keeper import client
from kmt.kernel import Kernel
from kmt.roots.rootfs import Progress
from kmt.run.guest import BPF_DIR, add_programs, environment, send_files
from kmt.run.link import Link
from kmt.run.shared import fetch
from kmt.run.tree import Tree, add_tree, survey
from kmt.text import visible

BOOT_SECONDS = 30.0
"""For the console of ``kmt.shell``, with hardware virtualisation."""
LEAVE = "Ctrl-]"


@dataclass(frozen=True)
class Chosen:
    """One kernel, fetched, with all that it boots from."""

    name: str
    settings: Config
    backend: Backend
    kernel: Kernel
    machine: Machine
    programs: Sequence[Path] = ()
    """The directories with the project's eBPF objects for this kernel, one laid over the other."""

    @property
    def env(self) -> dict[str, str]:
        """The environment of a command in it."""
        found = environment(self.settings.env)
        if self.programs:
            found["KMT_BPF_DIR"] = str(self.programs[0]) if self.backend.shares_files else BPF_DIR
        return found

    def env_in(self, link: Link) -> dict[str, str]:
        """The same, of a guest that may have a room for us."""
        found = self.env
        if "KMT_BPF_DIR" in found:
            found["KMT_BPF_DIR"] = link.inside(found["KMT_BPF_DIR"])
        return found


def choose(root: Path, word: str, backend: str, accel: str) -> Chosen:
    """Fetch and make what is missing. ConfigError when the word means several kernels."""
    settings = config.load(root)
    found = rows(settings, [word], word)
    if len(found) != 1:
        raise ConfigError(f"{word!r} means {', '.join(row.name for row in found)}", hint="name one kernel")
    if found[0].simulated or (backend or settings.backend) == SIMULATED:
        raise ConfigError(
            f"{word}: a simulated kernel is no machine", hint="it runs tests: pytest --kernel 5.15-simulated"
        )
    machine = Machine(memory_mib=settings.memory)
    with bars() as progress:
        word = backends.name_for(found[0], backend or settings.backend)
        made = backends.get(word, config=settings, accel=accel or "auto", progress=progress)
        kernel = fetch(found[0], made, settings, progress)
        made.prepare(kernel, machine)
        programs = _programs(settings, kernel, progress)
    keeper = client.find(settings.root) if made.name in backends.KEPT else None
    if keeper is not None:
        made = KeptBackend(made, lambda: keeper, accel or "auto", settings)
    return Chosen(found[0].name, settings, made, kernel, machine, programs)


def _programs(settings: Config, kernel: Kernel, progress: Progress) -> list[Path]:
    """Built for that kernel; programs that cannot be built keep nobody out of a guest."""
    if not (settings.sources or settings.workloads):
        return []
    try:
        return build_kernel.directories(settings, build.build(settings, progress=progress), kernel)
    except KmtError as error:
        print(f"kmt: without the eBPF programs: {error}", file=sys.stderr)
        return []


@contextmanager
def booted(chosen: Chosen, run: runs.Run) -> Iterator[Link]:
    """Its guest, with the project in it."""
    settings, backend, name = chosen.settings, chosen.backend, chosen.name
    deadline = Deadline(settings.timeout * backend.deadline_factor)
    run.update(name, phase="starting")
    with backend.launch(chosen.kernel, chosen.machine, run.kernel_dir(name), deadline) as vm:
        run.update(name, phase="booting", console=vm.console, vm_pid=getattr(vm, "pid", None))
        link = Link(vm, deadline, factor=backend.deadline_factor, cancel=threading.Event())
        link.hello()
        tree = None if backend.shares_files else survey(settings.root, settings.file_limit)
        send_files(link, tree, chosen.programs)
        run.update(name, phase="ready")
        yield link
        link.goodbye()
    run.update(name, phase="done")


def execute(root: Path, kernel: str, argv: Sequence[str], *, backend: str = "", accel: str = "") -> int:
    """Run one command at the project's root in that kernel; its output is ours, its exit status is returned."""
    if not argv:
        raise ConfigError("no command was given", hint="./inv kmt.exec 6.1 -- uname -r")
    chosen = choose(root, kernel, backend, accel)
    status = 0
    with runs.start([chosen.name], sys.argv) as run, booted(chosen, run) as link:
        frames = link.start(argv, cwd=link.inside(root), env=chosen.env_in(link))
        threading.Thread(target=_pass_input_on, args=(link,), daemon=True).start()
        for frame in frames:
            if frame.kind is Kind.EXIT:
                status = int(frame.body["status"])
                status = status if status >= 0 else 128 - status
            else:
                stream = sys.stderr if frame.raw[:1] == b"\x02" else sys.stdout
                stream.buffer.write(frame.raw[1:])
                stream.flush()
        run.finish(status)
    return status


def demo(root: Path, kernels: Sequence[str] | None, *, backend: str = "", accel: str = "") -> int:
    """Run ``[tool.kmt] demo`` in one kernel (default: the newest), on our terminal where we have one."""
    argv = config.load(root).demo
    if not argv:
        raise ConfigError("this project has no demo", hint='[tool.kmt] demo = ["python3", "show.py"]')
    kernel = ",".join(kernels or ["newest"])
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return execute(root, kernel, argv, backend=backend, accel=accel)
    chosen = choose(root, kernel, backend, accel)
    with runs.start([chosen.name], sys.argv) as run, booted(chosen, run) as link:
        print(f"{chosen.kernel.release}: {LEAVE} leaves", flush=True)
        status = terminal.attach(link, argv, cwd=link.inside(root), env=chosen.env_in(link))
        run.finish(status)
    return status


def _pass_input_on(link: Link) -> None:
    with suppress(OSError, KmtError):  # the guest may end first
        while data := os.read(0, CHUNK):
            link.send(Kind.INPUT, raw=data)
        link.send(Kind.INPUT)


def shell(root: Path, kernel: str, *, backend: str = "", accel: str = "", gdb: bool = False) -> int:
    """Boot that kernel and connect its console, a root shell with the project in it, to our terminal; 0.

    With ``gdb`` it says how to attach a debugger to the kernel, which is then never a kept one.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("kmt.shell needs a terminal", hint="without one: ./inv kmt.exec KERNEL -- COMMAND")
    chosen = choose(root, kernel, backend, accel)
    if isinstance(chosen.backend, KeptBackend | SshBackend | VagrantBackend) and not gdb:
        with runs.start([chosen.name], sys.argv) as run, booted(chosen, run) as link:
            how = "kept" if link.stays else "over SSH"
            print(f"{chosen.kernel.release}, {how}: {LEAVE} leaves, so does the end of the shell", flush=True)
            terminal.attach(link, ["bash", "-i"], cwd=link.inside(root), env=chosen.env_in(link))
            run.finish(0)
        return 0
    command = getattr(getattr(chosen.backend, "inner", chosen.backend), "shell_command", None)
    if command is None:
        raise ConfigError(f"the backend {chosen.backend.name!r} has no console", hint="try --backend=qemu")
    with runs.start([chosen.name], sys.argv) as run:
        directory = run.kernel_dir(chosen.name)
        project = directory / "project.tar"
        _pack(project, survey(root, chosen.settings.file_limit), chosen.programs)
        debugger = _debugger(directory) if gdb else None
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
        console = proc.terminal(
            [*command(chosen.kernel, chosen.machine, debugger), *_disk(project)], size=(lines, columns)
        )
        try:
            run.update(chosen.name, phase="booting", console=directory / "console", vm_pid=console.pid)
            _boot(console, chosen, directory)
            _move_in(console, chosen, root, lines, columns)
            run.update(chosen.name, phase="ready")
            print(f"{chosen.kernel.release}: {LEAVE} leaves, so does the end of the shell", flush=True)
            if debugger:
                print(f"kernel debugger: gdb -ex 'target remote {debugger}'  (docs/crashes.md)\r", flush=True)
            console.interact()
        finally:
            console.close(force=True)
            project.unlink()
        run.finish(0)
    return 0


def _debugger(directory: Path) -> Path:
    """Where QEMU will wait for gdb. ConfigError where the path is longer than a socket's may be (unix(7))."""
    path = directory / "gdb"
    if len(os.fsencode(path)) > 107:
        raise ConfigError(f"{path} is too long for a socket", hint="set KMT_CACHE to a shorter path")
    return path


def _disk(file: Path) -> list[str]:
    """QEMU's words for one more read-only disk."""
    name = str(file).replace(",", ",,")
    backing = f"driver=file,node-name=kmt-project,read-only=on,filename={name}"
    return ["-blockdev", backing, "-device", "virtio-blk-pci,drive=kmt-project,serial=kmt-project"]


def _boot(console: pexpect.spawn[bytes], chosen: Chosen, directory: Path) -> None:
    """Wait for the shell's prompt; VmNeverStartedError with the last line that came instead."""
    console.logfile_read = (directory / "console").open("wb", buffering=0)
    _await(console, b"# ", chosen)


def _await(console: pexpect.spawn[bytes], word: bytes, chosen: Chosen) -> None:
    seconds = BOOT_SECONDS * chosen.backend.deadline_factor
    if console.expect_exact([word, pexpect.EOF, pexpect.TIMEOUT], timeout=seconds) != 0:
        said = visible((console.before or b"").decode(errors="replace").strip().rpartition("\n")[2].strip())
        raise VmNeverStartedError(f"no shell on the console of {chosen.name}: {said or 'no word'}")


def _pack(target: Path, tree: Tree, programs: Sequence[Path]) -> None:
    """The project and the programs as one tar, to be unpacked at ``/``."""
    with target.open("wb") as file, tarfile.open(fileobj=file, mode="w|") as tar:
        add_tree(tar, tree, under=str(tree.root))
        add_programs(tar, programs, under=BPF_DIR)


def _move_in(console: pexpect.spawn[bytes], chosen: Chosen, root: Path, lines: int, columns: int) -> None:
    """Unpack the project at its own path in the guest and start a better shell there. VmNeverStartedError as above."""
    where, env = shlex.quote(str(root)), chosen.env
    bpf = f"export KMT_BPF_DIR={env['KMT_BPF_DIR']}; " if "KMT_BPF_DIR" in env else ""
    find = 'for s in /sys/block/*/serial; do [ "$(cat $s)" = kmt-project ] && d=${s%/serial} && d=/dev/${d##*/}; done'
    start = (
        f"mkdir -p {where}; cd {where}; {find}; tar -C / -xf $d; {bpf}stty rows {lines} cols {columns}; exec bash; echo"
    )
    console.sendline(start)
    for word in (b"exec bash; echo", b"# "):  # the echo of the command, and what comes of it
        _await(console, word, chosen)
