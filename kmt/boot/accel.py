"""Which accelerator really boots a guest here.

``/dev/kvm`` may open, answer its API version, create a VM and a virtual CPU, and still not run a stock kernel (nested
virtualisation, filtered model-specific registers). So the only proof is a guest that boots: a busybox that prints a
word and powers off, under a short deadline. The verdict is kept in the cache until QEMU, the host's kernel or its
CPU changes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from kmt import proc
from kmt.backends import qemu_args, qemu_program
from kmt.boot import disks
from kmt.errors import ConfigError, KmtError, VmNeverStartedError
from kmt.kernel import Kernel
from kmt.paths import cache, locked, published

FACTORS = {"kvm": 1.0, "tcg": 10.0}
"""How much longer things take than with hardware virtualisation: pure Python took 14 times the processor time under
QEMU 7.2's emulation (JSON, sorting, regular expressions in a 6.1 guest); waiting takes no longer."""
DEVICE = Path("/dev/kvm")
PROBE_SECONDS = 20.0
DOUBT_SECONDS = 24 * 3600
"""How long silence is believed to mean no."""
MARKER = "kmt: probe"
_INIT = f"#!/bin/sh\nexport PATH=/bin\necho '{MARKER}'\npoweroff -f\n"
_log = logging.getLogger("kmt")
_told: set[str] = set()


@dataclass(frozen=True)
class Verdict:
    """Whether hardware virtualisation works, and if not, why, in one line."""

    works: bool
    reason: str = ""
    silent: bool = False
    """The guest said nothing in time, which a machine that was busy at that moment would explain too."""


@dataclass(frozen=True)
class Choice:
    """``kvm`` or ``tcg``, and what people should know about it (one line, or nothing)."""

    accelerator: str
    notice: str = ""


def check_word(wanted: str) -> None:
    """Raise ConfigError unless it is a word for an accelerator."""
    if wanted not in ("auto", "kvm", "tcg"):
        raise ConfigError(f"there is no accelerator {wanted!r}", hint="known: auto, kvm, tcg")


def choose(qemu: str, kernel: Kernel, wanted: str = "auto") -> Choice:
    """What guests will run on. A fall-back is said loudly, in one line; with ``wanted="kvm"`` it is an error.

    Raises ConfigError for an unknown word, VmNeverStartedError where kvm was asked for and does not work.
    """
    check_word(wanted)
    if wanted == "tcg":
        return Choice("tcg")
    verdict = known(qemu) or _try(qemu, kernel)
    if verdict.works:
        return Choice("kvm")
    if wanted == "kvm":
        raise VmNeverStartedError(
            f"kvm was asked for and does not work here: {verdict.reason}", hint="leave it out, or say tcg"
        )
    notice = f"no hardware virtualisation ({verdict.reason}): guests are emulated, several times slower"
    if notice not in _told:
        _told.add(notice)
        _log.warning("kmt: %s", notice)
    return Choice("tcg", notice)


def expected(qemu: str, wanted: str = "auto") -> str:
    """``kvm`` or ``tcg`` as ``choose`` would say, without trying anything: an untried device is believed."""
    check_word(wanted)
    verdict = known(qemu)
    return "tcg" if wanted == "tcg" or (verdict and not verdict.works) else "kvm"


def known(qemu: str) -> Verdict | None:
    """The verdict without trying anything; None while only a try can tell."""
    if not DEVICE.exists():
        return Verdict(False, f"there is no {DEVICE}")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Verdict(False, f"no permission to use {DEVICE}; add yourself to its group")
    record = _record(qemu)
    try:
        verdict = Verdict(**json.loads(record.read_text()))
        # Silence may have been a busy machine's: believed for a day, not for ever.
        doubtful = verdict.silent and time.time() - record.stat().st_mtime > DOUBT_SECONDS
        return None if doubtful else verdict
    except (OSError, ValueError, TypeError):
        return None


def factor(qemu: str, wanted: str = "auto") -> float:
    """The deadlines' factor; that of emulation as long as nothing is known."""
    verdict = known(qemu)
    return FACTORS["kvm" if wanted != "tcg" and verdict and verdict.works else "tcg"]


def forget(qemu: str) -> None:
    """Have the next run try again: a machine that was said to work did not say a word."""
    _record(qemu).unlink(missing_ok=True)


def _try(qemu: str, kernel: Kernel) -> Verdict:
    with locked("accel"):
        verdict = known(qemu) or boot_probe(qemu, kernel, "kvm")
        with published(_record(qemu)) as work:
            work.write_text(json.dumps(asdict(verdict)))
        return verdict


def boot_probe(qemu: str, kernel: Kernel, accelerator: str) -> Verdict:
    """Boot the kernel into one word with that accelerator."""
    initramfs = cache("accel") / "probe.cpio"
    with published(initramfs) as work:
        work.write_bytes(disks.base_archive(_INIT, []))
    command = qemu_args.probe_command(qemu, qemu_args.Files(kernel.vmlinuz, initramfs), accelerator)
    try:
        done = proc.run(command, check=False, timeout=PROBE_SECONDS)
    except KmtError:
        return Verdict(False, f"a guest said nothing in {PROBE_SECONDS:.0f} s", silent=True)
    if MARKER in done.stdout:
        return Verdict(True)
    return Verdict(False, _reason(done.stderr) or f"QEMU ended with status {done.status}")


def _reason(stderr: str) -> str:
    """QEMU's first complaint, without its name in front and on one line."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line] or lines
    return re.sub(r"^qemu\S*: (error: )?", "", errors[0]).strip() if errors else ""


def _record(qemu: str) -> Path:
    """Where the verdict for this machine is kept."""
    version = ".".join(map(str, qemu_program.version(qemu)))
    identity = [version, platform.release(), platform.version(), processor(), str(os.getuid())]
    return cache("accel") / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}.json"


def processor() -> str:
    """Model and flags of the first CPU: the flags tell a virtual machine with nesting from one without."""
    text = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    return "\n".join(line for line in text.splitlines() if line.startswith(("model", "flags", "vendor_id")))
