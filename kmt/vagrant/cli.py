"""The Vagrant command: each word that we say to it is a method here. What it answers is ``words.py``'s to read.

Laws: every call has a deadline and ends by it (a call takes a second of Ruby before it does anything); what Vagrant
complains of becomes one line with the command that mends it; nothing is asked, for there is no terminal.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kmt import proc
from kmt.deadline import Deadline
from kmt.errors import ConfigError, KmtError, VmNeverStartedError, VmTimedOutError
from kmt.hints import task
from kmt.vagrant import words
from kmt.vagrant.words import Line

PROVIDER = "libvirt"


def check_here(environ: Mapping[str, str] = os.environ) -> None:
    """What can be told without starting anything. ConfigError for another provider, VmNeverStartedError for none."""
    wanted = environ.get("VAGRANT_DEFAULT_PROVIDER", PROVIDER)
    if wanted != PROVIDER:
        raise ConfigError(
            f"VAGRANT_DEFAULT_PROVIDER is {wanted!r}, and machines are made by {PROVIDER}",
            hint="unset VAGRANT_DEFAULT_PROVIDER",
        )
    if proc.which("vagrant") is None:
        raise VmNeverStartedError("vagrant is not installed", hint=f"apt-get install {words.PACKAGES}")


class Vagrant:
    """The command as a run has it: ``prefix`` in front of it, ``env`` over our environment."""

    def __init__(self, env: Mapping[str, str], prefix: Sequence[str] = ()) -> None:
        self._env, self._prefix = env, tuple(prefix)

    def command(self, *said: str) -> list[str]:
        """What is started for these words."""
        return [*self._prefix, "vagrant", *said]

    def up(self, machine: str, deadline: Deadline) -> None:
        """Make it if it is not there, and boot it. Raises KmtError; a machine whose first ``up`` fails is gone."""
        self.say(deadline, "up", "--provider", PROVIDER, "--no-provision", machine)

    def destroy(self, machine: str, deadline: Deadline) -> None:
        """Have no such machine."""
        self.say(deadline, "destroy", "--force", machine)

    def state(self, machine: str, deadline: Deadline) -> str:
        """A word of ``words.state``. What it says of a panicked guest is ``running``."""
        return words.state(self.say(deadline, "status", machine), machine)

    def ssh_config(self, machine: str, deadline: Deadline) -> str:
        """The text of a file for ``ssh -F``."""
        found = words.about(self.say(deadline, "ssh-config", machine), machine, "ssh-config")
        if not found:
            raise VmNeverStartedError(f"vagrant ssh-config says nothing of {machine}", hint=f"vagrant up {machine}")
        return found

    def save(self, machine: str, snapshot: str, deadline: Deadline) -> None:
        """Keep it as it is now, memory and disk."""
        self.say(deadline, "snapshot", "save", "--force", machine, snapshot)

    def restore(self, machine: str, snapshot: str, deadline: Deadline) -> None:
        """Have it as it was then, running."""
        self.say(deadline, "snapshot", "restore", "--no-provision", machine, snapshot)

    def say(self, deadline: Deadline, *said: str) -> list[Line]:
        """Any words; what it answers. Raises KmtError with why it failed, VmTimedOutError by the deadline."""
        doing, machine = " ".join(("vagrant", *said)), said[-1]
        try:
            done = proc.run(
                self.command("--machine-readable", *said),
                check=False,
                timeout=max(1.0, deadline.remaining()),
                env=self._env,
                cwd=Path("/"),
                error=_TooLateError,
            )
        except _TooLateError:
            raise VmTimedOutError(
                f"{doing} was not done within {deadline.seconds:.0f} s", hint="more time: --kernel-timeout SECONDS"
            ) from None
        lines = words.parse(done.stdout)
        if done.status != 0:
            raise words.trouble(words.complaint(lines, done.stderr), machine, doing, task(""))
        return lines


class _TooLateError(KmtError):
    """A call did not end."""
