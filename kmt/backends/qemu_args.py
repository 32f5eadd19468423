"""(pure) QEMU's command line for a guest.

An option and what must be said on the kernel's command line because of it are one value (``Option``), so that one
cannot be changed without the other in sight. Facts are of QEMU 7.2 unless they say otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kmt.backends.base import Machine

PORT = "kmt.agent"
"""The virtio-serial port's name; the agent looks for it."""


@dataclass(frozen=True)
class Option:
    """Words for QEMU and their partners on the kernel's command line."""

    argv: tuple[str, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Memory:
    """A file that the guest's memory lies in: written through when ``shared``, else copied on write.

    ``descriptor`` is open, and inherited by QEMU. With ``incoming`` the machine does not boot but waits for a state
    that belongs to that memory.
    """

    descriptor: int
    shared: bool
    incoming: bool


@dataclass(frozen=True)
class Files:
    """What a guest boots from; ``None``: not attached."""

    vmlinuz: Path
    initramfs: Path
    root: Path | None = None
    kernel: Path | None = None
    compiler: Path | None = None


def command(
    qemu: str,
    files: Files,
    machine: Machine,
    accelerator: str,
    *,
    name: str,
    lsm: str | None,
    channel: int | None,
    monitor: int | None = None,
    memory: Memory | None = None,
    dump: bool = False,
    gdb: Path | None = None,
) -> list[str]:
    """The whole command line.

    The console is QEMU's standard output (and input). ``channel`` and ``monitor`` are open descriptors, inherited by
    QEMU, of connected stream sockets to the agent and for QMP: no path on disk, nothing to clean up, nobody else can
    connect. Without a channel the guest gives a root shell on its console instead of the agent. With ``dump`` a
    kernel that panics stays, so that its memory can be read; ``gdb`` is a socket for a debugger to connect to.
    """
    options = [
        HEADLESS,
        STAYS_ON_PANIC if dump else ENDS_ON_PANIC,
        CONSOLE,
        _processor(accelerator, machine.cpus),
        _memory(machine.memory_mib, memory),
        RANDOM,
        _monitor(monitor),
        _disk("kmt-root", files.root),
        _disk("kmt-kernel", files.kernel),
        _disk("kmt-compiler", files.compiler if machine.compiler else None),
        Option(("-gdb", f"unix:{_escaped(gdb)},server=on,wait=off")) if gdb else Option(),
        _agent(channel) if channel is not None else Option(words=("kmt.shell=1",)),
        Option(words=_words(lsm, name)),
    ]
    return [qemu, *_boot(files, options)]


def _words(lsm: str | None, name: str) -> tuple[str, ...]:
    return ("quiet", "nokaslr", "rcupdate.rcu_expedited=1", *_lsm(lsm), f"kmt.kernel={_plain(name)}")


def kernel_words(accelerator: str, *, name: str, lsm: str | None) -> list[str]:
    """The kernel's command line of such a guest (one processor) that somebody else boots, and not by this command."""
    options = [HEADLESS, ENDS_ON_PANIC, CONSOLE, _processor(accelerator, 1), RANDOM, Option(words=_words(lsm, name))]
    return [word for option in options for word in option.words]


def cpu_model(accelerator: str) -> str:
    """The value of ``-cpu``."""
    argv = _processor(accelerator, 1).argv
    return argv[argv.index("-cpu") + 1]


def probe_command(qemu: str, files: Files, accelerator: str) -> list[str]:
    """The smallest machine with that accelerator: what ``kmt/boot/accel.py`` boots to see whether it works."""
    options = [
        HEADLESS,
        ENDS_ON_PANIC,
        CONSOLE,
        _processor(accelerator, 1),
        _memory(256, None),
        Option(words=("quiet",)),
    ]
    return [qemu, *_boot(files, options)]


def _boot(files: Files, options: Iterable[Option]) -> list[str]:
    options = list(options)
    argv = [word for option in options for word in option.argv]
    words = " ".join(word for option in options for word in option.words)
    return [*argv, "-kernel", str(files.vmlinuz), "-initrd", str(files.initramfs), "-append", words]


HEADLESS = Option(
    ("-machine", "q35", "-nodefaults", "-no-user-config", "-display", "none"), ("i8042.noaux", "i8042.nokbd")
)
"""No device but those asked for: no network card, no keyboard to probe."""
ENDS_ON_PANIC = Option(("-no-reboot",), ("panic=-1", "oops=panic"))
"""The kernel reboots at once when it panics, and QEMU ends where the guest reboots."""
STAYS_ON_PANIC = Option(("-no-reboot", "-device", "vmcoreinfo"), ("panic=0", "oops=panic", "kmt.dump=1"))
"""The kernel stands still when it panics; its own description of itself is in what is dumped of it."""
CONSOLE = Option(
    ("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"), ("console=ttyS0", "printk.time=1")
)
TRANSLATED_MIB = 512
"""Of translated code, under emulation, in memory of QEMU's own."""
RANDOM = Option(("-device", "virtio-rng-pci"), ("random.trust_cpu=on",))


def _processor(accelerator: str, cpus: int) -> Option:
    if accelerator == "kvm":
        return Option(("-accel", "kvm", "-cpu", "host", "-smp", str(cpus)))
    # TCG with a thread for each vCPU is not safe for a kernel (seen with QEMU 7.2; newer ones are untested):
    # - live patching of kernel text (static keys, ftrace, kprobes) races with a vCPU that still runs the
    #   breakpoint: "Oops: int3", one boot in 35 and within seconds of attaching probes. One vCPU, or all of them
    #   on one thread, never did. So: one thread, until QEMU's emulation is shown to be right about this.
    # - cmpxchg16b: kernels from 6.x panic in the slab allocator ("double fault" in kmalloc) where the CPU has cx16.
    # la57 (five-level page tables) costs time and is of no use here.
    # no_timer_check, tsc: the emulated timers are right, and checking them at boot takes long.
    # tb-size: translated code would take up to a GiB beside the guest's memory; half of it costs no time.
    thread = ",thread=single" if cpus > 1 else ""
    return Option(
        ("-accel", f"tcg{thread},tb-size={TRANSLATED_MIB}", "-cpu", "max,-cx16,la57=off", "-smp", str(cpus)),
        ("mitigations=off", "tsc=reliable", "no_timer_check"),
    )


def _memory(mib: int, file: Memory | None) -> Option:
    size = ("-m", f"{mib}M")
    if file is None:
        return Option(size)
    share = "on" if file.shared else "off"
    backing = f"memory-backend-file,id=kmt-ram,size={mib}M,mem-path=/proc/self/fd/{file.descriptor},share={share}"
    incoming = ("-incoming", "defer") if file.incoming else ()
    return Option((*size, "-object", backing, "-machine", "memory-backend=kmt-ram", *incoming))


def _monitor(descriptor: int | None) -> Option:
    if descriptor is None:
        return Option()
    return Option(("-chardev", f"socket,id=monitor,fd={descriptor}", "-mon", "chardev=monitor,mode=control"))


def _disk(serial: str, path: Path | None) -> Option:
    """A read-only virtio disk that the guest finds by its serial number."""
    if path is None:
        return Option()
    backing = f"driver=file,node-name={serial},read-only=on,filename={_escaped(path)}"
    return Option(("-blockdev", backing, "-device", f"virtio-blk-pci,drive={serial},serial={serial}"))


def _agent(channel: int) -> Option:
    argv = ("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={channel}")
    return Option((*argv, "-device", f"virtserialport,chardev=agent,name={PORT}"))


def _lsm(configured: str | None) -> tuple[str, ...]:
    """``lsm=`` with bpf in it: 5.10 attaches LSM programs without it and never runs them.

    The word replaces the kernel's own list, so that list is repeated; unknown, the word is left out.
    """
    if configured is None:
        return ()
    names = [n for n in configured.split(",") if n]
    return (f"lsm={','.join(names if 'bpf' in names else [*names, 'bpf'])}",)


def configured_lsm(config: str) -> str | None:
    """``CONFIG_LSM`` of a kernel's configuration; None where it has none."""
    match = re.search(r'^CONFIG_LSM="([^"]*)"$', config, re.MULTILINE)
    return match.group(1) if match else None


def _escaped(path: Path) -> str:
    """A path inside a QEMU option: its commas are doubled."""
    return str(path).replace(",", ",,")


def _plain(name: str) -> str:
    """A row's name as one word of the kernel's command line."""
    return re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII)
