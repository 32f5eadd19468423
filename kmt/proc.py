"""The only module that starts a process.

Laws: no shell; every process of ours (but one that is ``detached``) dies with its parent thread (``setpriv
--pdeathsig``, because a ``preexec_fn`` is unsafe with threads); a failure is a typed error that holds the command and
the end of what it said. PR_SET_PDEATHSIG fires when the *thread* that started the process ends, so start long-lived
ones from a thread that outlives them (prctl(2)).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pexpect
import psutil

from kmt.errors import KmtError
from kmt.hints import task


@dataclass(frozen=True)
class Completed:
    """How a process ended: its status (negative: the signal), standard output and error as text."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str

    def tail(self, lines: int = 8) -> str:
        """The last lines it said, errors first choice."""
        said = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return "\n".join(said[-lines:])


class ProcessError(KmtError):
    """A process that had to succeed did not."""


def which(program: str) -> str | None:
    """The program's path, looking in the system directories too (PATH of users often lacks sbin)."""
    return shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")


def quoted(argv: Sequence[str | os.PathLike[str]]) -> str:
    """The command as a shell would take it, for messages and dry runs."""
    return shlex.join(str(a) for a in argv)


def _bound(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    words = [str(a) for a in argv]
    program = which(words[0])
    if program is None:
        raise ProcessError(f"{words[0]} is not installed", hint=f"try: {task('doctor')}")
    return ["setpriv", "--pdeathsig", "KILL", "--", program, *words[1:]]


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    check: bool = True,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    input: str | bytes | None = None,
    stdout: IO[bytes] | None = None,
    error: type[KmtError] = ProcessError,
    undecodable: str = "replace",
) -> Completed:
    """Run to the end and return what it said. With ``check``, a bad status or a timeout raises ``error``.

    ``env`` is added to the environment; ``stdout`` sends standard output to an open file instead of returning it.
    ``undecodable`` is how bytes of it that are no UTF-8 are decoded: ``surrogateescape`` for what are names of files.
    """
    words = _bound(argv)
    try:
        done = subprocess.run(
            words,
            check=False,
            timeout=timeout,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            input=input.encode() if isinstance(input, str) else input,
            stdin=subprocess.DEVNULL if input is None else None,
            stdout=stdout if stdout is not None else subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except subprocess.TimeoutExpired:
        raise error(f"no end after {timeout:.0f} s: {quoted(argv)}") from None
    result = Completed(
        tuple(str(a) for a in argv),
        done.returncode,
        (done.stdout or b"").decode(errors=undecodable),
        (done.stderr or b"").decode(errors="replace"),
    )
    if check and result.status != 0:
        raise error(f"{quoted(argv)} ended with status {result.status}:\n{result.tail()}")
    return result


def spawn(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: int | IO[bytes] | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = subprocess.DEVNULL,
    stderr: int | IO[bytes] | None = subprocess.DEVNULL,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    own_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start and return it; the caller ends it. It is killed when the calling thread ends.

    With ``own_session`` it has no terminal to ask anything on, and a Ctrl-C there does not reach it.
    """
    return subprocess.Popen(
        _bound(argv),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        pass_fds=tuple(pass_fds),
        start_new_session=own_session,
    )


def detached(argv: Sequence[str | os.PathLike[str]], *, cwd: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start what is to outlive us, in a session of its own, its words in ``log``. The only one that we do not end."""
    with log.open("wb") as words:
        return subprocess.Popen(
            [str(a) for a in argv],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            cwd=cwd,
            start_new_session=True,
        )


def private_mib(pid: int) -> float | None:
    """MiB of memory that only this process has (Private_* of its smaps_rollup); None when nobody may look."""
    try:
        return round(float(psutil.Process(pid).memory_full_info().uss) / (1 << 20), 1)
    except (psutil.Error, OSError):
        return None


def terminal(argv: Sequence[str | os.PathLike[str]], *, size: tuple[int, int]) -> pexpect.spawn[bytes]:
    """Start it on a terminal of its own of ``size`` rows and columns; the caller closes it."""
    program, *words = _bound(argv)
    return pexpect.spawn(program, words, dimensions=size, timeout=None)
