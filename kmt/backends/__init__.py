"""The ways to run a kernel, by name. A new one is a file beside this one and a line in ``_BACKENDS``."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from kmt.errors import ConfigError

if TYPE_CHECKING:
    from kmt.backends.base import Backend
    from kmt.config import Config
    from kmt.matrix import Row

Progress = Callable[[str, int, int], None]


def _qemu(config: Config, accel: str, progress: Progress | None) -> Backend:
    from kmt.backends.qemu import QemuBackend

    return QemuBackend(config, accel, progress)


def _host(config: Config, accel: str, progress: Progress | None) -> Backend:
    from kmt.backends.host import HostBackend

    return HostBackend()


def _ssh(config: Config, accel: str, progress: Progress | None) -> Backend:
    from kmt.backends.ssh import SshBackend

    return SshBackend(config)


def _vagrant(config: Config, accel: str, progress: Progress | None) -> Backend:
    from kmt.backends.vagrant import VagrantBackend

    return VagrantBackend(config, accel, progress)


def _simulated(config: Config, accel: str, progress: Progress | None) -> Backend:
    from kmt.backends.simulated import SimulatedBackend

    return SimulatedBackend()


_BACKENDS: dict[str, Callable[[Config, str, Progress | None], Backend]] = {
    "qemu": _qemu,
    "host": _host,
    "ssh": _ssh,
    "vagrant": _vagrant,
    "simulated": _simulated,
}
KEPT = ("qemu", "vagrant")
"""Those whose guests a keeper can lend."""
AUTO = "auto"
"""A machine where it can be had, a simulated kernel for tests where it cannot; for all but tests it is the machine."""
REAL = "qemu"


def names() -> tuple[str, ...]:
    """The known names."""
    return tuple(_BACKENDS)


def name_for(row: Row, word: str) -> str:
    """The backend of a row: what is simulated, on SSH or in a box has its own, all others the one asked for."""
    if row.simulated:
        return "simulated"
    if row.ssh or row.box:
        return "ssh" if row.ssh else "vagrant"
    return REAL if word == AUTO else word


def get(name: str, *, config: Config, accel: str = "auto", progress: Progress | None = None) -> Backend:
    """The backend of that name. Raises ConfigError with the known names."""
    name = REAL if name == AUTO else name
    make = _BACKENDS.get(name)
    if make is None:
        near = difflib.get_close_matches(name, (*_BACKENDS, AUTO), 1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"there is no backend {name!r}", hint=f"{guess}known: {', '.join((*_BACKENDS, AUTO))}")
    return make(config, accel, progress)
