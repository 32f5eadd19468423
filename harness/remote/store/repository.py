"""(pure) One repository followed by all of TUF: root, timestamp, snapshot, targets, delegations. By python-tuf.

Nothing is changed in place: an update gives another ``TrustedRepository`` or a ``RemoteError``. Laws:

- what is in force after an update is signed, unexpired at ``now``, named by what stands above it in version (and hash
  where one is listed), and nowhere older than what was kept;
- a part that is not sent is taken from what was kept, and must still fit;
- roots extend the trusted one by one version each; their order means nothing, older ones are ignored;
- what was kept is verified again when it is loaded, dates apart;
- a delegated role counts for a path only through a delegation that its metadata verify against.

python-tuf's set of trusted metadata is what its own client stands on; it takes bytes where the client takes a server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from tuf.api.exceptions import (
    BadVersionNumberError,
    EqualVersionNumberError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import TargetFile, Targets
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from harness.remote import tuf
from harness.remote.errors import (
    ExpiredError,
    MetadataError,
    RemoteError,
    RollbackError,
    RootChainError,
    TargetError,
    ThresholdError,
    TooLargeError,
)

MAX_TIMESTAMP, MAX_SNAPSHOT = 16_384, 2_000_000
"""Bytes of a timestamp, of a snapshot; those of roots and targets are ``tuf``'s."""
MAX_DELEGATIONS = 256
"""Delegated roles that are followed."""
_ANY_TIME = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Metadata:
    """Metadata of one repository as bytes: what a backend sent, or what was kept. Empty: not sent."""

    roots: tuple[bytes, ...] = ()
    timestamp: bytes = b""
    snapshot: bytes = b""
    targets: bytes = b""
    delegated: Mapping[str, bytes] = field(default_factory=dict)
    """Delegated targets by role."""


@dataclass(frozen=True)
class TrustedRepository:
    """``kept`` are the bytes that ``trusted`` was made of; its roots are all from the first one on."""

    name: str
    kept: Metadata
    trusted: TrustedMetadataSet = field(repr=False, compare=False)

    @classmethod
    def begin(cls, name: str, root: bytes) -> TrustedRepository:
        """Trust ``root``, which may be expired, and know nothing else."""
        return cls(name, Metadata((root,)), _trust(name, root, _ANY_TIME))

    @classmethod
    def restored(cls, name: str, root: bytes, kept: Metadata) -> TrustedRepository:
        """What was kept, verified from ``root`` on; its dates are for the next update to look at.

        A ``root`` newer than those kept takes over; what it has other keys for is forgotten with the rest.
        """
        begun = cls.begin(name, root)
        if not kept.timestamp:
            return begun
        try:
            return begun._follow(kept, _ANY_TIME)
        except RemoteError:
            if begun.versions["root"] > tuf.root_version(kept.roots[-1]):
                return begun
            raise

    @property
    def filled(self) -> bool:
        """Has there been an update?"""
        return bool(self.kept.timestamp)

    @property
    def versions(self) -> dict[str, int]:
        """Version by top-level role; 0 before any."""
        return {
            role: self.trusted[role].version if role in self.trusted else 0
            for role in ("root", "timestamp", "snapshot", "targets")
        }

    @property
    def targets(self) -> Mapping[str, TargetFile]:
        """What the top-level targets list."""
        return self.trusted.targets.targets if self.filled else {}

    def custom(self, role: str) -> Any:
        """The ``custom`` member of a top-level role; None where there is none."""
        return self.trusted[role].unrecognized_fields.get("custom") if role in self.trusted else None

    def update(self, received: Metadata, now: datetime) -> TrustedRepository:
        """The repository after what was received."""
        _check_sizes(self.name, received)
        return self._follow(received, now)

    def _follow(self, received: Metadata, now: datetime) -> TrustedRepository:
        try:
            roots = (*self.kept.roots, *_newer(self.name, received.roots, self.versions["root"]))
            trusted = _trust(self.name, self.kept.roots[-1], now)
            for root in roots[len(self.kept.roots) :]:
                trusted.update_root(root)
            timestamp = _timestamp(self.name, trusted, self.kept.timestamp, received.timestamp)
            snapshot = _snapshot(self.name, trusted, self.kept.snapshot, received.snapshot)
            targets = _targets(self.name, trusted, "root", "targets", self.kept.targets, received.targets)
            delegated = dict(_delegated(self.name, trusted, self.kept.delegated, received.delegated))
        except RepositoryError as error:
            raise _typed(self.name, error) from None
        return TrustedRepository(self.name, Metadata(roots, timestamp, snapshot, targets, delegated), trusted)

    def find(self, path: str) -> TargetFile | None:
        """The entry of a path: of the first role that lists it, depth first in the order of the delegations."""
        stack, seen = [("root", "targets")], set()
        while stack and self.filled:
            parent, role = stack.pop()
            if role in seen:
                continue
            if not self.trusted.contains(role, parent):
                raise TargetError(f"{self.name}: {path} is for role {role!r}, whose metadata were not sent")
            seen.add(role)
            targets = _role(self.trusted, role)
            if path in targets.targets:
                return targets.targets[path]
            children = []
            for child, terminating in targets.delegations.get_roles_for_target(path) if targets.delegations else ():
                children.append((role, child))
                if terminating:
                    stack = []
                    break
            stack.extend(reversed(children))
        return None


