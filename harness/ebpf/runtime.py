"""The runtime stage: compile the program where it is to run, with that kernel's own headers.

Laws: every call ends with one ``RuntimeResult``, carried by the error if there is one; no compiler is started before
source, headers and compiler are all found; an output is reused only if kernel, source and flags are the same (their
hashes are its name) and it passes the permission check of every asset; it appears by rename, whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from harness.ebpf.assets import open_asset
from harness.errors import AssetError, HarnessError

_ARCHES = {"x86_64": ("x86", "x86"), "aarch64": ("arm64", "arm64")}
"""Machine to (libbpf's word for it, the kernel's)."""
_TIMEOUT = 600
"""Seconds; under emulation clang is slow."""


class RuntimeResult(IntEnum):
    """How it ended, by the numbers that payloads carry."""

    NOT_ATTEMPTED = 0
    SUCCESS = 1
    KERNEL_VERSION_ERROR = 2
    VERIFICATION_ERROR = 3
    OUTPUT_DIR_ERROR = 4
    OUTPUT_FILE_ERROR = 5
    NEW_COMPILER_ERROR = 6
    COMPILATION_ERROR = 7
    RESULT_READ_ERROR = 8
    HEADER_FETCH_ERROR = 9
    COMPILED_OUTPUT_FOUND = 10
    INPUT_HASH_ERROR = 11


class RuntimeCompilationError(HarnessError):
    """The stage lost; ``result`` says at which step."""

    def __init__(self, result: RuntimeResult, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.result = result


@dataclass(frozen=True)
class Compiled:
    """An object and how it came about (SUCCESS or COMPILED_OUTPUT_FOUND)."""

    image: bytes
    result: RuntimeResult


def find_headers(release: str, root: Path = Path("/")) -> tuple[Path, ...]:
    """The kernel's unpacked header trees (Debian splits them in two), the most specific first; () if none."""
    source = root / "usr/src"
    candidates = [root / f"lib/modules/{release}/build", source / f"linux-headers-{release}"]
    own = next((p.resolve() for p in candidates if (p / "include").is_dir()), None)
    if own is None:
        return ()
    # The half that all flavours share is named after the release without its flavour (one word or two).
    words = release.split("-")
    stems = ["-".join(words[:n]) for n in range(len(words) - 1, 0, -1)]
    shared = (source / f"linux-headers-{stem}-common" for stem in stems)
    common = next((p for p in shared if (p / "include").is_dir()), None)
    return (own, common) if common else (own,)


def compile_asset(
    bpf_dir: Path,
    module: str,
    *,
    release: str,
    output_dir: Path | None = None,
    headers: Callable[[str], tuple[Path, ...]] = find_headers,
    clang: Callable[[], str | None] = lambda: shutil.which("clang"),
) -> Compiled:
    """Compile ``<bpf_dir>/runtime/<module>.bpf.c``. Raises RuntimeCompilationError, or AssetError for the source."""
    trees = headers(release)
    if not trees:
        raise RuntimeCompilationError(
            RuntimeResult.HEADER_FETCH_ERROR,
            f"unable to find kernel headers of {release}",
            hint=f"install linux-headers-{release}",
        )
    directory = bpf_dir / "runtime"
    with open_asset(directory, f"{module}.bpf.c") as asset:
        source = asset.read()
    flags = _flags(directory, trees)
    kept = None
    if output_dir is not None:
        kept = _prepared(output_dir) / _output_name(module, release, source, flags)
        if kept.exists():
            return Compiled(_read(kept), RuntimeResult.COMPILED_OUTPUT_FOUND)
    compiler = clang()
    if compiler is None:
        raise RuntimeCompilationError(RuntimeResult.NEW_COMPILER_ERROR, "there is no clang", hint="install clang")
    with tempfile.TemporaryDirectory(prefix="runtime-", dir=output_dir) as work:
        made = Path(work) / f"{module}.o"
        _run([compiler, *flags, "-c", str(directory / f"{module}.bpf.c"), "-o", str(made)], module)
        made.chmod(0o644)
        image = _read(made)
        if kept is not None:
            made.replace(kept)
    return Compiled(image, RuntimeResult.SUCCESS)


def _flags(directory: Path, trees: tuple[Path, ...]) -> list[str]:
    machine = os.uname().machine
    if machine not in _ARCHES:
        raise RuntimeCompilationError(RuntimeResult.NEW_COMPILER_ERROR, f"no flags are known for {machine}")
    target, arch = _ARCHES[machine]
    flags = ["-target", "bpf", "-O2", "-g", f"-D__TARGET_ARCH_{target}", f"-I{directory}", f"-I{directory / 'include'}"]
    # The system call interface of that kernel: enough for a program that reads no kernel type.
    for part in ("include/uapi", "include/generated/uapi", f"arch/{arch}/include/uapi", "include"):
        flags += [f"-I{tree / part}" for tree in trees if (tree / part).is_dir()]
    return flags + [f"-I{t / f'arch/{arch}/include/generated/uapi'}" for t in trees]


def _output_name(module: str, release: str, source: bytes, flags: list[str]) -> str:
    kernel = " ".join((release, os.uname().version, os.uname().machine)).encode()
    hashes = (hashlib.sha256(part).hexdigest()[:16] for part in (kernel, source, "".join(flags).encode()))
    return f"{module}-{'-'.join(hashes)}.o"


def _prepared(output_dir: Path) -> Path:
    try:
        output_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeCompilationError(
            RuntimeResult.OUTPUT_DIR_ERROR, f"no place for compiled programs: {error}"
        ) from None
    return output_dir


def _run(command: list[str], module: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeCompilationError(RuntimeResult.NEW_COMPILER_ERROR, f"clang did not run: {error}") from None
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error:" in line), done.stderr.strip()[-300:])
        raise RuntimeCompilationError(RuntimeResult.COMPILATION_ERROR, f"{module} does not compile: {first}")


def _read(made: Path) -> bytes:
    try:
        with open_asset(made.parent, made.name) as file:
            return file.read()
    except AssetError as error:
        raise RuntimeCompilationError(RuntimeResult.RESULT_READ_ERROR, error.message, hint=error.hint) from error
