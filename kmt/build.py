"""The project's eBPF sources to what guests get of them: objects, and sources that compile there.

``[tool.kmt] sources`` and ``include`` say what there is, ``recipes.py`` how it is compiled, ``roots/compiler.py``
compiles it; what only one kernel's guest gets is made by ``build_kernel.py``. The directory is laid out as
``KMT_BPF_DIR`` in the guest::

    co-re/NAME.o  co-re/NAME-debug.o    of NAME.bpf.c; the second with -DDEBUG=1
    runtime/NAME.bpf.c                  the source, and the headers beside it
    runtime/include/...                 the headers of the include directories, and libbpf's
    runtime/manifest.json               the digest of each of these, and the flags to compile them with
    bin/NAME                            a C program for tests, see ``workloads.py``

Laws: named by its content (sources, headers, commands, exact compiler), so a change of any of them builds anew and
nothing else does; equal content gives equal bytes, wherever the project lies; what a source includes of the project
reaches the guest too, or it is an error.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from kmt import recipes, workloads
from kmt.config import Config, matched
from kmt.diagnostics import dependencies, explain
from kmt.errors import BuildError, ConfigError
from kmt.paths import cache, digest, locked, published
from kmt.roots.compiler import Compiler, native
from kmt.roots.rootfs import Progress, quiet

SUFFIX = ".bpf.c"
DEBUG = "-debug"


@dataclass(frozen=True)
class BuiltTree:
    """What guests get: the directory, and its objects by name (``tracer``, ``tracer-debug``).

    ``sources`` by name, relative to the project's root, ``files`` with their digests as the manifest has them;
    ``identity`` stands for all of it but the workloads, and for the compiler.
    """

    dir: Path
    objects: dict[str, Path]
    sources: Mapping[str, Path]
    files: Mapping[str, str]
    identity: str


@dataclass(frozen=True)
class Inputs:
    """(pure) What is built: sources by name, and every file that travels, by its place in the tree."""

    sources: dict[str, Path]
    runtime: dict[str, bytes]
    origins: frozenset[Path]
    """The files in ``runtime``, where the project has them."""


def build(config: Config, *, progress: Progress = quiet) -> BuiltTree:
    """Build what is not built yet. Raises ConfigError for the settings, BuildError with the compiler's words."""
    inputs, programs = survey(config), workloads.survey(config)
    if not inputs.sources and not programs:
        return _publish(config.root, inputs, {}, {}, "")
    compiler = Compiler(progress)
    jobs = {}
    for name, source in inputs.sources.items():
        for debug in (False, True):
            relative = Path(os.path.relpath(source, config.root))
            words = recipes.core(str(relative), include=config.include, target=native(), debug=debug)
            jobs[name + DEBUG * debug] = (relative, words)
    inputs = replace(inputs, runtime={**_libbpf(compiler), **inputs.runtime})
    common = digest(compiler.identity, *(f"{k}\0{digest(v)}" for k, v in sorted(inputs.runtime.items())))
    store = cache("objects")
    objects = {name: store / f"{digest(common, name, *words)}.o" for name, (_, words) in jobs.items()}
    missing = [name for name in objects if not objects[name].is_file()]
    try:
        _compile_all(missing, jobs, objects, _Job(config, inputs, compiler), progress)
        return _publish(config.root, inputs, objects, workloads.compiled(config.root, programs, compiler), common)
    except OSError as error:
        raise BuildError(f"the objects could not be written: {error}") from error


def survey(config: Config) -> Inputs:
    """Find sources and headers. Raises ConfigError for settings that match nothing, BuildError for a clash."""
    sources: dict[str, Path] = {}
    runtime: dict[str, tuple[Path, bytes]] = {}
    for source in _sources(config):
        name = source.name.removesuffix(SUFFIX)
        if name in sources:
            raise BuildError(f"{sources[name]} and {source} would both be {name}.o", hint="rename one of them")
        sources[name] = source
        for path in [source, *sorted(source.parent.glob("*.h"))]:
            _add(runtime, f"runtime/{path.name}", path)
    for directory in config.include:
        room = config.root / directory
        if not room.is_dir():
            raise ConfigError(f"[tool.kmt] include: there is no directory {room}")
        for path in sorted(p for p in room.rglob("*.h") if p.is_file()):
            _add(runtime, f"runtime/include/{path.relative_to(room)}", path)
    origins = frozenset(path.resolve() for path, _ in runtime.values())
    return Inputs(sources, {place: content for place, (_, content) in sorted(runtime.items())}, origins)


def _sources(config: Config) -> list[Path]:
    found = matched(config.root, "sources", config.sources)
    odd = next((p for p in found if not p.name.endswith(SUFFIX) or p.name == SUFFIX), None)
    if odd is not None:
        raise ConfigError(f"[tool.kmt] sources: {odd} is not named NAME{SUFFIX}")
    return found


