"""What can go wrong between the harness and a kernel, as typed errors.

Laws: every error says what happened, where, and (``hint``) what to do; nothing below this package lets a ctypes
traceback, a ``struct.error`` or a bare ``OSError`` out. An error that a caller's own callback raised is never
wrapped: it reaches the caller as it was.
"""

from __future__ import annotations

import errno as errno_names
import os


class HarnessError(Exception):
    """Base of all: a one-line message and, where there is one, what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class SettingsError(HarnessError):
    """A configuration value of the wrong type or size, an unknown name, or options that contradict each other."""


class NotSupportedError(HarnessError):
    """This environment is not one the part works in; the caller has another part to try."""


class FormatError(HarnessError):
    """Bytes (BTF, ELF, an event) that are not what they should be."""


class BtfError(HarnessError):
    """No BTF could be had from any source."""


class AssetError(HarnessError):
    """An eBPF object or source is missing, unreadable, or owned or writable by someone it should not be."""


class LibraryError(HarnessError):
    """libbpf is missing or too old."""


class SignatureError(HarnessError):
    """A program expects arguments that the running kernel's function does not have."""


class BpfError(HarnessError):
    """The kernel or libbpf refused: ``operation`` is what was tried, ``code`` the errno."""

    def __init__(self, operation: str, code: int, *, detail: str = "", hint: str = "") -> None:
        name = errno_names.errorcode.get(code, str(code))
        said = f": {detail}" if detail else ""
        if code == errno_names.EPERM and not hint:
            hint = "it takes root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; a locked-down kernel refuses it to all; "
            hint += "before 5.11 it also takes room in RLIMIT_MEMLOCK"
        super().__init__(f"{operation}: {name} ({os.strerror(code)}){said}", hint=hint)
        self.operation = operation
        self.code = code


class VerifierError(BpfError):
    """The verifier rejected ``program``; the message ends with its reason, ``log`` is all it said."""

    def __init__(self, program: str, code: int, reason: str, log: str) -> None:
        locked = "bpf_probe_read" in reason and ("unknown func" in reason or "cannot use helper" in reason)
        hint = (
            "a kernel that is locked down for confidentiality lends no program what reads its memory: "
            if locked
            else ""
        )
        hint += "/sys/kernel/security/lockdown says whether it is" if locked else ""
        super().__init__(f"program {program} was rejected", code, detail=reason, hint=hint)
        self.program = program
        self.reason = reason
        self.log = log


class FallbackError(HarnessError):
    """A stage of a fallback chain failed and no other may follow; the stage's own error is the cause."""


class ClosedError(HarnessError):
    """The object, link, map or buffer was closed before."""
