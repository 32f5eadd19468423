"""(pure) How a source is compiled: the command lines of the three builds, and what a compiled output is called; and
that of an ordinary C program for guests.

CO-RE: once, types of the source's own. Prebuilt: for one kernel, with ``vmlinux.h`` of its BTF. Runtime: against one
kernel's headers, read for the machine, because they hold its inline assembly, but optimised for eBPF (a loop laid out
as the machine likes it is one that verifiers before 6.12 refuse). The flags of the runtime build are data, for they
travel: a guest compiles with what stands in ``runtime/manifest.json``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """An architecture to compile for, in the words of Debian, of eBPF's ``__TARGET_ARCH_*``, and of include paths."""

    debian: str
    bpf: str
    triplet: str


TARGETS = {
    "x86_64": Target("amd64", "x86", "x86_64-linux-gnu"),
    "aarch64": Target("arm64", "arm64", "aarch64-linux-gnu"),
}
"""By the machine's name as uname gives it."""

# Paths in BTF's line information are the project's, not this machine's.
_ALWAYS = ("-O2", "-g", "-fdebug-compilation-dir=.", "-fno-color-diagnostics")
# Of headers that other compilers are meant to read.
_QUIET = (
    *("-Wno-unused-value", "-Wno-pointer-sign", "-Wno-compare-distinct-pointer-types", "-Wno-address-of-packed-member"),
    *("-Wno-gnu-variable-sized-type-not-at-end", "-Wno-unknown-warning-option", "-Wno-unknown-attributes"),
)


def core(source: str, *, include: Sequence[str], target: Target, debug: bool) -> list[str]:
    """The CO-RE build, run in the project's root, but for the places of its output."""
    return [
        *("clang", "-target", "bpf", f"-D__TARGET_ARCH_{target.bpf}", *_ALWAYS),
        *(["-DDEBUG=1"] if debug else []),
        *(f"-I{directory}" for directory in include),
        *(f"-I/usr/include/{target.triplet}", "-c", source),
    ]


def prebuilt(source: str, types: str, *, include: Sequence[str], target: Target) -> list[str]:
    """The same for one kernel; ``types`` is the directory of its ``vmlinux.h``."""
    return [
        *("clang", "-target", "bpf", f"-D__TARGET_ARCH_{target.bpf}", "-DCOMPILE_PREBUILT", *_ALWAYS),
        # vmlinux.h relocates, unless it is told not to.
        "-DBPF_NO_PRESERVE_ACCESS_INDEX",
        # From 7.3 on the kernel embeds structs by their tag; without this such a member has no size.
        "-fms-extensions",
        *(f"-I{directory}" for directory in include),
        *(f"-isystem{types}", f"-I/usr/include/{target.triplet}", "-c", source),
    ]


def workload(source: str, output: str, *, target: Target) -> list[str]:
    """An ordinary program for guests: it brings its C library, for theirs may be another."""
    strict = ("-Wall", "-Wextra", "-Werror")
    common = ("-O2", "-std=gnu11", "-static", "-pthread", "-fno-color-diagnostics", "-Wl,--build-id=none", "-s")
    return ["clang", "--target=" + target.triplet, *common, *strict, "-o", output, source]


def runtime_flags(target: Target) -> list[str]:
    """The runtime build's flags, with the places of a guest left open.

    ``{here}`` is the directory of the sources, ``{own}`` the headers of the kernel itself, ``{common}`` those that
    all flavours of it share (the same directory, where they are not split).
    """
    arch = target.bpf
    linux = "-include{common}/include/linux"
    return [
        *(
            "--target=" + target.triplet,
            "-emit-llvm",
            "-Xclang",
            "-disable-llvm-passes",
            "-nostdlibinc",
            "-std=gnu11",
            "-fms-extensions",
            *_ALWAYS,
        ),
        *("-D__KERNEL__", "-D__BPF_TRACING__", "-DCOMPILE_RUNTIME", f"-D__TARGET_ARCH_{target.bpf}"),
        *("-DCONFIG_64BIT", "-DCC_USING_FENTRY", '-DKBUILD_MODNAME="program"'),
        *("-fno-stack-protector", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-fno-jump-tables"),
        *_QUIET,
        *("-I{here}", "-I{here}/include"),
        *(f"-isystem{{common}}/arch/{arch}/include", f"-isystem{{own}}/arch/{arch}/include/generated"),
        *("-isystem{common}/include", "-isystem{own}/include"),
        *(f"-isystem{{common}}/arch/{arch}/include/uapi", f"-isystem{{own}}/arch/{arch}/include/generated/uapi"),
        *("-isystem{common}/include/uapi", "-isystem{own}/include/generated/uapi"),
        *(f"{linux}/compiler-version.h", f"{linux}/kconfig.h", f"{linux}/compiler_types.h"),
    ]


def translated(middle: str, output: str) -> list[str]:
    """The second half of the runtime build: eBPF of what the compiler made with ``runtime_flags``."""
    return ["clang", "-target", "bpf", "-O2", "-g", "-Wno-override-module", "-c", middle, "-o", output]


def placed(flags: Sequence[str], places: Mapping[str, str], exists: Callable[[str], bool]) -> list[str]:
    """The flags with their places filled in, without those whose file or directory is not there."""
    found = []
    for flag in flags:
        words = flag
        for name, place in places.items():
            words = words.replace(f"{{{name}}}", place)
        if words == flag or exists(words[words.index("/") :]):
            found.append(words)
    return found


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each file, by its place under ``runtime/``."""
    return {place: hashlib.sha256(content).hexdigest() for place, content in sorted(files.items())}


def inputs(module: str, files: Mapping[str, str]) -> dict[str, str]:
    """What goes into that program: its source and every header."""
    return {p: d for p, d in files.items() if p == f"{module}.bpf.c" or not p.endswith(".bpf.c")}


def output_name(module: str, kernel: Sequence[str], inputs: Mapping[str, str], flags: Sequence[str]) -> str:
    """``NAME-<kernel>-<inputs>-<flags>.o``; ``kernel`` is what uname says: release, version, machine."""
    parts = ("\0".join(kernel), "\0".join(f"{d} {p}" for p, d in sorted(inputs.items())), "\0".join(flags))
    return "-".join([module, *(hashlib.sha256(part.encode()).hexdigest()[:16] for part in parts)]) + ".o"