def _add(runtime: dict[str, tuple[Path, bytes]], place: str, path: Path) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}") from None
    taken = runtime.setdefault(place, (path, content))
    if taken[1] != content:
        raise BuildError(f"{taken[0]} and {path} differ, and both would be {place}", hint="rename one of them")


def _libbpf(compiler: Compiler) -> dict[str, bytes]:
    """The headers that programs include by ``<bpf/...>``: a guest compiles with the ones that we compiled with."""
    compiler.ensure_running()  # or there is nothing to read yet
    headers = sorted((compiler.root / "usr/include/bpf").glob("bpf_*.h"))
    if not headers:
        raise BuildError(f"the compiler environment {compiler.root} has no headers of libbpf")
    return {f"runtime/include/bpf/{path.name}": path.read_bytes() for path in headers}


@dataclass(frozen=True)
class _Job:
    config: Config
    inputs: Inputs
    compiler: Compiler

    def run(self, source: Path, words: Sequence[str], target: Path) -> None:
        """Compile and strip one object, and check that what it includes travels."""
        root = self.config.root
        outside = [(root / d).resolve() for d in self.config.include]
        readable = [d for d in outside if not d.is_relative_to(root)]
        with published(target) as work:
            room, deps = work.parent, work.with_name("deps")
            argv = [*words, "-MMD", "-MF", str(deps), "-o", str(work)]
            done = self.compiler.exec(argv, cwd=root, readable=readable, writable=[room], check=False)
            if done.status:
                raise BuildError(f"{source} does not compile:\n{explain(done.stderr, done.status)}")
            self._check(source, dependencies(deps.read_text()))
            self.compiler.exec(["llvm-strip", "-g", str(work)], writable=[room])

    def _check(self, source: Path, included: Sequence[str]) -> None:
        for name in included:
            path = (self.config.root / name).resolve()
            if path.is_relative_to(self.config.root.resolve()) and path not in self.inputs.origins:
                directory = os.path.relpath(path.parent, self.config.root)
                raise BuildError(
                    f"{source} includes {name}, which no guest would get",
                    hint=f"add {directory!r} to [tool.kmt] include",
                )


def _compile_all(
    names: Sequence[str],
    jobs: dict[str, tuple[Path, list[str]]],
    objects: dict[str, Path],
    job: _Job,
    progress: Progress,
) -> None:
    """Compile side by side; errors of all sources together, once each (a debug object fails as its twin does)."""
    failed: dict[str, BuildError] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = {name: pool.submit(job.run, *jobs[name], objects[name]) for name in names}
        try:
            for number, (name, future) in enumerate(futures.items()):
                progress(f"building {name}.o", number, len(futures))
                try:
                    future.result()
                except BuildError as error:
                    failed[str(error)] = error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failed:
        raise failed.popitem()[1] if len(failed) == 1 else BuildError("\n".join(failed))
    if names:
        progress("building objects", len(names), len(names))


def _publish(
    root: Path, inputs: Inputs, objects: Mapping[str, Path], programs: Mapping[str, Path], common: str
) -> BuiltTree:
    """Lay the tree out, unless it is there; files and directories are for everybody to read and nobody to change."""
    files = recipes.digests({p.removeprefix("runtime/"): content for p, content in inputs.runtime.items()})
    manifest = json.dumps({"flags": recipes.runtime_flags(native()), "files": files}, indent=1)
    identity = digest(common, manifest, json.dumps([(n, p.name) for n, p in sorted(objects.items())]))
    sources = {name: Path(os.path.relpath(path, root)) for name, path in inputs.sources.items()}
    target = cache("built") / (digest(identity, *(path.name for path in programs.values())) if programs else identity)
    if not target.is_dir():
        with locked(f"built-{target.name}"):
            if not target.is_dir():
                with published(target) as work:
                    for place, content in inputs.runtime.items():
                        (work / place).parent.mkdir(parents=True, exist_ok=True)
                        (work / place).write_bytes(content)
                    for name, made in objects.items():
                        (work / "co-re").mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(made, work / "co-re" / f"{name}.o")
                    for name, made_once in programs.items():
                        (work / "bin").mkdir(exist_ok=True)
                        shutil.copyfile(made_once, work / "bin" / name)
                    for room in ("co-re", "runtime"):
                        (work / room).mkdir(parents=True, exist_ok=True)
                    (work / "runtime/manifest.json").write_text(manifest)
                    for_everybody(work)
    placed = {name: target / "co-re" / f"{name}.o" for name in objects}
    return BuiltTree(target, placed, sources, files, identity)


def for_everybody(tree: Path) -> None:
    """Let everybody read a tree, run what is in its ``bin``, and nobody but its owner change it."""
    for path in [tree, *tree.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.parent == tree / "bin" else 0o644)