def _role(trusted: TrustedMetadataSet, role: str) -> Targets:
    """Top-level or delegated targets."""
    return cast("Targets", trusted[role])


def _trust(name: str, root: bytes, now: datetime) -> TrustedMetadataSet:
    """A set that trusts this root, at this time."""
    try:
        trusted = TrustedMetadataSet(root, EnvelopeType.METADATA)
    except RepositoryError as error:
        raise _typed(name, error) from None
    trusted.reference_time = now
    return trusted


def _newer(name: str, roots: tuple[bytes, ...], than: int) -> list[bytes]:
    """Those roots that follow, in their order."""
    found = {version: raw for raw in roots if (version := tuf.root_version(raw)) > than}
    wanted = range(than + 1, than + 1 + len(found))
    if set(wanted) != found.keys():
        raise RootChainError(f"{name}: root {min(set(wanted) - found.keys())} is missing before {max(found)}")
    return [found[version] for version in wanted]


def _timestamp(name: str, trusted: TrustedMetadataSet, kept: bytes, received: bytes) -> bytes:
    """The timestamp in force; the kept one guards against an older."""
    error: Exception = MetadataError(f"{name}: no timestamp was sent")
    for raw, known in ((kept, True), (received, False)):
        if raw:
            try:
                trusted.update_timestamp(raw)
                kept = raw
            except EqualVersionNumberError:
                pass
            except RepositoryError as refused:
                # A kept one may be expired, or of keys that a new root has replaced.
                error = refused
                if not known:
                    raise
    if "timestamp" not in trusted:
        raise error
    return kept


def _snapshot(name: str, trusted: TrustedMetadataSet, kept: bytes, received: bytes) -> bytes:
    error: Exception = MetadataError(f"{name}: no snapshot was sent")
    for raw, known in ((kept, True), (received, False)):
        if raw:
            try:
                trusted.update_snapshot(raw, trusted=known)
                return raw
            except RepositoryError as refused:
                error = refused
    raise error


def _targets(name: str, trusted: TrustedMetadataSet, parent: str, role: str, kept: bytes, received: bytes) -> bytes:
    error: Exception = MetadataError(f"{name}: no metadata of role {role!r} were sent")
    for raw in filter(None, (kept, received)):
        try:
            trusted.update_delegated_targets(raw, role, parent)
            return raw
        except RepositoryError as refused:
            error = refused
    raise error


def _delegated(
    name: str, trusted: TrustedMetadataSet, kept: Mapping[str, bytes], received: Mapping[str, bytes]
) -> Iterator[tuple[str, bytes]]:
    """Every delegated role that is within reach and at hand."""
    ahead, done = ["targets"], {"targets"}
    while ahead:
        parent = ahead.pop()
        delegations = _role(trusted, parent).delegations
        for role in delegations.roles or () if delegations else ():
            if role not in kept and role not in received:
                continue
            raw = _targets(name, trusted, parent, role, kept.get(role, b""), received.get(role, b""))
            if role not in done:
                done.add(role)
                ahead.append(role)
                yield role, raw
            if len(done) > MAX_DELEGATIONS:
                raise TooLargeError(f"{name}: more than {MAX_DELEGATIONS} delegated roles")


def _check_sizes(name: str, received: Metadata) -> None:
    if len(received.roots) > tuf.MAX_ROOTS:
        raise TooLargeError(f"{name}: {len(received.roots)} roots, more than {tuf.MAX_ROOTS}")
    parts = [
        *((f"root number {n}", raw, tuf.MAX_ROOT) for n, raw in enumerate(received.roots)),
        ("timestamp", received.timestamp, MAX_TIMESTAMP),
        ("snapshot", received.snapshot, MAX_SNAPSHOT),
        ("targets", received.targets, tuf.MAX_TARGETS),
        *((role, raw, tuf.MAX_TARGETS) for role, raw in received.delegated.items()),
    ]
    for part, raw, most in parts:
        if len(raw) > most:
            raise TooLargeError(f"{name}: {part} of {len(raw)} bytes, more than {most}")


def _typed(name: str, error: Exception) -> RemoteError:
    """python-tuf's error as one of ours."""
    kinds: dict[type[Exception], type[RemoteError]] = {
        ExpiredMetadataError: ExpiredError,
        BadVersionNumberError: RollbackError,
        UnsignedMetadataError: ThresholdError,
        LengthOrHashMismatchError: TargetError,
    }
    kind = next((ours for theirs, ours in kinds.items() if isinstance(error, theirs)), MetadataError)
    return kind(f"{name}: {str(error)[:300]}")
