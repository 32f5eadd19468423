"""(pure) The part of TUF that a client needs who is sent roots, targets and files, and neither timestamp nor snapshot.

Cryptography, canonical form and schemas are python-tuf's and securesystemslib's. Around them stand the rules that
those leave to the caller or see more narrowly than the field does. Laws:

- a signature is checked over the canonical form of ``signed`` as received; only then is a normalised copy parsed;
- sizes are checked before parsing, and no input whatever raises anything but a ``RemoteError``;
- a threshold counts distinct public keys, however many ids or signatures a key has; what is unknown or wrong among
  the signatures is skipped;
- roots extend the trusted one by exactly one version each, each signed by its predecessor and by itself; the order
  in which they are sent means nothing; those not newer than the trusted one are ignored;
- only the root in force must be unexpired, and the clock is an argument.

Accepted though python-tuf's schema does not: any RFC 3339 instant as expiry; targets of version 0; a root without (or
with a misspelt) timestamp or snapshot role; keys of unknown types, which then just cannot sign; a signature that
names its key by the key's hash although the root lists it under another id. Delegated targets are not followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import SPECIFICATION_VERSION, Root, TargetFile, Targets

from harness.remote import metadata
from harness.remote.errors import (
    ExpiredError,
    MetadataError,
    RootChainError,
    TargetError,
    ThresholdError,
    TooLargeError,
)

MAX_ROOT = 512_000
"""Bytes of one root."""
MAX_TARGETS = 5_000_000
"""Bytes of the targets."""
MAX_ROOTS = 256
"""Roots in one update."""
HASHES = frozenset({"sha256", "sha512"})
"""Algorithms that a targets entry may list."""
_NEVER = datetime.max.replace(tzinfo=UTC)
_SPEC = ".".join(SPECIFICATION_VERSION)


@dataclass(frozen=True, slots=True)
class TrustedRoot:
    """A verified root. Nobody changes ``root``, although the library's class would allow it."""

    raw: bytes
    root: Root
    expires: datetime
    earlier: tuple[bytes, ...] = ()
    """The roots that led to it, from the one a client was born with."""

    @property
    def chain(self) -> tuple[bytes, ...]:
        """All roots up to and with this one."""
        return (*self.earlier, self.raw)

    @property
    def version(self) -> int:
        """Its version, 1 or more."""
        return self.root.version

    @property
    def targets_keys(self) -> frozenset[bytes]:
        """Identities of the keys that may sign targets."""
        role = self.root.roles["targets"]
        return frozenset(metadata.identity(self.root.keys[i]) for i in role.keyids if i in self.root.keys)


@dataclass(frozen=True, slots=True)
class Chain:
    """The end of a chain of roots, and whether any link of it changed the keys that sign targets."""

    trusted: TrustedRoot
    rotated: bool


@dataclass(frozen=True, slots=True)
class SignedTargets:
    """What the targets metadata say."""

    version: int
    files: Mapping[str, TargetFile]
    custom: Any
    """The ``custom`` member of the signed object, None where there is none."""


def load_root(raw: bytes) -> TrustedRoot:
    """The root that a client is born with: signed by itself; its expiry is not looked at."""
    envelope, trusted = _read_root(raw)
    _check_threshold(trusted.root, "root", envelope, "the embedded root")
    return trusted


def extend(trusted: TrustedRoot, roots: Sequence[bytes]) -> Chain:
    """Follow the roots of an update from the trusted one to the newest."""
    newer = _newer(roots, trusted.version)
    rotated = False
    for version in range(trusted.version + 1, trusted.version + 1 + len(newer)):
        if version not in newer:
            missing = f"root {version} is missing between {version - 1} and {max(newer)}"
            raise RootChainError(missing, hint="the server must send every root after the one in the request")
        envelope, following = _read_root(newer[version])
        _check_threshold(trusted.root, "root", envelope, f"root {version}, by the keys of root {version - 1},")
        _check_threshold(following.root, "root", envelope, f"root {version}, by its own keys,")
        rotated = rotated or following.targets_keys != trusted.targets_keys
        trusted = replace(following, earlier=trusted.chain)
    return Chain(trusted, rotated)


def check_in_force(trusted: TrustedRoot, now: datetime) -> None:
    """Raise ``ExpiredError`` unless ``now`` is before the root's expiry."""
    _check_unexpired(f"root {trusted.version}", trusted.expires, now)


