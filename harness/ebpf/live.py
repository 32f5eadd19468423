"""The running kernel, by libbpf and the files it shows: the ``KernelApi`` of a laptop or a guest.

Laws: features are asked for, never derived from a version; a question that could not be asked is answered None;
a program is loaded only if what it expects of a kernel function is what the kernel's own BTF says. ``btf_file``,
``proc`` and ``tracing`` may be pointed elsewhere, so that a test can hide one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from harness.ebpf import abi, btf
from harness.ebpf.btf_parser import Btf
from harness.ebpf.core import raise_memlock
from harness.ebpf.libbpf import BpfObject
from harness.ebpf.maps import RINGBUF
from harness.errors import BpfError, HarnessError, SignatureError, VerifierError
from harness.kernel_api import Engine, Feature, KernelApi, LoadedObject, LoadOptions, Signature

_TRACING = 26
"""BPF_PROG_TYPE_TRACING of ``enum bpf_prog_type`` (linux/bpf.h)."""

# A kernel without fprobe has the first of these too, and answers EOPNOTSUPP.
_SYMBOLS = {
    Feature.KPROBE_MULTI: frozenset({"bpf_kprobe_multi_link_attach", "register_fprobe_ips"}),
    Feature.UPROBE_MULTI: frozenset({"bpf_uprobe_multi_link_attach"}),
}


class LiveKernel:
    """This machine's kernel."""

    def __init__(
        self,
        *,
        btf_file: Path = btf.SYSFS,
        proc: Path = Path("/proc"),
        tracing: Path = Path("/sys/kernel/tracing"),
    ) -> None:
        self._btf_file = btf_file
        self._tracing = tracing
        self.proc_root = proc
        self.release = os.uname().release

    @property
    def cpus(self) -> int:
        """The number of possible CPUs."""
        return max(1, int(abi.library().libbpf_num_possible_cpus()))

    def lift_memory_limit(self) -> None:
        """Of this process, for kernels before 5.11. A refusal matters only if a load fails for it, which says so."""
        with suppress(HarnessError):
            raise_memlock()

    def probe(self, feature: Feature) -> bool | None:
        """Ask the kernel; None where it could not be asked (no library, no permission)."""
        try:
            if feature is Feature.BTF:
                return self._btf_file.exists()
            if feature is Feature.RINGBUF:
                return _answer(abi.library().libbpf_probe_bpf_map_type(RINGBUF, None))
            if feature is Feature.FENTRY:
                tracing = _answer(abi.library().libbpf_probe_bpf_prog_type(_TRACING, None))
                return tracing and self._btf_file.exists()
            if feature in _SYMBOLS:
                return self.symbols(_SYMBOLS[feature]) == _SYMBOLS[feature]
            return self._has_openat2()
        except (HarnessError, OSError):
            return None

    def _has_openat2(self) -> bool | None:
        if self.symbols(["do_sys_openat2"]):
            return True
        events = self._tracing / "events" / "syscalls"
        return (events / "sys_enter_openat2").exists() if events.exists() else None

    def signatures(self, functions: Collection[str]) -> Mapping[str, Signature]:
        """Those of the functions that the kernel's own BTF has; ``module:function`` is one of a loaded module.

        Asked for none it needs no BTF.
        """
        if not functions:
            return {}
        modules: dict[str, set[str]] = {}
        for function in functions:
            module, _, name = function.rpartition(":")
            modules.setdefault(module, set()).add(name)
        own = btf.of_kernel(self._btf_file)
        found = dict(own.functions(modules.pop("", set())))
        for module, names in modules.items():
            path = self._btf_file.with_name(module)
            if path.is_file():
                those = Btf.parse(path.read_bytes(), base=own).functions(names)
                found |= {f"{module}:{name}": signature for name, signature in those.items()}
        return found

    def symbols(self, names: Collection[str]) -> frozenset[str]:
        """Those of the names that ``/proc/kallsyms`` has."""
        try:
            table = (self.proc_root / "kallsyms").read_bytes()
        except OSError as error:
            raise HarnessError(f"the kernel's symbols cannot be read: {error}") from None
        # A line is "address type name", and "[module]" behind a tab. Splitting 150,000 of them takes seconds under
        # emulation, searching them does not.
        return frozenset(n for n in names if any(b" %b%b" % (n.encode(), end) in table for end in (b"\n", b"\t")))

    def load(self, name: str, image: bytes, options: LoadOptions) -> LoadedObject:
        """Load an object, after comparing what its programs expect with what the kernel's functions are."""
        check_signatures(options, self.signatures({f for f, _ in options.signatures.values()}))
        try:
            if options.engine is Engine.BCC:
                from harness.ebpf.bcc_object import BccObject

                return BccObject(name, image, options)
            return BpfObject(name, image, options)
        except BpfError as error:
            if error.code == errno.EPERM and not isinstance(error, VerifierError) and self._takes_locked_memory():
                _say_if_limited(error)
            raise

    def _takes_locked_memory(self) -> bool:
        """Whether maps and programs are counted as locked memory; from 5.11 on, as the memory of a cgroup."""
        try:
            # Of the same version; libbpf tells the two apart by it as well.
            return not self.symbols(["bpf_ktime_get_coarse_ns"])
        except HarnessError:
            return True


def _say_if_limited(error: BpfError) -> None:
    """Raise what says so, if the limit on locked memory may be why a load was refused: who could lift it, has."""
    try:
        raise_memlock()
    except HarnessError as refused:
        detail = f"{refused.message.removeprefix('rlimit memlock: ')}; {error.message}"
        raise BpfError("rlimit memlock", error.code, detail=detail, hint=f"{refused.hint}; {error.hint}") from error


def running_kernel() -> KernelApi:
    """The kernel that this process runs on, seen through the proc root that its environment names."""
    return LiveKernel(proc=proc_root(os.environ))


def proc_root(environ: Mapping[str, str], host: Path = Path("/host")) -> Path:
    """Where the host's processes are: ``HOST_PROC``; in an agent's container (``DOCKER_DD_AGENT`` is set and the host
    is mounted at ``/host``) ``/host/proc``; else ``/proc``."""
    if named := environ.get("HOST_PROC"):
        return Path(named)
    return host / "proc" if environ.get("DOCKER_DD_AGENT") and host.exists() else Path("/proc")


def check_signatures(options: LoadOptions, actual: Mapping[str, Signature]) -> None:
    """(pure) SignatureError unless every chosen program's function is as the program expects it.

    The kernel would not say: with one argument too few a program loads and reads garbage.
    """
    for program, (function, expected) in options.signatures.items():
        if options.programs is not None and program not in options.programs:
            continue
        if function not in actual:
            raise SignatureError(f"program {program}: this kernel has no function {function}")
        if actual[function] != expected:
            raise SignatureError(
                f"program {program} expects {function} to be {expected}; this kernel has {actual[function]}",
                hint="load the variant that fits, or add one",
            )


def _answer(status: int) -> bool | None:
    """libbpf's 1, 0 or negative errno."""
    return None if status < 0 else bool(status)
