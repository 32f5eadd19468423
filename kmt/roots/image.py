"""The guest's root image: Debian's userland, the host's Python packages, compiled; read-only, one for every kernel.

Laws: named by what went in (``key``): the same packages and pins never build twice, a change of any builds anew;
built once under a lock, published by rename; everything Python in it is byte-compiled by the guest's own Python.
Beside it lies a manifest of the exact versions that came out. A kernel's own files are ``disks.py``'s.

What the image has for the guest's init: the empty mount points ``MOUNT_POINTS`` and the user's packages in
``/opt/kmt/python``, which is on ``sys.path`` before Debian's own.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kmt import proc
from kmt.config import Config
from kmt.errors import ImageError
from kmt.paths import cache, locked, published
from kmt.roots import requirements, rootfs
from kmt.roots.rootfs import Progress, Recipe, quiet

LAYOUT = 2
"""Raise it when the same packages would give another image."""
MOUNT_POINTS = ("proc", "sys", "dev", "run", "tmp", "kernel", "opt/kmt/compiler", "usr/lib/modules", "usr/src")
PYTHON = "opt/kmt/python"
HYPOTHESIS = "opt/kmt/hypothesis"
"""Hypothesis's storage directory in guests; ``guest/runner.py`` says so to Hypothesis."""
_PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(41, 4, -1)), "manylinux2014_x86_64")
"""Wheels that glibc 2.41 of trixie can load."""


def ensure(config: Config, progress: Progress = quiet) -> Path:
    """The image for a project, made if it is not there. Raises ImageError, or ConfigError for a bad requirement."""
    recipe = rootfs.recipe()
    packages = sorted({*recipe.guest, *config.packages})
    pins = wanted_python(config, recipe)
    target = cache("images") / f"{key(recipe, packages, pins)}.erofs"
    if not target.is_file():
        with locked(f"image-{target.stem}"):
            if not target.is_file():
                rootfs.sweep(target)
                try:
                    _build(target, packages, pins, recipe, progress)
                except OSError as error:
                    raise rootfs.failure("the guest's image could not be written", [str(error)]) from error
    return target


def manifest(image: Path) -> dict[str, Any]:
    """What is in an image: ``debian`` and ``python``, each a name to its version, and the image's ``sha256``."""
    value: dict[str, Any] = json.loads(image.with_suffix(".json").read_text())
    return value


def key(recipe: Recipe, packages: Sequence[str], pins: Sequence[str]) -> str:
    """(pure) The image's name: a digest of all that decides what is in it."""
    parts = [LAYOUT, recipe.suites, recipe.python, sorted(packages), sorted(pins), rootfs.EXCLUDED, MOUNT_POINTS]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def wanted_python(config: Config, recipe: Recipe) -> list[str]:
    """The exact Python requirements of a project's guests, from what this environment has installed."""
    return list(_pins(config.requirements, recipe.python))


@functools.cache  # a run asks several times a guest, and no package comes or goes meanwhile
def _pins(wanted: tuple[str, ...], python: str) -> tuple[str, ...]:
    always = [name for name in requirements.ALWAYS if _installed(name)]
    return tuple(requirements.pinned([*always, *wanted], _installed, requirements.environment(python)))


def pip_command(target: Path, python: str, pins: Sequence[str]) -> list[str]:
    """(pure) This Python's own pip, so that its configuration counts, fetching wheels for the guest's Python."""
    return [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("--target", str(target), "--python-version", python, "--implementation", "cp"),
        *(word for platform in _PLATFORMS for word in ("--platform", platform)),
        *("--only-binary=:all:", "--no-compile", *pins),
    ]


def _installed(name: str) -> requirements.Installed | None:
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return requirements.Installed(found.version, tuple(found.requires or ()))


def _build(target: Path, packages: list[str], pins: list[str], recipe: Recipe, progress: Progress) -> None:
    label = "guest image"
    rootfs.need("mkfs.erofs", "bwrap")
    with published(target) as work:
        root = work.with_name("root")
        rootfs.make(root, packages, label=label, progress=progress)
        progress(f"{label}: Python packages", 0, 3)
        _add_python(root, recipe.python, pins)
        _settle(root)
        progress(f"{label}: compiling Python", 1, 3)
        _compile(root, recipe.python)
        if "hypothesis" in python_versions(root / PYTHON):
            _fill_hypothesis(root)
        progress(f"{label}: packing", 2, 3)
        rootfs.readable(root)
        rootfs.pack(root, work)
        record = {"debian": debian_versions(root), "python": python_versions(root / PYTHON), "pins": pins}
        record["sha256"] = _digest(work)
        with published(target.with_suffix(".json")) as notes:
            notes.write_text(json.dumps(record, indent=1, sort_keys=True))
        rootfs.remove(root)
    progress(f"{label}: ready", 3, 3)


