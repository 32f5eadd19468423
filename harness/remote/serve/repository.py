"""(pure) A repository of configurations and its signed metadata, made with python-tuf.

``Repository`` is honest; ``sign`` and the ``*_object`` functions build whatever a dishonest one would send. Keys go by
names: a ``Keyring`` gives the key of a name. Laws: every root is signed by its own keys and those of the root before;
the same repository gives the same bytes (ed25519 signs without chance).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Role, Root

from harness.remote import paths
from harness.remote.state import Update

Keyring = Callable[[str], CryptoSigner]
"""The key of a name, the same at every call."""

SPECIFICATION = "1.0.31"
_ROLES = ("root", "targets", "timestamp", "snapshot")


class Content(NamedTuple):
    """A file to serve: its bytes and its configuration version."""

    raw: bytes
    version: int


def instant(when: datetime) -> str:
    """The usual form of an expiry."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def sign(signed: Mapping[str, Any], signers: Iterable[CryptoSigner], *, ids: Sequence[str] = ()) -> bytes:
    """Metadata over any object, signed by these keys; ``ids``, if given, are what the signatures call them."""
    payload = (encode_canonical(dict(signed)) or "").encode()
    keys = list(signers)
    names = ids or [key.public_key.keyid for key in keys]
    signatures = [{"keyid": name, "sig": key.sign(payload).signature} for key, name in zip(keys, names, strict=True)]
    return json.dumps({"signatures": signatures, "signed": signed}).encode()


def root_object(
    version: int,
    root: Iterable[CryptoSigner],
    targets: Iterable[CryptoSigner],
    *,
    snapshot: Iterable[CryptoSigner] = (),
    timestamp: Iterable[CryptoSigner] = (),
    thresholds: tuple[int, int] = (1, 1),
    expires: datetime,
) -> dict[str, Any]:
    """The signed part of a root."""
    made = Root(version, SPECIFICATION, expires, {}, {role: Role([], 1) for role in _ROLES})
    for role, keys in (("root", root), ("targets", targets), ("snapshot", snapshot), ("timestamp", timestamp)):
        for key in keys:
            made.add_key(key.public_key, role)
    for role, threshold in zip(("root", "targets"), thresholds, strict=True):
        made.roles[role].threshold = threshold
    return made.to_dict()


def targets_object(
    version: int, files: Mapping[str, Mapping[str, Any]], *, expires: datetime, opaque: bytes | None = None
) -> dict[str, Any]:
    """The signed part of targets."""
    custom: dict[str, Any] = {}
    if opaque is not None:
        custom = {"custom": {"opaque_backend_state": base64.b64encode(opaque).decode()}}
    return {
        "_type": "targets",
        "spec_version": SPECIFICATION,
        "version": version,
        "expires": instant(expires),
        "targets": files,
    } | custom


def pointer_object(kind: str, version: int, name: str, *, expires: datetime) -> dict[str, Any]:
    """The signed part of a snapshot or a timestamp that names one file, in the same version."""
    return {
        "_type": kind,
        "spec_version": SPECIFICATION,
        "version": version,
        "expires": instant(expires),
        "meta": {name: {"version": version}},
    }


def hashes(raw: bytes, algorithms: Iterable[str]) -> dict[str, str]:
    """Lower-case hex by algorithm."""
    return {algorithm: hashlib.new(algorithm, raw).hexdigest() for algorithm in algorithms}


def entry(raw: bytes, version: int, algorithms: Sequence[str] = ("sha256",)) -> dict[str, Any]:
    """A targets entry of a file."""
    return {"length": len(raw), "hashes": hashes(raw, algorithms), "custom": {"v": version}}


class Cached(NamedTuple):
    """What a client says of a file that it has."""

    length: int
    hashes: Mapping[str, str]


