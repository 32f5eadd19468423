"""What can be wrong with a remote-configuration update, as typed errors.

Law: an update that is refused for any reason raises exactly one of these, and nothing has changed. The message
names the thing that is wrong (a root's version, a path); the hint says who can mend it, where that is known.
"""

from __future__ import annotations

from harness.errors import HarnessError


class RemoteError(HarnessError):
    """Base of all reasons to refuse an update."""


class MetadataError(RemoteError):
    """Bytes that are no TUF metadata of the role expected: no JSON, a missing field, a wrong type or ``_type``."""


class TooLargeError(RemoteError):
    """More bytes, roots or signatures than this client is willing to parse."""


class ThresholdError(RemoteError):
    """Too few distinct keys of the role have signed."""


class RootChainError(RemoteError):
    """The roots sent do not extend the trusted one by exactly one version each."""


class ExpiredError(RemoteError):
    """Validly signed, and past its date."""


class RollbackError(RemoteError):
    """Validly signed, and older than what the same keys had signed before."""


class PathError(RemoteError):
    """A configuration path that does not follow the grammar, or names a product that is not known."""


class TargetError(RemoteError):
    """A configuration that the targets do not list, list wrongly, or whose bytes do not match what they list."""


class ConfigError(RemoteError):
    """A configuration whose bytes are as signed and whose content makes no sense to the part that consumes it."""


class StoreError(HarnessError):
    """What is kept on disk cannot be written, or cannot be trusted."""


class TamperedError(StoreError):
    """What is kept on disk is not what was written there: nothing is taken from it."""


class UptaneError(RemoteError):
    """Two repositories, each validly signed, that do not agree on what is to be served."""
