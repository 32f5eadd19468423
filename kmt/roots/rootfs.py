"""Debian root directories: what is in them (``vms/image.toml``), made by mmdebstrap, and how to run something in one.

Laws: no privileges are asked for: as an ordinary user it all happens in a user namespace; nothing is mounted
outside namespaces that end with the process, so whatever kills it leaves no mount; every file of a finished root
belongs to the caller. The guest's image is made of one by ``image.py``, the compiler environment by ``compiler.py``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmt import proc
from kmt.archive import mirror
from kmt.boot.disks import erofs
from kmt.errors import ImageError
from kmt.hints import task
from kmt.paths import PACKAGE, cache_base

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and of how much."""

RECIPE = PACKAGE / "vms" / "image.toml"
"""The package lists that travel with the package (in a checkout ``kmt/vms`` is a link to ``vms``)."""

EXCLUDED = ("doc", "info", "lintian", "linda", "locale", "man")
"""Directories of /usr/share that no guest needs."""

CLEAN = ("--clearenv", "--setenv", "PATH", "/usr/sbin:/usr/bin:/sbin:/bin", "--setenv", "LANG", "C.UTF-8")
"""(bwrap) The whole environment of what runs in a root."""

_STEPS = (
    "running apt-get update",
    "downloading packages with apt",
    "extracting archives",
    "installing essential packages",
    "installing remaining packages inside the chroot",
    "cleaning package lists and apt cache",
    "creating tarball",
)
_NAMESPACES = ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
_COMPLAINT = re.compile(r"E: |dpkg: error|(\S*/)?(tar|unshare|newuidmap|newgidmap|setpriv): |Can't ")
_ECHO = re.compile(
    r"(setup failed|failed to run|apt-get .* failed|env .* failed|look like a tar archive|due to previous errors"
    r"|Some index files failed|could not be parsed or opened)"
)
# The first that matches: a limit on namespaces, too, is "No space left on device".
_HINTS = (
    (r"/etc/sub[ug]id", "give yourself some: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER"),
    (
        r"unshare: (unshare failed|mount)|new namespace",
        "no namespaces may be made here: is it a container without them?",
    ),
    (
        r"No space left on device|enough free space",
        "free some space in {cache}, or set KMT_CACHE to where there is more",
    ),
    (r"Unable to locate package", "is it spelled right in [tool.kmt] packages?"),
    (r"Could not (resolve|connect)|Failed to fetch|Connection timed out", "does `apt-get update` work?"),
)


@dataclass(frozen=True)
class Recipe:
    """``vms/image.toml``: the suite, its Python as ``3.13``, and the packages of both roots."""

    suite: str
    suites: tuple[str, ...]
    python: str
    guest: tuple[str, ...]
    compiler: tuple[str, ...]


def recipe() -> Recipe:
    """Read the packaged recipe."""
    table = tomllib.loads(RECIPE.read_text())
    return Recipe(
        table["suite"], tuple(table["suites"]), table["python"], tuple(table["guest"]), tuple(table["compiler"])
    )


def quiet(label: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def apt_options(dump: str) -> list[str]:
    """(pure) What of this machine's apt configuration it takes to reach its mirror: proxies and certificates."""
    return re.findall(r"^(?:Acquire::https?::.*(?:Proxy|Cert|Key|CAInfo|Verify)\S* .*;)$", dump, re.MULTILINE)


def command(
    packages: Iterable[str], suite: str, sources: Sequence[str], *, root: bool, options: Sequence[str] = ()
) -> list[str]:
    """(pure) The mmdebstrap call that writes a root as tar to standard output; ``root``: the caller is root.

    mmdebstrap's root mode knows the inside of a user namespace. Its own unshare mode would do without the outer
    one, but go on for minutes when its first process is killed, and needs a directory that others can enter.
    """
    user = () if root else ("--user", "--map-root-user", "--map-auto")
    return [
        "unshare",
        *user,
        *_NAMESPACES,
        # When its reader goes away, mmdebstrap hangs up on its whole process group, which would be ours.
        "setsid",
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        "--format=tar",
        '--aptopt=APT::Install-Recommends "false"',
        '--aptopt=Acquire::Languages "none"',
        *(f"--aptopt={option}" for option in options),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in EXCLUDED),
        "--dpkgopt=force-unsafe-io",
        f"--include={','.join(sorted(set(packages)))}",
        suite,
        "-",
        *sources,
    ]


