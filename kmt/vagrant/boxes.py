"""Boxes of the user's own, for rows with ``box``: lent to the home that Vagrant has here, by a link; never changed.

Laws: nothing is fetched: a box is there, in the user's Vagrant home, or it is an error that says how to have it; that
it is one for libvirt, and whole, is seen before a machine is made of it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from kmt.errors import VmNeverStartedError
from kmt.paths import locked
from kmt.vagrant.daemon import home

_SLASH = "-VAGRANTSLASH-"
"""How Vagrant writes a slash in the directory of a box."""


def users_home() -> Path:
    """Where the user's own Vagrant keeps boxes."""
    named = os.environ.get("VAGRANT_HOME")
    return Path(named).expanduser() if named else Path.home() / ".vagrant.d"


def borrow(name: str) -> Path:
    """Have our Vagrant know the user's box of that name; its directory here. Raises VmNeverStartedError."""
    theirs = users_home() / "boxes" / name.replace("/", _SLASH)
    check(name, theirs)
    ours = home() / "boxes" / theirs.name
    if ours == theirs:  # in the shell of kmt.box it is our home
        return ours
    with locked("vagrant-box"):
        if ours.is_symlink() and ours.readlink() != theirs:
            ours.unlink()
        if not ours.exists():
            ours.parent.mkdir(parents=True, exist_ok=True)
            ours.symlink_to(theirs)
    return ours


def check(name: str, directory: Path) -> None:
    """Raise VmNeverStartedError unless a box for libvirt is there, and all its disks."""
    add = f"vagrant box add --provider libvirt {name}"
    if not directory.is_dir():
        raise VmNeverStartedError(f"there is no box {name} in {users_home()}", hint=add)
    made = sorted(directory.glob("*/libvirt/metadata.json")) + sorted(directory.glob("*/*/libvirt/metadata.json"))
    if not made:
        raise VmNeverStartedError(f"the box {name} is none for libvirt", hint=add)
    for file in made:
        try:
            said = json.loads(file.read_text())
            disks = [str(disk["path"]) for disk in said.get("disks", [])] or ["box.img"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise _broken(name, file, "is no description of a box") from None
        for disk in disks:
            image = file.parent / disk
            if not image.is_file() or image.stat().st_size == 0:
                raise _broken(name, image, "is missing or empty")


def _broken(name: str, file: Path, what: str) -> VmNeverStartedError:
    again = f"vagrant box remove --force --all {name}, and add it again"
    return VmNeverStartedError(f"the box {name} is broken: {file} {what}", hint=again)
