"""(pure) What is said to ssh and what it says back: a machine's address, the command, the facts, why it failed.

Laws: nothing of a row can be taken for an option; a host key that is not known, or has changed, is not accepted, unless
the row's own ``ssh_config`` says in so many words that it may be; nothing is ever asked (BatchMode, and no terminal
for the ssh that goes to a jump host, which is not told so); each way to fail is one line with the command that mends
it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kmt.errors import VmError, VmLostError, VmNeverStartedError
from kmt.matrix import Row

MARK = b"kmt-far "
"""What the line of facts begins with (``kmt/guest/far.py``)."""
OLDEST = (3, 11)
"""Python on the other side."""
_PYTHON = re.compile(r"\d{1,3}\.\d{1,3}[0-9A-Za-z.+-]{0,30}")
LOADER = "import sys;exec(eval(sys.stdin.buffer.readline()))"
"""(in a shell, as Python) Runs the program whose ``repr`` is the first line of standard input."""
OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ControlPath": "none",  # a connection of our own, which ends with our process
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "RequestTTY": "no",
    "RemoteCommand": "none",
    "LogLevel": "INFO",
}

ENVIRONMENT = {"SSH_ASKPASS_REQUIRE": "never"}
"""What ssh's environment has besides ours: no window asks either."""


@dataclass(frozen=True)
class Target:
    """A machine: where ssh goes to, on which port (empty: ssh decides), and the words that start a Python there."""

    host: str
    port: str
    config: Path | None
    python: tuple[str, ...]

    @classmethod
    def of(cls, row: Row) -> Target:
        """That of a row, whose values ``kmt/matrix.py`` has checked."""
        match = re.fullmatch(r"(.+?)(?::(\d+))?", row.ssh)
        assert match is not None
        host = re.sub(r"\[(.+)\]$", r"\1", match[1])
        return cls(host, match[2] or "", row.ssh_config, tuple(shlex.split(row.python)) or ("python3",))

    def ssh(self, *more: str) -> list[str]:
        """What a person would type to go there."""
        file = ["-F", str(self.config)] if self.config else []
        port = ["-p", self.port] if self.port else []
        return ["ssh", *file, *port, *more, "--", self.host]

    def command(self, log: str) -> list[str]:
        """What starts ``kmt/guest/far.py`` there; ssh's own words go into the file ``log``."""
        # Without a word on it ssh would ask about unknown keys, which in batch mode is a no. A file for this machine
        # alone may say otherwise (Vagrant's do, whose machines get new keys); what is said for all machines may not.
        strict = {} if self.config else {"StrictHostKeyChecking": "yes"}
        options = [word for key, value in (OPTIONS | strict).items() for word in ("-o", f"{key}={value}")]
        # The login shell may be any: a word that none of them reads in its own way, between plain quotes.
        return [*self.ssh("-T", "-x", "-a", "-E", log, *options), f"exec {shlex.join([*self.python, '-c', LOADER])}"]

    @property
    def known_as(self) -> str:
        """Its name among the known host keys."""
        host = self.host.rpartition("@")[2]
        return f"[{host}]:{self.port}" if self.port not in ("", "22") else host

    def __str__(self) -> str:
        return f"{self.host}:{self.port}" if self.port else self.host


@dataclass(frozen=True)
class Facts:
    """What is on the other side: ``python`` as 3.13.5, how compiled modules end, the versions of Python's packages."""

    python: str
    release: str
    machine: str
    uid: int
    extension: str
    packages: Mapping[str, str]

    @property
    def series(self) -> str:
        """``3.13``."""
        return ".".join(self.python.split(".")[:2])


def facts(line: bytes, target: Target) -> Facts:
    """Read the line of facts. Raises VmNeverStartedError where they are none, or its Python is too old for us."""
    try:
        said = json.loads(line)
        strings = {key: str(said[key]) for key in ("python", "release", "machine", "extension")}
        packages = {str(name): str(version) for name, version in said["packages"].items()}
        found = Facts(uid=int(said["uid"]), packages=packages, **strings)
        if not _PYTHON.fullmatch(found.python):
            raise ValueError
        version = tuple(int(number) for number in found.series.split("."))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise VmNeverStartedError(f"what {target} says of itself makes no sense: {type(error).__name__}") from None
    if version < OLDEST:
        raise VmNeverStartedError(
            f"{target} has Python {found.python}, and {'.'.join(map(str, OLDEST))} is the oldest that will do",
            hint='name another in its row: python = "/path/to/python3"',
        )
    return found


def trouble(target: Target, said: str, console: str, status: int | None, *, began: bool) -> VmError:
    """Why the connection ended: what ssh ``said``, what the other side's ``console`` has, how ssh ended.

    ``began``: the agent had been up.
    """
    kind = VmLostError if began else VmNeverStartedError
    # What ssh says before it opens its file, and another ssh that goes to a jump host, is on the console.
    heard = said if began or status != 255 else f"{said}\n{console}"
    if status is not None and status < 0:
        return VmLostError(f"ssh to {target} was ended by signal {-status}")
    for pattern, words, hint in _CAUSES:
        if re.search(pattern, heard):
            return kind(words.format(target), hint=hint.format(ssh=shlex.join(target.ssh()), known=target.known_as))
    last = _last(console)
    python = shlex.join(target.python)
    if status in (126, 127) and not began:
        return kind(
            f"there is no {python} on {target}: {last}", hint='install it there, or name one in its row: python = "..."'
        )
    if status == 255:
        return kind(f"the connection to {target} ended: {_last(said) or last or 'ssh does not say why'}")
    return kind(f"the agent on {target} ended with status {status}{': ' if last else ''}{last}")


def _last(text: str) -> str:
    lines = [line.strip().removeprefix("kmt: ") for line in text.splitlines()]
    lines = [line for line in lines if line and line != "ready"]
    return lines[-1][:500] if lines else ""


# The first that matches. {} is the machine, {ssh} what goes there, {known} its name among the host keys.
_CAUSES = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the host key of {} is not the one that is known: another machine may have taken its place",
        "if it was made anew: ssh-keygen -R '{known}', then {ssh} and look at the new one",
    ),
    (
        r"Host key verification failed|host key is known for",
        "the host key of {} is not known here",
        "look at it and accept it once: {ssh}",
    ),
    (
        r"Permission denied|Too many authentication failures|no mutual signature",
        "{} refuses our key",
        "this must work without a question: {ssh} true; ssh-copy-id takes a key there",
    ),
    (r"Could not resolve hostname", "no machine is named {}", "is it spelled right? try: {ssh}"),
    (r"Connection refused", "nothing listens at {}", "is its sshd running, and on this port?"),
    (
        r"No route to host|Network is unreachable|connect to (host|address) .*timed out|banner exchange",
        "{} cannot be reached",
        "is it up? try: {ssh}",
    ),
    (
        r"[Bb]ad configuration|Can't open user config file|Bad owner or permissions",
        "ssh cannot read its configuration for {}",
        "try: {ssh}",
    ),
    (r"not responding", "{} has stopped to answer", "did it crash? its own console or log may say"),
)  # fmt: skip
