"""What travels to a machine over SSH before anything of the project: the agent, and Python packages that it lacks.

Laws: pytest and Hypothesis are those of this side, with all they need, for their reports and examples cross; of
what the project requires only what is missing there is sent; a compiled package goes only to a Python of the same
kind, and one that cannot go is named.
"""

from __future__ import annotations

import io
import sysconfig
import tarfile
from collections.abc import Iterable, Sequence
from importlib import metadata, resources
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from kmt.backends.ssh_words import Facts
from kmt.roots.requirements import Installed, environment, pinned

ALWAYS = ("pytest", "hypothesis")
"""What must be the same on both sides."""


def program() -> bytes:
    """``kmt/guest/far.py`` as the one line that its loader reads."""
    return repr(resources.files("kmt.guest").joinpath("far.py").read_text()).encode() + b"\n"


def choose(required: Sequence[str], facts: Facts) -> tuple[list[metadata.Distribution], list[str]]:
    """What is to be sent to a machine with these facts, and the names of what it lacks and cannot be sent.

    ``required`` is ``[tool.kmt] requirements``. Raises ConfigError where one is none.
    """
    have = {canonicalize_name(name): version for name, version in facts.packages.items()}
    always = _names([name for name in ALWAYS if _installed(name)], facts)
    wanted = [name for name in always if have.get(name) != _version(name)]
    wanted += [name for name in _names(required, facts) if name not in have and name not in always]
    going: list[metadata.Distribution] = []
    lacking: list[str] = []
    for name in wanted:
        found = _distribution(name)
        if found is not None and _goes(found, facts):
            going.append(found)
        elif name not in have:
            lacking.append(name)
    return going, lacking


def _version(name: str) -> str:
    found = _installed(name)
    return found.version if found else ""


def _names(wanted: Iterable[str], facts: Facts) -> list[NormalizedName]:
    """The canonical names of all that these requirements need over there."""
    pins = pinned(wanted, _installed, environment(facts.series, facts.machine))
    return [canonicalize_name(Requirement(pin).name) for pin in pins]


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _installed(name: str) -> Installed | None:
    found = _distribution(name)
    return None if found is None else Installed(found.version, tuple(found.requires or ()))


def _files(found: metadata.Distribution) -> list[metadata.PackagePath]:
    """Its files below the directory of packages: no scripts, no byte code."""
    return [file for file in found.files or () if file.parts[0] not in ("..", "/") and file.suffix != ".pyc"]


def _goes(found: metadata.Distribution, facts: Facts) -> bool:
    files = _files(found)
    compiled = any(".so" in file.suffixes for file in files)
    return bool(files) and (not compiled or facts.extension == sysconfig.get_config_var("EXT_SUFFIX"))


def cargo(going: Iterable[metadata.Distribution]) -> bytes:
    """The tar of the agent and these packages, for ``kmt/guest/far.py``."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for item in sorted(resources.files("kmt.guest").iterdir(), key=lambda item: item.name):
            if item.name.endswith(".py"):
                member = tarfile.TarInfo(f"lib/kmt_guest/{item.name}")
                content = item.read_bytes()
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        for found in going:
            for file in _files(found):
                if (path := Path(str(file.locate()))).is_file():
                    tar.add(path, f"lib/{file}", recursive=False)
    return data.getvalue()
