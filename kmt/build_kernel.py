"""What only one kernel's guest gets of the programs: objects made for it, and its BTF for when it shows none.

It is laid over the tree of ``build.py``::

    NAME.o                              prebuilt: made with the kernel's BTF, no relocations; its release is in it
    runtime/compiled/NAME-....o         compiled against the kernel's headers, as the runtime stage would
    runtime/compiled/NAME-....o.sha256  its digest
    co-re/btf/minimized-btfs.tar.xz     the embedded collection, see ``embedded.py``

Laws: named by its content, like the common tree; a prebuilt object that would need BTF to be loaded is an error; a
kernel without BTF gets no prebuilt objects, one without headers none that are compiled against them, and it is said.
"""

from __future__ import annotations

import hashlib
import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kmt import embedded, recipes
from kmt.archive import btf, bzimage
from kmt.build import BuiltTree, for_everybody
from kmt.config import Config
from kmt.diagnostics import explain
from kmt.errors import BuildError, ConfigError
from kmt.kernel import Kernel
from kmt.paths import cache, digest, locked, published
from kmt.roots.compiler import Compiler, native

LAYOUT = "1"
"""Raise it when the same input would give other files."""
RELEASE_SECTION = "kernel_release"
"""Of a prebuilt object: the release it was made for, as text."""


@dataclass(frozen=True)
class KernelTree:
    """The directory (None: nothing is made for this kernel), and what is not in it and why."""

    dir: Path | None
    left_out: tuple[str, ...] = ()


def build(config: Config, common: BuiltTree, kernel: Kernel) -> KernelTree:
    """Build what is not built yet. Raises BuildError, ArchiveError or ConfigError."""
    names = chosen(config, common)
    if not common.objects or not kernel.digest:
        return KernelTree(None)
    compiler = Compiler()
    work = _Work(config, common, kernel, compiler, btf.raw(kernel))
    recipe = recipes.prebuilt("", "", include=config.include, target=native())
    identity = digest(common.identity, kernel.digest, LAYOUT, *recipe, *names)
    target = cache("built") / f"{identity}-{kernel.release}"
    if not target.is_dir():
        with locked(f"built-{identity}"):
            if not target.is_dir():
                with published(target) as room:
                    (room / "runtime/compiled").mkdir(parents=True)
                    work.fill(room, names)
                    for_everybody(room)
    left_out = []
    if names and work.btf is None:
        left_out.append(f"prebuilt programs: {kernel.release} carries no BTF")
    if names and not kernel.headers:
        left_out.append(f"programs compiled against headers: {kernel.release} came without any")
    return KernelTree(target, tuple(left_out))


def directories(config: Config, common: BuiltTree, kernel: Kernel) -> list[Path]:
    """What is KMT_BPF_DIR in that kernel's guest: the common directory, and the one that is laid over it."""
    own = build(config, common, kernel).dir
    return [common.dir, *([own] if own else [])]


def chosen(config: Config, common: BuiltTree) -> list[str]:
    """The names of the sources that ``[tool.kmt] prebuilt`` means. Raises ConfigError for a glob that means none."""
    found: set[str] = set()
    for pattern in config.prebuilt:
        meant = {n for n, p in common.sources.items() if p.match(pattern)}
        if not meant:
            raise ConfigError(f"[tool.kmt] prebuilt: {pattern!r} matches none of the sources")
        found |= meant
    return sorted(found)


@dataclass(frozen=True)
class _Work:
    config: Config
    common: BuiltTree
    kernel: Kernel
    compiler: Compiler
    btf: Path | None

    def fill(self, room: Path, names: Sequence[str]) -> None:
        """Make everything in ``room``."""
        if self.btf is not None:
            types = self._types()
            for name in names:
                self._prebuilt(name, types, room / f"{name}.o")
            objects = [path for name, path in self.common.objects.items() if not name.endswith("-debug")]
            collection = room / embedded.PLACE
            collection.parent.mkdir(parents=True)
            embedded.write(collection, {self.kernel.release: embedded.minimized(self.compiler, self.btf, objects)})
        if self.kernel.headers:
            for name in names:
                self._compiled(name, room / "runtime/compiled")

    def _types(self) -> Path:
        """The directory of the kernel's ``vmlinux.h``."""
        assert self.btf is not None
        target = cache("types") / digest(self.compiler.identity, self.btf.read_bytes())
        if not target.is_dir():
            with locked(f"types-{target.name}"), published(target) as work:
                work.mkdir()
                argv = ["bpftool", "btf", "dump", "file", str(self.btf), "format", "c"]
                said = self.compiler.exec(argv, readable=[self.btf.parent])
                (work / "vmlinux.h").write_text(said.stdout)
        return target

    def _prebuilt(self, name: str, types: Path, target: Path) -> None:
        root, source = self.config.root, str(self.common.sources[name])
        outside = [p for d in self.config.include if not (p := (root / d).resolve()).is_relative_to(root)]
        words = recipes.prebuilt(source, str(types), include=self.config.include, target=native())
        self._run([*words, "-o", str(target)], source, cwd=root, readable=[*outside, types], writable=[target.parent])
        release = target.with_suffix(".release")
        release.write_text(self.kernel.release)
        add = f"{RELEASE_SECTION}={release}"
        self.compiler.exec(["llvm-objcopy", "-g", "--add-section", add, str(target)], writable=[target.parent])
        release.unlink()
        if relocations(target.read_bytes()):
            raise BuildError(
                f"{source}: as a prebuilt object it has CO-RE relocations, so it needs BTF to be loaded",
                hint="where COMPILE_PREBUILT is defined, take types from vmlinux.h and read with BPF_PROBE_READ",
            )

    def _compiled(self, name: str, room: Path) -> None:
        common, kernel = self.common, self.kernel
        flags = recipes.runtime_flags(native())
        here = common.dir / "runtime"
        places = {"here": str(here), "own": str(kernel.headers[0]), "common": str(kernel.headers[-1])}
        words = recipes.placed(flags, places, os.path.exists)
        uname = (kernel.release, bzimage.version(kernel.vmlinuz), platform.machine())
        target = room / recipes.output_name(name, uname, recipes.inputs(name, common.files), flags)
        middle = target.with_suffix(".bc")
        argv = ["clang", *words, "-c", str(here / f"{name}.bpf.c"), "-o", str(middle)]
        self._run(argv, f"{name}.bpf.c", cwd=here, readable=kernel.headers, writable=[room])
        self._run(recipes.translated(str(middle), str(target)), f"{name}.bpf.c", writable=[room])
        middle.unlink()
        self.compiler.exec(["llvm-strip", "-g", str(target)], writable=[room])
        target.with_name(f"{target.name}.sha256").write_text(hashlib.sha256(target.read_bytes()).hexdigest() + "\n")

    def _run(
        self,
        argv: Sequence[str],
        source: str,
        *,
        writable: Sequence[Path],
        readable: Sequence[Path] = (),
        cwd: Path | None = None,
    ) -> None:
        done = self.compiler.exec(argv, cwd=cwd, readable=readable, writable=writable, check=False)
        if done.status:
            said = explain(done.stderr, done.status)
            raise BuildError(f"{source} does not compile for {self.kernel.release}:\n{said}")


def relocations(image: bytes) -> int:
    """(pure) Bytes of CO-RE relocations in an object: ``core_relo_len`` of ``.BTF.ext`` (linux/btf.h, libbpf)."""
    section = btf.section(image, ".BTF.ext")
    return int(struct.unpack_from("<I", section, 28)[0]) if len(section) >= 32 else 0
