"""What can go wrong in the watcher's parts, as typed errors.

A file that cannot be looked at raises the ``OSError`` of the look, and an activation that fails raises what the
callback raised: these are the caller's own words and are never wrapped.
"""

from __future__ import annotations

from harness.errors import HarnessError


class WatcherError(HarnessError):
    """Base of all below."""


class RuleError(WatcherError):
    """A rule whose pattern is no regular expression."""


class CallbackMissingError(WatcherError):
    """A registration without both of its callbacks."""


class InvalidPathError(WatcherError):
    """A path that cannot name a file: empty, or with a NUL byte in it."""


class PathBlockedError(WatcherError):
    """The file's activation failed before; it is on the blocklist."""


class AlreadyStoppedError(WatcherError):
    """The registry has been cleared, which is for good."""


class NoRuleMatchedError(WatcherError):
    """A process that was to be attached has no file that a rule asks for."""


class AttachError(WatcherError):
    """Of a process that was to be attached, ``attached`` files were, and the others failed with ``errors``."""

    def __init__(self, pid: int, attached: int, errors: list[Exception]) -> None:
        whole = f"{attached} files of process {pid} attached" if attached else f"nothing of process {pid} attached"
        super().__init__(f"{whole}, {len(errors)} failed: {'; '.join(str(e) or type(e).__name__ for e in errors)}")
        self.attached = attached
        self.errors = errors


class PidNotRegisteredError(WatcherError):
    """The process holds no registered file."""
