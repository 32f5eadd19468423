"""(pure) What Vagrant says, and what it means: its machine-readable lines, the state of a machine, why it failed.

Facts are of Vagrant 2.3.4 and vagrant-libvirt 0.11.2. Laws: what is no line of its format (Ruby warns on the same
stream) is passed over; a word for a state that is not known is kept as it is; each way to fail is one line with the
command that mends it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kmt.errors import KmtError, VmLostError, VmNeverStartedError

RUNNING, OFF, MISSING = "running", "off", "missing"
_STATES = {
    "not_created": MISSING,
    "poweroff": OFF,  # what the command line calls it
    "shutoff": OFF,  # what libvirt does
    "shutting_down": RUNNING,
}
_LINE = re.compile(r"(\d+),([^,\n]*),([\w-]+)(?:,(.*))?")
_STOPS = ("\\n", "\n"), ("\\r", "\r"), ("%!(VAGRANT_COMMA)", ",")
PACKAGES = "vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients"


@dataclass(frozen=True)
class Line:
    """One line: about which machine ("": all), what kind of thing, and the thing."""

    machine: str
    kind: str
    data: tuple[str, ...]


def parse(text: str) -> list[Line]:
    """The lines of ``vagrant --machine-readable``; a message that was cut off by a dying process is kept."""
    matches = filter(None, map(_LINE.fullmatch, text.splitlines()))
    return [Line(m[2], m[3], tuple(map(_plain, m[4].split(",")))) if m[4] else Line(m[2], m[3], ()) for m in matches]


def _plain(word: str) -> str:
    for coded, meant in _STOPS:
        word = word.replace(coded, meant)
    return word


def about(lines: Sequence[Line], machine: str, kind: str) -> str:
    """The first thing of that kind that is said of the machine; empty when nothing is."""
    return next((line.data[0] for line in lines if line.kind == kind and line.machine == machine and line.data), "")


def state(lines: Sequence[Line], machine: str) -> str:
    """``RUNNING``, ``OFF``, ``MISSING``, or Vagrant's own word for what else there is (``paused``)."""
    word = about(lines, machine, "state")
    return _STATES.get(word, word)


def complaint(lines: Sequence[Line], stderr: str) -> str:
    """What Vagrant says went wrong: the error that it ended with, else the last thing that it complained of."""
    for line in lines:
        if line.kind == "error-exit" and len(line.data) > 1:
            return line.data[1]
    said = [line.data[1] for line in lines if line.kind == "ui" and line.data[:1] == ("error",) and len(line.data) > 1]
    return said[-1] if said else stderr


def trouble(complaint: str, machine: str, doing: str) -> KmtError:
    """Why Vagrant could not do it, in one line. ``doing``: its words, as a person would type them."""
    for pattern, kind, words, hint in _CAUSES:
        if found := re.search(pattern, complaint, re.DOTALL | re.IGNORECASE):
            named = {"machine": machine, "doing": doing, **found.groupdict()}
            return kind(words.format(**named), hint=hint.format(**named))
    return VmNeverStartedError(f"{doing} failed: {_one_line(complaint) or 'it does not say why'}")


def _one_line(text: str) -> str:
    """The end of a message that Vagrant breaks at 80 columns, without its stack and its advice."""
    lines = [line.strip() for line in text.strip().splitlines()]
    lines = [line for line in lines if line and not re.match(r"(from )?/\S+:\d+:", line)]
    return " ".join(lines)[-400:]


# The first that matches. {machine} is the machine's name, {doing} what was typed.
_CAUSES: tuple[tuple[str, type[KmtError], str, str], ...] = (
    (
        r"No space left on device|ENOSPC|disk quota exceeded",
        VmNeverStartedError,
        "{doing}: the disk is full",
        "make room: ./inv kmt.clean; ./inv kmt.doctor looks at the disk",
    ),
    (
        r"host forwarding rule '?(?P<rule>[^'\s]+)",
        VmNeverStartedError,
        "{doing}: somebody else listens at the machine's port for SSH ({rule})",
        "end that, or give {machine} another port: vagrant destroy -f {machine}",
    ),
    (
        r"failed to connect socket|cannot recv data|end of file while reading data|client socket is closed"
        r"|error while connecting to libvirt|unable to connect to (server|libvirt)",
        VmLostError,
        "{doing}: libvirtd does not answer",
        "run it again; ./inv kmt.doctor says what its libvirt needs",
    ),
    (
        r"provider '(?P<provider>[^']+)' (could not be|was not) found|'(?P<other>libvirt)' provider",
        VmNeverStartedError,
        "Vagrant has no provider libvirt",
        "apt-get install vagrant-libvirt",
    ),
    (
        r"plugin .*(is not installed|could not be loaded|failed to)|Could not find '?vagrant-libvirt",
        VmNeverStartedError,
        "Vagrant's plugin libvirt cannot be loaded",
        "apt-get install --reinstall vagrant-libvirt",
    ),
    (
        r"doesn't support the provider|does not support the provider",
        VmNeverStartedError,
        "{doing}: its box is not one of libvirt's",
        "take a box whose provider is libvirt, or unset VAGRANT_DEFAULT_PROVIDER",
    ),
    (
        r"box '(?P<box>[^']+)' (could not be found|couldn't be found)"
        r"|The box you're attempting to add|No box named|box '(?P<named>[^']*)' is missing",
        VmNeverStartedError,
        "{doing}: there is no such box: {box}",
        "vagrant box add {box}, as the environment of the run has it: ./inv kmt.box makes the project's own",
    ),
    (
        r"Invalid box metadata|query the box image details|Wrong image format|Could not open '|image is corrupt"
        r"|No image virtual size|box failed to unpackage|metadata file for this box|is not a valid.*qcow2"
        r"|Image is not in qcow2 format",
        VmNeverStartedError,
        "{doing}: its box is broken",
        "make it anew: ./inv kmt.box --again; one of your own: vagrant box add --force",
    ),
    (
        r"Volume for box image is missing|Volume for domain is (already created|missing)|No matching volume"
        r"|Name `[^`]*` of domain about to create is already taken|domain .* already exists",
        VmNeverStartedError,
        "{doing}: libvirt remembers another machine of that name",
        "vagrant destroy -f {machine}; what is left after that: virsh undefine",
    ),
    (
        r"Authentication failed|authentication method|Net::SSH::AuthenticationFailed",
        VmNeverStartedError,
        "{machine} refuses Vagrant's key",
        "the box must take it for the user of its Vagrantfile: vagrant destroy -f {machine}, then vagrant up {machine}",
    ),
    (
        r"Timed out while waiting for the machine to boot|unable to communicate with the guest machine",
        VmNeverStartedError,
        "{machine} does not answer on SSH in the time that its Vagrantfile gives it",
        "its serial console says more",
    ),
    (
        r"could not get access to acceleration|failed to initialize kvm|invalid accelerator kvm|doesn't support.*kvm",
        VmNeverStartedError,
        "{doing}: no hardware virtualisation here",
        "--kernel-accel tcg",
    ),
)  # fmt: skip
