"""(pure) Metadata as bytes, taken apart: what was signed, over which bytes, by whom, and python-tuf's reading of it.

Nothing here verifies a signature (``tuf`` does). Laws: the bytes that signatures are over are the canonical form of
``signed`` as received; python-tuf is given a normalised copy; sizes are checked before parsing; no input whatever
raises anything but a ``RemoteError``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import KEY_FOR_TYPE_AND_SCHEME, Key
from tuf.api.metadata import Root, Targets

from harness.remote.errors import MetadataError, TooLargeError

MAX_SIGNATURES = 256
"""Signatures on one piece of metadata: each costs a verification."""
MAX_VERSION = 2**63 - 1
"""Of a root or of targets: the request that names it has room for no more."""

_HOUR_MINUTE = r"(?:[01]\d|2[0-3]):[0-5]\d"
_INSTANT = re.compile(
    rf"(\d{{4}}-\d\d-\d\dT{_HOUR_MINUTE}:)([0-5]\d|60)(\.\d+)?(Z|[+-]{_HOUR_MINUTE})", re.ASCII | re.IGNORECASE
)
_SCHEMA = (AttributeError, KeyError, TypeError, ValueError, RecursionError, OverflowError)
"""What python-tuf raises on values of unexpected types."""
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
_UNUSED = {"keyids": [], "threshold": 1}

_S = TypeVar("_S", Root, Targets)


@dataclass(frozen=True, slots=True)
class Envelope:
    """Metadata taken apart: what was signed, the bytes that the signatures are over, and the signatures."""

    signed: dict[str, Any]
    canonical: bytes
    signatures: tuple[tuple[str, str], ...]
    """Pairs of key id and signature (hex), in the order received."""


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


def open_metadata(raw: bytes, limit: int, role: str, *, signed: bool = True) -> Envelope:
    """Take metadata apart. Without ``signed`` there need not be signatures, nor a ``_type``."""
    if len(raw) > limit:
        raise TooLargeError(f"{role} metadata of {len(raw)} bytes, more than {limit}")
    try:
        whole = json.loads(raw, parse_float=str.encode)  # Bytes, which no encoder takes for anything else.
        body = whole["signed"]
        if not isinstance(body, dict):
            raise TypeError("'signed' is no object")
        pairs = _signatures(whole) if signed else ()
        canonical = canonical_form(body) if signed else b""
    except FormatError as error:
        raise MetadataError(f"{role} metadata have no canonical form: {str(error)[-200:]}") from None
    except _SCHEMA as error:
        raise MetadataError(f"{role} metadata are malformed: {_words(error)}") from None
    kind = body.get("_type", None if signed else role)
    if not isinstance(kind, str) or kind.lower() != role:
        raise MetadataError(f"expected metadata of type {role!r}, got {kind!r}")
    return Envelope(body, canonical, pairs)


def canonical_form(value: Any) -> bytes:
    """``encode_canonical``, by json's encoder where the two agree: it escapes more, and only with a backslash."""
    try:
        text = _ENCODER.encode(value)
        if "\\" not in text:
            return text.encode()
    except (TypeError, ValueError):
        pass  # A number with a fraction: the other one says so.
    return (encode_canonical(value) or "").encode()


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


def normalised(signed: Mapping[str, Any], role: str, expires: datetime) -> dict[str, Any]:
    """The copy of ``signed`` that python-tuf is given: its expiry form, its ``_type``, no version 0, no delegations."""
    copy = {key: value for key, value in signed.items() if key != "delegations"}
    whole_seconds = expires.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
    return copy | {"_type": role, "version": max(1, version_of(signed, role)), "expires": whole_seconds}


def normalised_root(signed: Mapping[str, Any], expires: datetime) -> dict[str, Any]:
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
    return normalised(signed, "root", expires) | {"roles": roles, "keys": keys}


def _usable(key: Mapping[str, Any]) -> bool:
    """Is the key of a type and scheme that the library verifies?"""
    if (key.get("keytype"), key.get("scheme")) not in KEY_FOR_TYPE_AND_SCHEME:
        return False
    try:
        identity(Key.from_dict("", dict(key)))
    except (*_SCHEMA, UnsupportedAlgorithm):
        return False
    return True


def parse(schema: type[_S], signed: dict[str, Any], role: str) -> _S:
    """python-tuf's parsing, with its errors made ours. ``signed`` is consumed."""
    try:
        return schema.from_dict(signed)
    except _SCHEMA as error:
        raise MetadataError(f"{role} metadata are malformed: {_words(error)}") from None


def hash_id(key: Key) -> str:
    """The id that some repositories use whatever the root calls the key: the hash of its canonical form."""
    return hashlib.sha256(canonical_form(key.to_dict())).hexdigest()


def identity(key: Key) -> bytes:
    """What makes two keys the same key: the public point or number, not its id, scheme or spelling."""
    public: str = key.keyval["public"]
    if key.keytype == "ed25519":
        return bytes.fromhex(public)
    return load_pem_public_key(public.encode()).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def version_of(signed: Mapping[str, Any], role: str) -> int:
    """The version: an integer of at most ``MAX_VERSION``, of targets 0 or more, of a root 1 or more."""
    version, least = signed.get("version"), 0 if role == "targets" else 1
    if type(version) is not int or not least <= version <= MAX_VERSION:
        raise MetadataError(f"{role} metadata have version {repr(version)[:40]}, no integer from {least} to 2^63 - 1")
    return version


def expiry_of(signed: Mapping[str, Any], role: str) -> datetime:
    """The exact expiry; python-tuf's would lose the fraction."""
    text = signed.get("expires")
    try:
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is no string")
        return parse_expiry(text)
    except ValueError as error:
        raise MetadataError(f"{role} metadata have no usable expiry: {error}") from None


def _words(error: BaseException) -> str:
    """An exception as a short line: its class says what kind of value surprised the parser."""
    return f"{type(error).__name__}: {str(error)[:200]}"
