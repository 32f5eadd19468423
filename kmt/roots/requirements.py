"""(pure) Which Python packages a guest gets: the host's own versions, by name and number.

Law: pytest's reports and Hypothesis's database cross between host and guest, so what the host has installed is
pinned to its version, with all it depends on; only what the host lacks is left for pip to choose. Equal input
gives an equal list, whatever the order it is given in: the list is part of the image's key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from kmt.errors import ConfigError

ALWAYS = ("pytest", "hypothesis", "coverage")
"""What every guest gets if the host has it."""


@dataclass(frozen=True)
class Installed:
    """A package of the host: its version and the requirements in its metadata."""

    version: str
    requires: tuple[str, ...] = ()


Lookup = Callable[[str], Installed | None]
"""The host's package of that (canonical) name, or None."""


def environment(python: str, machine: str = "x86_64") -> dict[str, str]:
    """What a guest's Python answers to environment markers; ``python`` is ``3.13``."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def pinned(wanted: Iterable[str], lookup: Lookup, guest: Mapping[str, str]) -> list[str]:
    """The requirements to give to pip, sorted: all of ``wanted`` and what they need, at the host's versions.

    Raises ConfigError for a text that is no requirement.
    """
    pins: dict[str, str] = {}
    asked: set[tuple[str, str]] = set()
    queue = [_parsed(text) for text in wanted]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({**guest, "extra": ""}):
            continue
        have = None if requirement.url else lookup(name)
        if have is None:
            requirement.marker = None
            pins[str(requirement)] = str(requirement)
            continue
        pins[name] = f"{name}=={have.version}"
        for extra in {"", *requirement.extras}:
            if (name, extra) not in asked:
                asked.add((name, extra))
                queue += _needed(have, extra, guest)
    return sorted(pins.values())


def _needed(have: Installed, extra: str, guest: Mapping[str, str]) -> list[Requirement]:
    """What a package needs in the guest because of one of its extras (``""``: always)."""
    found = []
    for text in have.requires:
        requirement = Requirement(text)
        marker, requirement.marker = requirement.marker, None
        if extra == "" if marker is None else marker.evaluate({**guest, "extra": extra}):
            found.append(requirement)
    return found


def _parsed(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"[tool.kmt] requirements: {text!r} is no requirement: {reason}", hint="write it as pip takes it: name>=1.2"
        ) from None
