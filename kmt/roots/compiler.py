"""The compiler environment: clang, llvm and headers of Debian in a root of their own, so that the host needs none.

Its life: ``start`` makes it (mmdebstrap, named by its packages), ``ensure_running`` starts it unless it
``is_running``, ``exec`` runs one command in it, ``remove`` takes it away. ``ensure_ready`` adds what compiling for
the other architecture takes. A command in it sees the directories it is given, at their own paths, nothing else of
the host, no network and no privileges; it ends with its caller, and leaves no mount.

``disk`` is the same compiler for guests, as a layer over their root.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from debian.debfile import DebFile

from kmt import archive, proc
from kmt.errors import BuildError, KmtError
from kmt.hints import task
from kmt.paths import cache, locked, published
from kmt.recipes import TARGETS, Target
from kmt.roots import image, rootfs
from kmt.roots.rootfs import Progress, quiet

LAYOUT = 1
"""Raise it when the same packages would give another environment."""
TOOLS = ("clang", "llc", "llvm-strip")
"""What guests get of it; more of llvm would pull libraries that a guest does not have."""
_PARTS = ("bin", "include", "lib", "lib64", "libexec", "sbin", "share")
_OF_LIBC = re.compile(r"(lib(c|m|dl|pthread|rt|resolv|util|anl|nsl)\.so\.\d+|ld-linux\S*|linux-vdso\S*)")


def command(
    root: Path,
    argv: Sequence[str],
    *,
    cwd: Path = Path("/"),
    readable: Iterable[Path] = (),
    writable: Iterable[Path] = (),
    headers: Iterable[str] = (),
) -> list[str]:
    """(pure) The command that runs ``argv`` in the environment ``root``, in a file system that exists only for it.

    Its own files are read-only; ``readable`` and ``writable`` are there at the paths they have outside, ``headers``
    of its /usr/src in /usr/src. Raises BuildError for a directory that would hide the compiler itself.
    """
    words = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--die-with-parent"]
    # As root on the host it keeps one privilege: to read projects of other users.
    words += ["--new-session", "--cap-drop", "ALL", "--cap-add", "CAP_DAC_OVERRIDE"]
    for part in _PARTS:
        words += ["--ro-bind-try", f"{root}/usr/{part}", f"/usr/{part}"]
        if part in ("bin", "lib", "lib64", "sbin"):
            words += ["--symlink", f"usr/{part}", f"/{part}"]
    for name in headers:
        words += ["--ro-bind", f"{root}/usr/src/{name}", f"/usr/src/{name}"]
    words += ["--ro-bind", f"{root}/etc", "/etc", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for option, paths in (("--ro-bind", readable), ("--bind", writable)):
        for path in paths:
            _refuse(path)
            words += [option, str(path), str(path)]
    return [*words, "--chdir", str(cwd), *rootfs.CLEAN, "--", *argv]


def _refuse(path: Path) -> None:
    taken = ["/", "/usr", "/usr/src", "/proc", "/dev", "/tmp"]
    inside = ["/etc", "/bin", "/sbin", "/lib", "/lib64", *(f"/usr/{part}" for part in _PARTS)]
    if not path.is_absolute() or str(path) in taken or any(path.is_relative_to(p) for p in inside):
        raise BuildError(
            f"{path} cannot be compiled where it is: the compiler's own files are there",
            hint="move the project to another directory",
        )


class Compiler:
    """The environment of this user's cache. Making it takes half a minute, once; using it starts one process."""

    def __init__(self, progress: Progress = quiet) -> None:
        self.recipe = rootfs.recipe()
        self._progress = progress
        self._checked = False
        self.home = cache("compilers") / key(self.recipe)

    @property
    def root(self) -> Path:
        """The environment's root directory."""
        return self.home / "root"

    @property
    def identity(self) -> str:
        """The exact versions in it, as a digest: objects made by another identity are other objects."""
        self.ensure_running()
        return hashlib.sha256((self.home / "versions.json").read_bytes()).hexdigest()

    def is_running(self) -> bool:
        """True when it is whole and its compiler answers (asked once)."""
        if not self._checked and (self.home / "versions.json").is_file():
            answer = proc.run(command(self.root, ["clang", "--version"]), check=False)
            self._checked = answer.status == 0
        return self._checked

    def ensure_running(self) -> None:
        """Start it unless it is running. Raises BuildError with the reason."""
        if self.is_running():
            return
        try:
            rootfs.need("bwrap")
            with locked(f"compiler-{self.home.name}"):
                if not self.is_running():  # another run may have started it meanwhile
                    self.start()
        except BuildError:
            raise
        except KmtError as error:
            raise BuildError(f"no compiler environment could be made: {error.message}", hint=error.hint) from error
        except OSError as error:
            raise BuildError(f"no compiler environment could be made: {error}") from error

    def start(self) -> None:
        """Make it anew, in place of one that is there. Raises ImageError; BuildError when it does not answer then."""
        self._checked = False
        rootfs.sweep(self.home)
        with published(self.home) as work:
            work.mkdir()
            rootfs.make(work / "root", self.recipe.compiler, label="compiler", progress=self._progress)
            versions = json.dumps(image.debian_versions(work / "root"), indent=1, sort_keys=True)
            (work / "versions.json").write_text(versions)
        if not self.is_running():
            answer = proc.run(command(self.root, ["clang", "--version"]), check=False)
            raise BuildError(f"the compiler environment does not run:\n{answer.tail()}", hint=f"try: {task('doctor')}")

    def exec(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        readable: Sequence[Path] = (),
        writable: Sequence[Path] = (),
        check: bool = True,
    ) -> proc.Completed:
        """Run one command in it, starting it when it must be; a bad status is a BuildError with ``check``.

        ``cwd`` is readable, and so are in /usr/src the kernel headers that ``ensure_ready`` fetched.
        """
        self.ensure_running()
        seen = [*([cwd] if cwd else []), *readable]
        names = [path.name for path in sorted((self.root / "usr/src").glob("linux-headers-*"))]
        words = command(self.root, argv, cwd=cwd or Path("/"), readable=seen, writable=writable, headers=names)
        return proc.run(words, check=check, error=BuildError)

    def remove(self) -> None:
        """Take it away; no error when it is not there."""
        self._checked = False
        with locked(f"compiler-{self.home.name}"):
            rootfs.remove(self.home)

    def is_ready(self, machine: str) -> bool:
        """True when what was compiled for ``machine`` (``aarch64``) finds that machine's kernel headers."""
        return (self.home / f"ready-{machine}").is_file() and self.headers(machine) != []

    def ensure_ready(self, machine: str) -> None:
        """Prepare for compiling against the kernel headers of ``machine`` unless that was done."""
        self.ensure_running()
        if not self.is_ready(machine):
            with locked(f"compiler-{self.home.name}"):
                if not self.is_ready(machine):
                    self.prepare_cross_headers(machine)

    def prepare_cross_headers(self, machine: str) -> None:
        """Fetch the kernel headers of that machine from the archive and unpack them. Raises BuildError."""
        target = TARGETS.get(machine)
        if target is None:
            raise BuildError(f"no compiling for {machine!r}", hint=f"known: {', '.join(TARGETS)}")
        suite = self.recipe.suite
        try:
            (meta,) = archive.fetch_packages(suite, [f"linux-headers-cloud-{target.debian}"], arch=target.debian)
            (name,) = _header_packages(meta)
            (headers,) = archive.fetch_packages(suite, [name], arch=target.debian)
            common = archive.fetch_packages(suite, _header_packages(headers), arch=target.debian)
            for package in (headers, *common):
                proc.run(["dpkg-deb", "-x", package, self.root])
        except KmtError as error:
            raise BuildError(f"no kernel headers for {machine}: {error}") from error
        (self.home / f"ready-{machine}").write_text(f"{name}\n")

    def headers(self, machine: str) -> list[str]:
        """Where a command finds the kernel headers of ``machine``: the machine's own, then those common to all."""
        mark = self.home / f"ready-{machine}"
        name = mark.read_text().strip() if mark.is_file() else ""
        release = name.removeprefix("linux-headers-").removesuffix(f"-cloud-{TARGETS[machine].debian}")
        found = [name, f"linux-headers-{release}-common"]
        return [f"/usr/src/{n}" for n in found] if all((self.root / "usr/src" / n).is_dir() for n in found) else []