def make(target: Path, packages: Iterable[str], *, label: str, progress: Progress = quiet) -> None:
    """Make the directory ``target``: trixie's minimum and ``packages``, without what they only recommend.

    The caller publishes it (``paths.published``): on an error or an interruption half of it may be there.
    Raises ImageError with mmdebstrap's last words.
    """
    need("mmdebstrap", "unshare", "tar")
    made = recipe()
    root = os.geteuid() == 0
    if not root:
        need("newuidmap")
    options = apt_options(proc.run(["apt-config", "dump", "Acquire"], error=ImageError).stdout)
    argv = command(packages, made.suite, mirror.sources(made.suites), root=root, options=options)
    work = target.with_name(f"{target.name}.tmp")
    work.mkdir(parents=True)
    target.mkdir()
    try:
        _unpack(argv, target, work, label, progress)
    finally:
        remove(work)
    readable(target)


def readable(root: Path) -> None:
    """Let its owner change and everybody read all of a tree, whatever the umask was when it was made."""
    proc.run(["chmod", "-R", "u+rwX,go+rX", root], error=ImageError)


def _unpack(argv: list[str], target: Path, work: Path, label: str, progress: Progress) -> None:
    """Run mmdebstrap into tar; both write their words into one pipe, which ends when both have."""
    ear, mouth = os.pipe()
    with os.fdopen(ear, errors="replace") as said:
        processes: list[subprocess.Popen[bytes]] = []
        try:
            try:
                build = proc.spawn(argv, stdout=subprocess.PIPE, stderr=mouth, env={"TMPDIR": str(work)})
                processes.append(build)
                unpack = ["tar", "-x", "-p", "--no-same-owner", "--exclude=./dev/*", "-C", str(target)]
                processes.append(proc.spawn(unpack, stdin=build.stdout, stderr=mouth))
            finally:
                os.close(mouth)
            assert build.stdout is not None
            build.stdout.close()
            last = _listen(said, label, progress)
            statuses = [p.wait() for p in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    if any(statuses):
        raise failure(f"{label}: mmdebstrap failed", telling(last))


def _listen(said: Iterable[str], label: str, progress: Progress) -> list[str]:
    """Turn mmdebstrap's words into progress; the last of the others."""
    last: deque[str] = deque(maxlen=60)
    for line in said:
        words = line.removeprefix("I: ").strip().rstrip(".")
        if words in _STEPS:
            progress(f"{label}: {words}", _STEPS.index(words), len(_STEPS))
        elif words and not line.startswith("I: "):
            last.append(words)
    return list(last)


def telling(said: Sequence[str], most: int = 6) -> list[str]:
    """(pure) The lines that say why: of each program its errors, without those that only pass on that one failed."""
    errors = [line for line in said if _COMPLAINT.match(line) and not _ECHO.search(line)]
    return (errors or list(said))[-most:]


def failure(what: str, words: Sequence[str]) -> ImageError:
    """(pure) The error that shows a tool's last words, and what to do about the usual causes."""
    text = "\n  ".join([f"{what}:", *words]) if words else what
    hint = next((hint for cause, hint in _HINTS if re.search(cause, text)), f"try: {task('doctor')}")
    return ImageError(text, hint=hint.format(cache=cache_base()))


def need(*programs: str) -> None:
    """Raise ImageError naming the package of the first program that is not installed."""
    packages = {"mkfs.erofs": "erofs-utils", "newuidmap": "uidmap", "bwrap": "bubblewrap"}
    for program in programs:
        if proc.which(program) is None:
            raise ImageError(
                f"{program} is not installed", hint=f"install the package {packages.get(program, program)}"
            )


def pack(tree: Path, target: Path) -> None:
    """``tree`` as an erofs image. Raises ImageError that says what to do when there is no space."""
    try:
        erofs(tree, target)
    except ImageError as error:
        raise failure("mkfs.erofs failed", error.message.splitlines()[1:]) from None


def remove(path: Path) -> None:
    """Remove a tree, with what mmdebstrap as an ordinary user left in it under subordinate ids."""
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        proc.run(["unshare", "--user", "--map-root-user", "--map-auto", "--", "rm", "-rf", path], check=False)


def sweep(target: Path) -> None:
    """Remove what killed runs left beside ``target``; the caller holds its lock."""
    for left in target.parent.glob(f".{target.name}.*"):
        remove(left)


def inside(root: Path, argv: Sequence[str]) -> list[str]:
    """(pure) The command that runs ``argv`` as root in ``root``, which it may change, without a network."""
    return [
        *("bwrap", "--unshare-all", "--die-with-parent", "--bind", str(root), "/"),
        *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--uid", "0", "--gid", "0", "--chdir", "/"),
        *CLEAN,
        *("--", *argv),
    ]