@dataclass(frozen=True)
class Published:
    """What a repository shows at one moment: every root so far, the signed targets, and the files."""

    roots: tuple[bytes, ...]
    targets: bytes
    targets_version: int
    files: Mapping[str, Content]
    entries: Mapping[str, Mapping[str, Any]]
    snapshot: bytes = b""
    timestamp: bytes = b""
    """These two, in the version of the targets, are for who follows all of TUF; empty: for nobody."""

    def update(
        self, root_version: int, cached: Mapping[str, Cached], products: Collection[str] | None = None
    ) -> Update:
        """All that a client lacks, and the targets. ``products`` None: of all products."""
        wanted = [path for path in self.files if products is None or paths.parse(path).product in products]
        return Update(
            roots=self.roots[root_version:],
            targets=self.targets,
            files={path: self.files[path].raw for path in wanted if not self._has(path, cached.get(path))},
            client_configs=tuple(wanted),
        )

    def _has(self, path: str, cached: Cached | None) -> bool:
        """Does the client's file have this length, and these hashes where it names one of the same algorithm?"""
        if cached is None or cached.length != self.entries[path]["length"]:
            return False
        listed = self.entries[path]["hashes"]
        common = listed.keys() & cached.hashes.keys()
        return bool(common) and all(listed[name] == cached.hashes[name] for name in common)


@dataclass
class Repository:
    """An honest one. Change ``files`` and ``targets_version``, rotate keys, then ``publish``."""

    root_keys: tuple[str, ...] = ("root-0",)
    targets_keys: tuple[str, ...] = ("targets-0",)
    thresholds: tuple[int, int] = (1, 1)
    """How many keys of the root and of the targets must sign."""
    online_keys: tuple[str, ...] = field(default=(), kw_only=True)
    """The key of snapshot and that of timestamp, where there are to be such."""
    files: dict[str, Content] = field(default_factory=dict)
    algorithms: tuple[str, ...] = ("sha256",)
    opaque: bytes | None = None
    targets_version: int = 1
    roots: list[bytes] = field(default_factory=list)
    """Every root ever published; version N at index N - 1."""
    keyring: Keyring = field(kw_only=True)
    expires: datetime = field(kw_only=True)
    """Of targets."""
    root_expires: datetime = field(kw_only=True)
    """Of roots, where nothing else is said."""

    def __post_init__(self) -> None:
        if not self.roots:
            self.publish_root((), self.root_expires)

    def keys(self, names: Iterable[str]) -> list[CryptoSigner]:
        """The keys of these names."""
        return [self.keyring(name) for name in names]

    def publish_root(self, also: Iterable[str], expires: datetime) -> None:
        """Append a root with the present keys, signed by them and by ``also`` (those of the root before)."""
        root = root_object(
            len(self.roots) + 1,
            self.keys(self.root_keys),
            self.keys(self.targets_keys),
            snapshot=self.keys(self.online_keys[:1]),
            timestamp=self.keys(self.online_keys[1:]),
            thresholds=self.thresholds,
            expires=expires,
        )
        self.roots.append(sign(root, self.keys(dict.fromkeys((*self.root_keys, *also)))))

    def rotate(
        self,
        *,
        root: tuple[str, ...] | None = None,
        targets: tuple[str, ...] | None = None,
        thresholds: tuple[int, int] | None = None,
        expires: datetime | None = None,
    ) -> None:
        """Publish a root with other keys or thresholds; what is not named stays."""
        before = self.root_keys
        self.root_keys = root or before
        self.targets_keys = targets or self.targets_keys
        self.thresholds = thresholds or self.thresholds
        self.publish_root(before, expires or self.root_expires)

    def targets(self) -> dict[str, Any]:
        """The signed part of the present targets."""
        return targets_object(self.targets_version, self.entries(), expires=self.expires, opaque=self.opaque)

    def entries(self) -> dict[str, dict[str, Any]]:
        """What the present targets list, by path."""
        return {path: entry(raw, version, self.algorithms) for path, (raw, version) in self.files.items()}

    def publish(self, *, targets: bytes | None = None) -> Published:
        """What there is to show now, with these targets or the present ones, signed."""
        signed = sign(self.targets(), self.keys(self.targets_keys)) if targets is None else targets
        files = {path: Content(*content) for path, content in self.files.items()}
        return Published(tuple(self.roots), signed, self.targets_version, files, self.entries(), *self._pointers())

    def _pointers(self) -> Iterable[bytes]:
        """Snapshot and timestamp, signed; nothing where there are none."""
        named = (("snapshot", "targets.json"), ("timestamp", "snapshot.json"))
        for (kind, name), key in zip(named, self.online_keys, strict=False):
            yield sign(pointer_object(kind, self.targets_version, name, expires=self.expires), self.keys([key]))
