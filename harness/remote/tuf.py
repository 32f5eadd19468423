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

Accepted though python-tuf's schema does not: any RFC 3339 instant as expiry; a root without (or with a misspelt)
timestamp or snapshot role; keys of unknown types, which then just cannot sign; a signature that names its key by the
key's hash although the root lists it under another id. Delegated targets are not followed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.exceptions import FormatError, UnverifiedSignatureError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import KEY_FOR_TYPE_AND_SCHEME, Key, Signature
from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Root, TargetFile, Targets

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
MAX_SIGNATURES = 256
"""Signatures on one piece of metadata: each costs a verification."""
HASHES = frozenset({"sha256", "sha512"})
"""Algorithms that a targets entry may list."""

_HOUR_MINUTE = r"(?:[01]\d|2[0-3]):[0-5]\d"
_INSTANT = re.compile(
    rf"(\d{{4}}-\d\d-\d\dT{_HOUR_MINUTE}:)([0-5]\d|60)(\.\d+)?(Z|[+-]{_HOUR_MINUTE})", re.ASCII | re.IGNORECASE
)
_SCHEMA = (AttributeError, KeyError, TypeError, ValueError, RecursionError, OverflowError)
"""What python-tuf raises on values of unexpected types."""
_UNUSED = {"keyids": [], "threshold": 1}

_S = TypeVar("_S", Root, Targets)


@dataclass(frozen=True, slots=True)
class Envelope:
    """Metadata taken apart: what was signed, the bytes that the signatures are over, and the signatures."""

    signed: dict[str, Any]
    canonical: bytes
    signatures: tuple[tuple[str, str], ...]
    """Pairs of key id and signature (hex), in the order received."""


@dataclass(frozen=True, slots=True)
class TrustedRoot:
    """A verified root. Nobody changes ``root``, although the library's class would allow it."""

    raw: bytes
    root: Root
    expires: datetime

    @property
    def version(self) -> int:
        """Its version, 1 or more."""
        return self.root.version

    @property
    def targets_keys(self) -> frozenset[bytes]:
        """Identities of the keys that may sign targets."""
        role = self.root.roles["targets"]
        return frozenset(_identity(self.root.keys[i]) for i in role.keyids if i in self.root.keys)


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
    newer = {v: raw for v, raw in _by_version(roots).items() if v > trusted.version}
    rotated = False
    for version in range(trusted.version + 1, trusted.version + 1 + len(newer)):
        if version not in newer:
            missing = f"root {version} is missing between {version - 1} and {max(newer)}"
            raise RootChainError(missing, hint="the server must send every root after the one in the request")
        envelope, following = _read_root(newer[version])
        _check_threshold(trusted.root, "root", envelope, f"root {version}, by the keys of root {version - 1},")
        _check_threshold(following.root, "root", envelope, f"root {version}, by its own keys,")
        rotated = rotated or following.targets_keys != trusted.targets_keys
        trusted = following
    return Chain(trusted, rotated)


def check_in_force(trusted: TrustedRoot, now: datetime) -> None:
    """Raise ``ExpiredError`` unless ``now`` is before the root's expiry."""
    _check_unexpired(f"root {trusted.version}", trusted.expires, now)


def read_targets(raw: bytes, trusted: TrustedRoot | None, now: datetime) -> SignedTargets:
    """Targets signed by enough of the root's keys and not expired; with None for root, neither is asked for."""
    envelope = _open(raw, MAX_TARGETS, "targets", signed=trusted is not None)
    if trusted is not None:
        _check_threshold(trusted.root, "targets", envelope, "the targets")
    expires = _expiry(envelope.signed, "targets")
    custom = envelope.signed.get("custom")
    targets = _parse(Targets, _normalised(envelope.signed, "targets", expires), "targets")
    for path, file in targets.targets.items():
        _check_entry(path, file)
    if trusted is not None:
        _check_unexpired(f"targets {targets.version}", expires, now)
    return SignedTargets(targets.version, targets.targets, custom)


def root_version(raw: bytes) -> int:
    """The version a root claims, without any verification."""
    return _version(_open(raw, MAX_ROOT, "root", signed=False).signed, "root")