def read_targets(raw: bytes, trusted: TrustedRoot, now: datetime | None) -> SignedTargets:
    """Targets signed by enough of the root's keys and, at ``now``, not expired."""
    envelope = metadata.open_metadata(raw, MAX_TARGETS, "targets")
    _check_threshold(trusted.root, "targets", envelope, "the targets")
    expires = metadata.expiry_of(envelope.signed, "targets")
    targets = _entries(envelope.signed, expires)
    if now is not None:
        _check_unexpired(f"targets {targets.version}", expires, now)
    return targets


def believe_targets(raw: bytes) -> SignedTargets:
    """Targets as they come: not signed, with any date or none. What is not said has its zero: version, type."""
    signed = metadata.open_metadata(raw, MAX_TARGETS, "targets", signed=False).signed
    return _entries({"version": 0} | signed | {"spec_version": _SPEC}, _NEVER)


def root_version(raw: bytes) -> int:
    """The version a root claims, without any verification."""
    return metadata.version_of(metadata.open_metadata(raw, MAX_ROOT, "root", signed=False).signed, "root")


def check_entry(path: str, file: TargetFile) -> Mapping[str, str]:
    """The hashes an entry lists, made lower case in it; an algorithm other than ``HASHES`` is an error."""
    if not file.hashes.keys() <= HASHES:
        unknown = min(file.hashes.keys() - HASHES)
        raise TargetError(f"{path}: hash algorithm {unknown!r} is not one of {', '.join(sorted(HASHES))}")
    file.hashes = {algorithm: value.lower() for algorithm, value in file.hashes.items()}
    return file.hashes


def verify_file(path: str, raw: bytes, entry: TargetFile) -> None:
    """Raise ``TargetError`` unless length and every hash fit."""
    try:
        entry.verify_length_and_hashes(raw)
    except LengthOrHashMismatchError as error:
        raise TargetError(f"{path}: the file is not what the targets say: {error}") from None


def _entries(signed: Mapping[str, Any], expires: datetime) -> SignedTargets:
    """What targets metadata list, parsed by python-tuf; its schema lets a boolean pass as a length."""
    version = metadata.version_of(signed, "targets")
    targets = metadata.parse(Targets, metadata.normalised(signed, "targets", expires), "targets")
    for path, file in targets.targets.items():
        if type(file.length) is not int:
            raise MetadataError(f"targets metadata are malformed: {path!r} has length {file.length!r}")
    return SignedTargets(version, targets.targets, signed.get("custom"))


def _newer(roots: Sequence[bytes], than: int) -> dict[int, bytes]:
    """The roots that claim to be newer, by version; every root must decode, and no two newer ones claim the same."""
    if len(roots) > MAX_ROOTS:
        raise TooLargeError(f"{len(roots)} roots in one update, more than {MAX_ROOTS}")
    found: dict[int, bytes] = {}
    for raw in roots:
        version = root_version(raw)
        if version > than and found.setdefault(version, raw) != raw:
            raise RootChainError(f"two different roots claim version {version}")
    return found


def _read_root(raw: bytes) -> tuple[metadata.Envelope, TrustedRoot]:
    """Open and parse a root without verifying it."""
    envelope = metadata.open_metadata(raw, MAX_ROOT, "root")
    expires = metadata.expiry_of(envelope.signed, "root")
    root = metadata.parse(Root, metadata.normalised_root(envelope.signed, expires), "root")
    return envelope, TrustedRoot(raw, root, expires)


def _check_threshold(root: Root, role: str, envelope: metadata.Envelope, what: str) -> None:
    """Raise unless ``threshold`` distinct keys of the role have signed."""
    wanted = root.roles[role].threshold
    signers: set[bytes] = set()
    for keyid in root.roles[role].keyids:
        key = root.keys.get(keyid)
        if key is not None and _has_signed(key, keyid, envelope):
            signers.add(metadata.identity(key))
            if len(signers) >= wanted:
                return
    raise ThresholdError(f"{what} is signed by {len(signers)} of {wanted} keys needed")


def _has_signed(key: Key, keyid: str, envelope: metadata.Envelope) -> bool:
    """Does any signature under the key's id, or under its hash, verify?"""
    names = {keyid, metadata.hash_id(key)}
    for name, value in envelope.signatures:
        if name in names:
            try:
                key.verify_signature(Signature(keyid, value), envelope.canonical)
            except UnverifiedSignatureError:
                continue
            return True
    return False


def _check_unexpired(what: str, expires: datetime, now: datetime) -> None:
    if now >= expires:
        raise ExpiredError(
            f"{what} expired at {expires.isoformat()}, it is {now.astimezone(UTC).isoformat(timespec='seconds')}",
            hint="either the server stopped signing or this machine's clock is wrong",
        )
