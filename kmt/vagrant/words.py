"""(pure) What Vagrant says, and what it means: its machine-readable lines, the state of a machine, why it failed.

Facts are of Vagrant 2.3.4 and vagrant-libvirt 0.11.2. Laws: what is no line of its format (Ruby warns on the same
stream) is passed over; a word for a state that is not known is kept as it is; each way to fail is one line with the
command that mends it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from kmt.errors import VmError, VmLostError, VmNeverStartedError


class StaleMachineError(VmNeverStartedError):
    """Libvirt or Vagrant remembers another machine of that name: ``destroy`` mends it."""


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
    """What Vagrant says went wrong: the error that it ended with, what it complained of last, or what Ruby did."""
    for line in lines:
        if line.kind == "error-exit" and len(line.data) > 1:
            return line.data[1]
    said = [line.data[1] for line in lines if line.kind == "ui" and line.data[:1] == ("error",) and len(line.data) > 1]
    # Of an exception that nobody caught, the top of Ruby's stack has the words.
    return said[-1] if said else re.split(r"\n\s*from /", stderr, maxsplit=1)[0]


def trouble(complaint: str, machine: str, doing: str, kmt: str) -> VmError:
    """Why Vagrant could not do it, in one line.

    ``doing``: its words, as a person would type them; ``kmt``: what the names of our tasks begin with.
    """
    for pattern, kind, words, hint in _CAUSES:
        if found := re.search(pattern, complaint, re.DOTALL | re.IGNORECASE):
            named = {"machine": machine, "doing": doing, "kmt": kmt, "what": next(filter(None, found.groups()), "")}
            return kind(words.format(**named), hint=hint.format(**named))
    return VmNeverStartedError(f"{doing} failed: {_one_line(complaint) or 'it does not say why'}")


def _one_line(text: str) -> str:
    """The end of a message that Vagrant breaks at 80 columns, without its stack and its advice."""
    lines = [line.strip() for line in text.strip().splitlines()]
    lines = [re.sub(r"^/\S+:\d+:in `[^']*': ", "", line) for line in lines if line]
    return " ".join(lines)[-400:]


# The first that matches. {machine} is the machine's name, {doing} what was typed, {what} the pattern's group.
_CAUSES: tuple[tuple[str, type[VmError], str, str], ...] = (
    (
        r"No space left on device|disk quota exceeded",
        VmNeverStartedError,
        "{doing}: the disk is full",
        "make room: {kmt}clean; {kmt}doctor looks at the disk",
    ),
    (
        r"host forwarding rule '?([^'\s]+)",
        VmNeverStartedError,
        "{doing}: somebody else listens at the port that is {machine}'s for SSH ({what})",
        "run it again: it gets another one",
    ),
    (
        r"failed to connect socket|cannot recv data|end of file while reading data|client socket is closed"
        r"|error while connecting to libvirt|unable to connect to (?:server|libvirt)|nsenter: cannot open",
        VmLostError,
        "{doing}: libvirtd has ended, or does not answer",
        "run it again; {kmt}doctor says what it needs",
    ),
    (
        r"provider '([^']+)' could not be found|unknown provider",
        VmNeverStartedError,
        "Vagrant has no provider {what}",
        "apt-get install vagrant-libvirt",
    ),
    (
        r"provider '([^']+)' that was requested",
        VmNeverStartedError,
        "{doing}: the provider is {what}, and machines are made by libvirt",
        "unset VAGRANT_DEFAULT_PROVIDER",
    ),
    (
        r"plugin (?:vagrant-libvirt )?is missing|plugins? failed to (?:load|initialize)"
        r"|Could not find '?vagrant-libvirt",
        VmNeverStartedError,
        "Vagrant's plugin libvirt is missing, or cannot be loaded",
        "apt-get install --reinstall vagrant-libvirt",
    ),
    (
        r"doesn't support the provider|does not support the provider|box you're adding .* provider",
        VmNeverStartedError,
        "{doing}: its box is none for libvirt",
        "take one whose provider is libvirt",
    ),
    (
        r"box '([^']+)' (?:could not be|couldn't be) found|URL: \[\"?([^\]\"]+)",
        VmNeverStartedError,
        "{doing}: there is no box {what}",
        "vagrant box add {what}",
    ),
    (
        r"Invalid box metadata|query the box image details|Wrong image format|Could not open '|is not in qcow2 format"
        r"|No image virtual size|No image format|failed to unpackage|image (?:is )?corrupt|metadata for the box",
        VmNeverStartedError,
        "{doing}: its box is broken",
        "vagrant box remove --force it, and add it again; the project's own is made by {kmt}box",
    ),
    (
        r"Volume for domain is already created|Name `[^`]*` of domain about to create|domain .* already exists",
        StaleMachineError,
        "{doing}: libvirt remembers another machine of that name",
        "vagrant destroy -f {machine}",
    ),
    (
        r"Authentication failed|AuthenticationFailed|SSH authentication",
        VmNeverStartedError,
        "{machine} refuses Vagrant's key",
        "its box must let in the user and key that vagrant ssh-config {machine} says",
    ),
    (
        r"Timed out while waiting for the machine to boot|invalid state while waiting for it to boot",
        VmNeverStartedError,
        "{doing}: it did not answer on SSH",
        "its console says more",
    ),
    (
        r"could not (?:get )?access .*/dev/kvm|failed to initialize kvm|invalid accelerator kvm",
        VmNeverStartedError,
        "{doing}: no hardware virtualisation here",
        "--kernel-accel tcg",
    ),
)  # fmt: skip