def hashes(file: TargetFile, path: str) -> dict[str, str]:
    """The hashes an entry lists, in lower-case hex; an algorithm other than ``HASHES`` is an error."""
    unknown = sorted(file.hashes.keys() - HASHES)
    if unknown:
        raise TargetError(f"{path}: hash algorithm {unknown[0]!r} is not one of {', '.join(sorted(HASHES))}")
    return {algorithm: value.lower() for algorithm, value in file.hashes.items()}


def verify_file(path: str, raw: bytes, length: int, expected: Mapping[str, str]) -> None:
    """Raise ``TargetError`` unless length and every hash fit."""
    try:
        TargetFile(length, dict(expected), path).verify_length_and_hashes(raw)
    except LengthOrHashMismatchError as error:
        raise TargetError(f"{path}: the file is not what the targets say: {error}") from None


def parse_expiry(text: str) -> datetime:
    """An RFC 3339 instant, with or without fraction, at any offset, as UTC; ``ValueError`` if it is none."""
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:80]!r} is no RFC 3339 instant")
    start, second, fraction, offset = match.groups()
    leap = second == "60"  # datetime has no leap seconds: the instant is the start of the next minute.
    when = datetime.fromisoformat(f"{start}{'59' if leap else second}{(fraction or '.')[:7]:0<7}{offset}".upper())
    try:
        return when.astimezone(UTC) + timedelta(seconds=int(leap))
    except OverflowError:
        raise ValueError(f"{text!r} is outside the years 1 to 9999 in UTC") from None


def _by_version(roots: Sequence[bytes]) -> dict[int, bytes]:
    """The roots by the version they claim; every one must decode, and no two may claim one version."""
    if len(roots) > MAX_ROOTS:
        raise TooLargeError(f"{len(roots)} roots in one update, more than {MAX_ROOTS}")
    found: dict[int, bytes] = {}
    for raw in roots:
        version = root_version(raw)
        if found.setdefault(version, raw) != raw:
            raise RootChainError(f"two different roots claim version {version}")
    return found


def _open(raw: bytes, limit: int, role: str, *, signed: bool = True) -> Envelope:
    """Take metadata apart. Without ``signed`` there need not be signatures, and they are not looked at."""
    if len(raw) > limit:
        raise TooLargeError(f"{role} metadata of {len(raw)} bytes, more than {limit}")
    try:
        whole = json.loads(raw)
        body = whole["signed"]
        if not isinstance(body, dict):
            raise TypeError("'signed' is no object")
        pairs = _signatures(whole) if signed else ()
        canonical = (encode_canonical(body) or "").encode() if signed else b""
    except FormatError as error:
        raise MetadataError(f"{role} metadata have no canonical form: {str(error)[-200:]}") from None
    except _SCHEMA as error:
        raise MetadataError(f"{role} metadata are malformed: {_words(error)}") from None
    kind = body.get("_type")
    if not isinstance(kind, str) or kind.lower() != role:
        raise MetadataError(f"expected metadata of type {role!r}, got {kind!r}")
    return Envelope(body, canonical, pairs)


