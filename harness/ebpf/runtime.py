"""The runtime stage: compile the program where it is to run, with that kernel's own headers.

Laws: every call ends with one ``RuntimeResult``, counted, and carried by the error if there is one; what is compiled
are the bytes whose digests the manifest has, from a directory that nobody else can change; an output is reused only
if kernel, files and flags are the same (their hashes are its name), it is what it was when it was made (its digest
lies beside it), and it passes the permission check of every asset; it appears by rename, whole or not at all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

from harness.ebpf.assets import open_asset
from harness.ebpf.embedded import os_release
from harness.ebpf.headers import Headers, find_headers
from harness.ebpf.manifest import FILE, SOURCE, Manifest
from harness.errors import AssetError, FormatError, HarnessError
from harness.telemetry import STATSD, MetricGroup

_TIMEOUT = 600
"""Seconds; under emulation clang is slow."""
_RAM = Path("/dev/shm")

_ATTEMPTS = MetricGroup("system_probe.runtime_compilation", STATSD)

log = logging.getLogger(__name__)


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

    @property
    def kind(self) -> str:
        """``success`` or ``failure``, as telemetry has it."""
        good = self in (RuntimeResult.SUCCESS, RuntimeResult.COMPILED_OUTPUT_FOUND)
        return "success" if good else "failure"

    @property
    def words(self) -> str:
        """The reason, as telemetry has it."""
        return self.name.lower()


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


def compile_asset(
    bpf_dir: Path,
    module: str,
    *,
    uname: Sequence[str] | None = None,
    output_dir: Path | None = None,
    debug: bool = False,
    headers: Callable[[str], Headers | None] = find_headers,
    clang: Callable[[], str | None] = lambda: shutil.which("clang"),
) -> Compiled:
    """Compile ``<bpf_dir>/runtime/<module>.bpf.c``, or find it compiled: in ``output_dir``, or beside the sources.

    ``uname`` is the kernel's release, version and machine (None: the running one's). Raises RuntimeCompilationError,
    or AssetError where source or manifest are missing or not root's (then nothing was attempted).
    """
    try:
        made = _compiled(bpf_dir, module, uname, output_dir, debug, headers, clang)
    except RuntimeCompilationError as error:
        _count(module, error.result)
        raise
    _count(module, made.result)
    return made


def _count(module: str, result: RuntimeResult) -> None:
    system = os_release()
    tags = {"asset": module, "platform": system.get("ID", "unknown"), "result": result.kind, "reason": result.words}
    words = (f"{key}:{value}" for key, value in tags.items())
    _ATTEMPTS.counter("attempted", *words, help="Programs asked to be compiled here, by what came of them.").add()


def _compiled(
    bpf_dir: Path,
    module: str,
    uname: Sequence[str] | None,
    output_dir: Path | None,
    debug: bool,
    headers: Callable[[str], Headers | None],
    clang: Callable[[], str | None],
) -> Compiled:
    kernel = tuple(uname or (os.uname().release, os.uname().version, os.uname().machine))
    trees = _own(headers(kernel[0]), kernel[0])
    directory = bpf_dir / "runtime"
    manifest = _manifest(directory, module)
    if debug:
        manifest = replace(manifest, flags=(*manifest.flags, "-DDEBUG=1"))
    if output_dir is not None:
        _prepare(output_dir)
    with tempfile.TemporaryDirectory(prefix="runtime-", dir=_RAM if _RAM.is_dir() else None) as private:
        here = Path(private)
        for place, digest in manifest.inputs(module).items():
            _copy_checked(directory, place, digest, here / place)
        name = manifest.output_name(module, kernel)
        for room in filter(None, (output_dir, directory / "compiled")):
            if (room / name).exists() and (image := _found(room, name)) is not None:
                return Compiled(image, RuntimeResult.COMPILED_OUTPUT_FOUND)
        image = _compile(manifest, module, here, trees, clang)
    if output_dir is not None:
        _keep(output_dir, name, image)
    return Compiled(image, RuntimeResult.SUCCESS)


def _own(found: Headers | None, release: str) -> Headers:
    hint = f"install linux-headers-{release}"
    if found is None:
        raise RuntimeCompilationError(
            RuntimeResult.HEADER_FETCH_ERROR, f"unable to find kernel headers of {release}", hint=hint
        )
    if found.release != release:
        said = f"are of {found.release}" if found.release else "do not say which kernel they are of"
        raise RuntimeCompilationError(
            RuntimeResult.HEADER_FETCH_ERROR,
            f"the kernel headers in {found.own} {said}, this kernel is {release}",
            hint=hint,
        )
    return found


def _manifest(directory: Path, module: str) -> Manifest:
    with open_asset(directory, f"{module}{SOURCE}"), open_asset(directory, FILE) as asset:
        data = asset.read()
    try:
        manifest = Manifest.parse(data)
    except FormatError as error:
        raise AssetError(f"{directory / FILE}: {error.message}") from error
    if not manifest.inputs(module):
        raise RuntimeCompilationError(
            RuntimeResult.INPUT_HASH_ERROR, f"{directory / FILE} has no digest of {module}{SOURCE}"
        )
    return manifest


def _copy_checked(directory: Path, place: str, digest: str, target: Path) -> None:
    """Copy a source or header to where only we can write; what is checked is what is written."""
    with open_asset((directory / place).parent, place) as asset:
        data = asset.read()
    if hashlib.sha256(data).hexdigest() != digest:
        raise RuntimeCompilationError(
            RuntimeResult.INPUT_HASH_ERROR,
            f"{directory / place} is not what was built: its digest is another",
            hint="build the programs again",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def _prepare(output_dir: Path) -> None:
    try:
        output_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeCompilationError(
            RuntimeResult.OUTPUT_DIR_ERROR, f"no place for compiled programs: {error}"
        ) from None


def _found(room: Path, name: str) -> bytes | None:
    """An output made before; None where it is no longer what was made. Raises where others may write it."""
    try:
        with open_asset(room, name) as asset, open_asset(room, f"{name}.sha256") as digest:
            image, wanted = asset.read(), digest.read().decode(errors="replace").strip()
    except AssetError as error:
        raise RuntimeCompilationError(RuntimeResult.RESULT_READ_ERROR, error.message, hint=error.hint) from error
    if hashlib.sha256(image).hexdigest() == wanted:
        return image
    log.warning("%s is not what was compiled: it is compiled again", room / name)
    return None


def _compile(
    manifest: Manifest, module: str, here: Path, trees: Headers, find_clang: Callable[[], str | None]
) -> bytes:
    clang = find_clang()
    if clang is None:
        raise RuntimeCompilationError(RuntimeResult.NEW_COMPILER_ERROR, "there is no clang", hint="install clang")
    places = {"here": str(here), "own": str(trees.own), "common": str(trees.common)}
    flags = manifest.placed(places, os.path.exists)
    middle, made = here / f"{module}.bc", here / f"{module}.o"
    _run([clang, *flags, "-c", str(here / f"{module}{SOURCE}"), "-o", str(middle)], module, here)
    # Read for the machine, whose inline assembly the headers hold; optimised for eBPF.
    translate = ["-target", "bpf", "-O2", "-g", "-Wno-override-module", "-c", str(middle), "-o", str(made)]
    _run([clang, *translate], module, here)
    return made.read_bytes()


def _run(command: list[str], module: str, here: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=here, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeCompilationError(RuntimeResult.NEW_COMPILER_ERROR, f"the compiler did not run: {error}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        first = next((line for line in lines if "error:" in line), done.stderr.strip()[-300:])
        raise RuntimeCompilationError(
            RuntimeResult.COMPILATION_ERROR, f"{module} does not compile: {first.removeprefix(f'{here}/')}"
        )


def _keep(output_dir: Path, name: str, image: bytes) -> None:
    """The digest first: an output is never there without it."""
    digest = hashlib.sha256(image).hexdigest() + "\n"
    try:
        for file, data in ((f"{name}.sha256", digest.encode()), (name, image)):
            with tempfile.NamedTemporaryFile(prefix=f".{file}.", dir=output_dir, delete=False) as work:
                work.write(data)
            Path(work.name).chmod(0o644)
            Path(work.name).replace(output_dir / file)
    except OSError as error:
        raise RuntimeCompilationError(
            RuntimeResult.OUTPUT_FILE_ERROR, f"what was compiled cannot be kept: {error}"
        ) from None