def _add_python(root: Path, python: str, pins: list[str]) -> None:
    """Install the pins; a .pth in the first site directory puts them before Debian's packages."""
    site = root / f"usr/local/lib/python{python}/dist-packages"
    if not (root / f"usr/bin/python{python}").exists():
        raise ImageError(f"vms/image.toml says Python {python}, and its suite has another")
    where = root / PYTHON
    where.mkdir(parents=True)
    site.mkdir(parents=True, exist_ok=True)
    (site / "kmt.pth").write_text(f"/{PYTHON}\n")
    if not pins:
        return
    done = proc.run(pip_command(where, python, pins), check=False)
    if done.status:
        raise pip_failure(done.stderr)
    shutil.rmtree(where / "bin", ignore_errors=True)  # scripts that name the host's Python


def _settle(root: Path) -> None:
    """Mount points, names for loopback, and nothing of the machine that the root was made on."""
    for name in MOUNT_POINTS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("hostname", "resolv.conf", "apt/sources.list", "apt/apt.conf.d/99mmdebstrap"):
        (root / "etc" / name).unlink(missing_ok=True)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost ip6-localhost\n")


def pip_failure(said: str) -> ImageError:
    """(pure) The error that shows what pip says is wrong, which names the requirement."""
    if "No module named pip" in said:
        return ImageError(f"{sys.executable} has no pip", hint=f"try: {sys.executable} -m ensurepip")
    lines = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    words = [line if len(line) < 300 else f"{line[:300]} ..." for line in lines[-3:]] or said.splitlines()[-3:]
    if any("No matching distribution" in line for line in words):
        failure = "\n  ".join(["a Python requirement has no wheel for the guest:", *words])
        return ImageError(failure, hint="see [tool.kmt] requirements; guests take wheels only, for Linux x86-64")
    return rootfs.failure("the guest's Python requirements could not be installed", words)


def _compile(root: Path, python: str) -> None:
    """Byte code for all of it, never compared with its source again: reading and checking it all takes a guest 50 s."""
    words = ["python3", "-m", "compileall", "-qq", "-f", "-j0", "--invalidation-mode", "unchecked-hash"]
    trees = ["/usr/lib/python3", f"/usr/lib/python{python}", f"/{PYTHON}"]
    done = proc.run(rootfs.inside(root, [*words, *trees]), check=False)
    # Status 1 is also a file that is no valid Python on purpose; nothing compiled at all is something else.
    if done.status not in (0, 1) or not list((root / f"usr/lib/python{python}/__pycache__").glob("os.*.pyc")):
        raise rootfs.failure("the guest's Python could not compile its modules", done.tail().splitlines())


def _fill_hypothesis(root: Path) -> None:
    """Hypothesis's tables of Unicode, which it makes when text is first drawn: 8 s in an emulated guest."""
    draw = """
import hypothesis as h
h.settings(database=None, max_examples=5)(h.given(h.strategies.text())(lambda text: None))()
"""
    where = f"HYPOTHESIS_STORAGE_DIRECTORY=/{HYPOTHESIS}"
    done = proc.run(rootfs.inside(root, ["env", where, "python3", "-c", draw]), check=False)
    if done.status:
        raise rootfs.failure("Hypothesis does not run in the guest image", done.tail().splitlines())


def debian_versions(root: Path) -> dict[str, str]:
    """The installed packages of a root directory and their versions."""
    from debian.deb822 import Packages  # runs with an image need not wait for it

    with (root / "var/lib/dpkg/status").open("rb") as status:
        return {p["Package"]: p["Version"] for p in Packages.iter_paragraphs(status, use_apt_pkg=False)}


def python_versions(directory: Path) -> dict[str, str]:
    """The distributions in a directory of Python packages and their versions."""
    names = (re.fullmatch(r"(.+)-([^-]+)\.dist-info", path.name) for path in directory.glob("*.dist-info"))
    return {match[1]: match[2] for match in names if match}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