def _signatures(whole: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The distinct (key id, signature) pairs of an envelope."""
    listed = whole["signatures"]
    if not isinstance(listed, list):
        raise TypeError("'signatures' is no list")
    if len(listed) > MAX_SIGNATURES:
        raise TooLargeError(f"{len(listed)} signatures, more than {MAX_SIGNATURES}")
    pairs = dict.fromkeys((entry["keyid"], entry["sig"]) for entry in listed)
    if not all(isinstance(part, str) for pair in pairs for part in pair):
        raise TypeError("a signature's 'keyid' or 'sig' is no string")
    return tuple(pairs)


def _read_root(raw: bytes) -> tuple[Envelope, TrustedRoot]:
    """Open and parse a root without verifying it."""
    envelope = _open(raw, MAX_ROOT, "root")
    expires = _expiry(envelope.signed, "root")
    return envelope, TrustedRoot(raw, _parse(Root, _normalised_root(envelope.signed, expires), "root"), expires)


def _normalised(signed: Mapping[str, Any], role: str, expires: datetime) -> dict[str, Any]:
    """The copy of ``signed`` that python-tuf is given: its expiry form, its ``_type``, no delegations."""
    copy = {key: value for key, value in signed.items() if key != "delegations"}
    whole_seconds = expires.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
    return copy | {"_type": role, "version": _version(signed, role), "expires": whole_seconds}


def _normalised_root(signed: Mapping[str, Any], expires: datetime) -> dict[str, Any]:
    """The same for a root: only the roles we use are its own, keys we cannot use are left out."""
    try:
        own = {name: dict(signed["roles"][name]) for name in ("root", "targets")}
        for name, role in own.items():
            if type(role["threshold"]) is not int or not isinstance(role["keyids"], list):
                raise TypeError(f"role {name!r} needs a list of key ids and a threshold")
            # A repeated id changes nothing, and python-tuf would refuse the whole root.
            role["keyids"] = list(dict.fromkeys(role["keyids"]))
        keys = {i: dict(k) for i, k in signed["keys"].items() if _usable(k)}
    except KeyError as error:
        raise MetadataError(f"root metadata lack {error.args[0]!r}") from None
    except _SCHEMA as error:
        raise MetadataError(f"root metadata are malformed: {_words(error)}") from None
    roles = own | {name: dict(_UNUSED) for name in ("timestamp", "snapshot")}
    return _normalised(signed, "root", expires) | {"roles": roles, "keys": keys}


def _usable(key: Mapping[str, Any]) -> bool:
    """Is the key of a type and scheme that the library verifies?"""
    if (key.get("keytype"), key.get("scheme")) not in KEY_FOR_TYPE_AND_SCHEME:
        return False
    try:
        _identity(Key.from_dict("", dict(key)))
    except (*_SCHEMA, UnsupportedAlgorithm):
        return False
    return True


def _parse(schema: type[_S], signed: dict[str, Any], role: str) -> _S:
    """python-tuf's parsing, with its errors made ours. ``signed`` is consumed."""
    try:
        return schema.from_dict(signed)
    except _SCHEMA as error:
        raise MetadataError(f"{role} metadata are malformed: {_words(error)}") from None


def _check_threshold(root: Root, role: str, envelope: Envelope, what: str) -> None:
    """Raise unless ``threshold`` distinct keys of the role have signed."""
    wanted = root.roles[role].threshold
    signers: set[bytes] = set()
    for keyid in root.roles[role].keyids:
        key = root.keys.get(keyid)
        if key is not None and _has_signed(key, keyid, envelope):
            signers.add(_identity(key))
            if len(signers) >= wanted:
                return
    raise ThresholdError(f"{what} is signed by {len(signers)} of {wanted} keys needed")


def _has_signed(key: Key, keyid: str, envelope: Envelope) -> bool:
    """Does any signature under the key's id, or under its hash, verify?"""
    names = {keyid, _hash_id(key)}
    for name, value in envelope.signatures:
        if name in names:
            try:
                key.verify_signature(Signature(keyid, value), envelope.canonical)
            except UnverifiedSignatureError:
                continue
            return True
    return False


def _hash_id(key: Key) -> str:
    """The id that some repositories use whatever the root calls the key: the hash of its canonical form."""
    return hashlib.sha256((encode_canonical(key.to_dict()) or "").encode()).hexdigest()


def _identity(key: Key) -> bytes:
    """What makes two keys the same key: the public point or number, not its id, scheme or spelling."""
    public: str = key.keyval["public"]
    if key.keytype == "ed25519":
        return bytes.fromhex(public)
    return load_pem_public_key(public.encode()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _version(signed: Mapping[str, Any], role: str) -> int:
    version = signed.get("version")
    if type(version) is not int or version < 1:
        raise MetadataError(f"{role} metadata have version {str(version)[:40]!r}, no positive integer")
    return version


def _expiry(signed: Mapping[str, Any], role: str) -> datetime:
    text = signed.get("expires")
    try:
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is no string")
        return parse_expiry(text)
    except ValueError as error:
        raise MetadataError(f"{role} metadata have no usable expiry: {error}") from None


def _check_entry(path: str, file: TargetFile) -> None:
    """What python-tuf's schema lets pass: a boolean as length."""
    if type(file.length) is not int:
        raise MetadataError(f"targets metadata are malformed: {path!r} has length {file.length!r}")


def _check_unexpired(what: str, expires: datetime, now: datetime) -> None:
    if now >= expires:
        raise ExpiredError(
            f"{what} expired at {expires.isoformat()}, it is {now.astimezone(UTC).isoformat(timespec='seconds')}",
            hint="either the server stopped signing or this machine's clock is wrong",
        )


def _words(error: BaseException) -> str:
    """An exception as a short line: its class says what kind of value surprised the parser."""
    return f"{type(error).__name__}: {str(error)[:200]}"