def key(recipe: rootfs.Recipe) -> str:
    """(pure) The environment's name: a digest of all that decides what is in it."""
    parts = [LAYOUT, recipe.suites, sorted(recipe.compiler), rootfs.EXCLUDED]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def native() -> Target:
    """The architecture of this machine's guests."""
    return TARGETS[platform.machine()]


def disk(progress: Progress = quiet) -> Path:
    """The compiler for guests: an erofs image to mount as one more layer of their root. Made once."""
    compiler = Compiler(progress)
    target = compiler.home.with_suffix(".erofs")
    if not target.is_file():
        compiler.ensure_running()
        with locked(f"compiler-disk-{compiler.home.name}"):
            if not target.is_file():
                rootfs.sweep(target)
                progress("compiler disk: packing", 0, 1)
                with published(target) as work:
                    tree = work.with_name("tree")
                    _layer(compiler, tree)
                    rootfs.pack(tree, work)
                progress("compiler disk: ready", 1, 1)
    return target


def _layer(compiler: Compiler, tree: Path) -> None:
    """The tools, the libraries they load (but libc, which is the guest's), their headers and everybody's."""
    root = compiler.root
    (llvm,) = root.glob("usr/lib/llvm-*")
    own = llvm.relative_to(root)
    for name in TOOLS:
        tool = (llvm / "bin" / name).resolve()
        _copy(tool, tree / own / "bin" / tool.name)
        if tool.name != name:
            (tree / own / "bin" / name).symlink_to(tool.name)
        (tree / "usr/bin").mkdir(parents=True, exist_ok=True)
        (tree / "usr/bin" / name).symlink_to(f"../lib/{llvm.name}/bin/{name}")
    tools = [f"/{own}/bin/{name}" for name in TOOLS]
    for library in libraries(compiler.exec(["ldd", *tools]).stdout):
        found = next(p for p in (root / f"usr/lib/{t.triplet}" / library for t in TARGETS.values()) if p.exists())
        _copy(found.resolve(), tree / found.relative_to(root))
    shutil.copytree(llvm / "lib/clang", tree / own / "lib/clang", symlinks=True)
    shutil.copytree(root / "usr/include", tree / "usr/include", symlinks=True, ignore=shutil.ignore_patterns("c++"))
    shutil.copytree(root / "usr/lib/linux", tree / "usr/lib/linux", symlinks=True)  # where headers link to


def libraries(said: str) -> list[str]:
    """(pure) The libraries in ldd's words, without those of libc."""
    names = re.findall(r"^\s+(\S+) (?:=>|\()", said, re.MULTILINE)
    return sorted({name.rpartition("/")[2] for name in names if not _OF_LIBC.fullmatch(name.rpartition("/")[2])})


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        os.link(source, target)
        return
    shutil.copyfile(source, target)
    target.chmod(source.stat().st_mode)


def _header_packages(package: Path) -> list[str]:
    """The header packages that a package depends on."""
    depends = DebFile(str(package)).debcontrol().get("Depends", "")
    return re.findall(r"\blinux-headers-[^\s,(|:]+", depends)
