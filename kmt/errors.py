"""Everything that can go wrong outside a test, as typed errors.

Laws: a failing test is an outcome, never an exception; every error says what happened, where, and what to do
next (``hint``); the class decides the run's exit status and the word shown in tables (``outcome``).
Exit statuses 0 to 5 are pytest's own; ours are 6 (infrastructure) and 7 (build).
"""

from __future__ import annotations

from typing import ClassVar

EXIT_USAGE = 4
EXIT_INFRASTRUCTURE = 6
EXIT_BUILD = 7


class KmtError(Exception):
    """Base of all our errors: a one-line message and, where there is one, the next command to try."""

    exit_status: ClassVar[int] = EXIT_INFRASTRUCTURE
    outcome: ClassVar[str] = "lost"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(KmtError):
    """The user's words are off: an unknown kernel, key, option, or a value of the wrong type."""

    exit_status = EXIT_USAGE


class ProfileError(ConfigError):
    """A profile or the table of gates is damaged, of a newer format, or says things that cannot both be so."""


class CannotTellError(ConfigError):
    """What is known of kernels does not answer the question; nothing is guessed instead."""


class ResultsError(ConfigError):
    """A file of results is none, is cut off, of another version or of another matrix; the message names it."""


class ForeignFileError(ResultsError):
    """It is whole, and holds no results: somebody else's file with such a name."""


class ArchiveError(KmtError):
    """A kernel or package could not be resolved, fetched, verified or unpacked."""


class UnavailableError(ArchiveError):
    """The archive answers, and does not have this row (or its pinned version): the row is unavailable."""

    outcome = "unavailable"


class MirrorError(ArchiveError):
    """The archive does not answer, or answers wrongly: nothing can be said about the row."""


class ImageError(KmtError):
    """The guest's root image, a kernel's disk or its initramfs could not be made, or is no such thing."""


class BuildError(KmtError):
    """An eBPF source did not compile, or the compiler environment could not be made."""

    exit_status = EXIT_BUILD
    outcome = "build"


class VmError(KmtError):
    """Base of what can happen to a running VM."""


class VmNeverStartedError(VmError):
    """The VM's process could not start, or died before its kernel said a word."""


class VmLostError(VmError):
    """The VM ended or stopped answering for no reason that its console gives."""


class VmPanickedError(VmError):
    """The guest's kernel panicked or oopsed."""

    outcome = "panic"


class VmTimedOutError(VmError):
    """The guest is there and did not get done before the deadline, or its heartbeat stopped."""

    outcome = "hang"


class SnapshotError(KmtError):
    """A machine's memory could not be kept, or what was kept cannot be used."""


class NoPlaceError(SnapshotError):
    """There is no place for a machine's memory: no room, or a file system that cannot hold it."""


class AgentError(KmtError):
    """The guest's agent broke the protocol or could not do what it was asked."""
