"""(pure) The state of remote configuration: bytes in, a new immutable state or a ``RemoteError`` out.

A ``State`` is a value; ``apply`` gives another and never touches the first, so an error leaves everything as it was.
Laws:

- an update without roots, targets, files and configurations is the identity; any other needs targets;
- the same update twice: the second changes no product and keeps every apply status;
- afterwards the stored paths are exactly ``client_configs``, and each file's bytes have the length and every hash
  that the targets list; the products returned are exactly those with a file added, changed or removed;
- verified: what the docstring of ``tuf`` says, and a targets version never falls below the last accepted one, unless
  a root of the update changed the keys that sign targets (recovery from a fast-forward); an equal one is accepted;
- a state made from what another kept (``kept``, ``restored``) trusts the same root, refuses the same old targets, and
  holds no file; what was kept is verified again, dates apart, which are for the next update to look at;
- unverified: signatures, roots and dates are ignored, all that concerns paths and files is not;
- an apply status survives as long as the file's content does; the status of an unknown path is not kept;
- the backend's opaque state is replaced whenever the targets have a ``custom`` member, and kept otherwise.

A file whose listed hashes agree with the stored ones on a common algorithm is unchanged and need not be sent. Then,
unlike the original, its listed version, length and any further hash are still checked and taken over. Hashes with no
algorithm in common are never equal. Every product is kept as raw bytes; who consumes a product parses it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import IntEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

from tuf.api.metadata import TargetFile

from harness.remote import paths, tuf
from harness.remote.errors import PathError, RollbackError, TargetError

PRODUCTS = frozenset(
    {
        "UPDATER_CATALOG_DD", "UPDATER_AGENT", "UPDATER_TASK", "AGENT_CONFIG", "AGENT_FAILOVER", "AGENT_TASK",
        "AGENT_INTEGRATIONS", "APM_SAMPLING", "CWS_DD", "CWS_CUSTOM", "CWS_SECURITY_PROFILES", "CSM_SIDE_SCANNING",
        "ASM", "ASM_FEATURES", "ASM_DD", "ASM_DATA", "APM_TRACING", "SDS_RULES_DD", "SDS_AGENT_CONFIG",
        "LIVE_DEBUGGING", "CONTAINER_AUTOSCALING_SETTINGS", "CONTAINER_AUTOSCALING_VALUES", "TESTING1", "TESTING2",
    }
)  # fmt: skip
"""Products that may occur in a path; another one refuses the whole update."""

_U64_MAX = 2**64 - 1


class ApplyState(IntEnum):
    """What became of a configuration where it is consumed; the numbers are the wire's."""

    UNKNOWN = 0
    UNACKNOWLEDGED = 1
    ACKNOWLEDGED = 2
    ERROR = 3


class ApplyStatus(NamedTuple):
    """An apply state and, for ``ERROR``, its reason."""

    state: ApplyState = ApplyState.UNKNOWN
    error: str = ""


class Config(NamedTuple):
    """One stored configuration file. ``hashes`` are lower-case hex by algorithm, and nobody changes them."""

    path: str
    product: str
    id: str
    name: str
    version: int
    length: int
    hashes: Mapping[str, str]
    raw: bytes
    status: ApplyStatus = ApplyStatus()


@dataclass(frozen=True, slots=True)
class Update:
    """What a server sent: metadata as bytes, files by path, and the paths that this client is to have."""

    roots: tuple[bytes, ...] = ()
    targets: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    client_configs: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """True if there is nothing in it at all."""
        return not (self.roots or self.targets or self.files or self.client_configs)


class Change(NamedTuple):
    """What ``State.apply`` gives: the state after the update, and the products that changed."""

    state: State
    products: frozenset[str]


class Kept(NamedTuple):
    """What a client must remember, or a restart would let a server roll it back."""

    roots: tuple[bytes, ...]
    """All roots up to the one in force, from the one the client was born with."""
    targets: bytes = b""
    """The last accepted targets; empty before any."""


@dataclass(frozen=True)
class State:
    """A verified (``trusted`` is a root) or unverified (it is None) state. Make one with the class methods."""

    trusted: tuf.TrustedRoot | None
    unverified_root_version: int = 1
    targets_version: int = 0
    """Version of the targets that ``configs`` are listed in; 0 before any."""
    targets: bytes = field(default=b"", repr=False)
    """The last accepted targets, as received."""
    oldest_targets: int = 0
    """No targets below this version are accepted from the same keys."""
    opaque: bytes = b""
    """The backend's own state, sent back with every request."""
    configs: Mapping[str, Config] = field(default_factory=lambda: MappingProxyType({}))
    """Every stored file by its path."""
    products: frozenset[str] = PRODUCTS

    @classmethod
    def verified(cls, root: bytes, *, products: frozenset[str] = PRODUCTS) -> State:
        """A state that trusts ``root``, which must be signed by itself and may be expired."""
        return cls(tuf.load_root(root), products=products)

    @classmethod
    def unverified(cls, *, products: frozenset[str] = PRODUCTS) -> State:
        """A state that believes whatever the channel delivers."""
        return cls(None, products=products)

    @classmethod
    def restored(cls, root: bytes, kept: Kept, *, products: frozenset[str] = PRODUCTS) -> State:
        """A state that trusts ``root`` and goes on where another stopped.

        A ``root`` newer than those kept takes over; if other keys sign targets in it, the kept ones say nothing more.
        """
        trusted, last = tuf.load_root(root), tuf.load_root(kept.roots[-1])
        newer = trusted.version > last.version
        if not newer:
            for first in range(0, len(kept.roots), tuf.MAX_ROOTS):
                trusted = last = tuf.extend(trusted, kept.roots[first : first + tuf.MAX_ROOTS]).trusted
        if not kept.targets or (newer and trusted.targets_keys != last.targets_keys):
            return cls(trusted, products=products)
        oldest = tuf.read_targets(kept.targets, last, None).version
        return cls(trusted, targets=kept.targets, oldest_targets=oldest, products=products)

    @property
    def kept(self) -> Kept | None:
        """What is to be kept of it; None of an unverified state."""
        return None if self.trusted is None else Kept(self.trusted.chain, self.targets)

    @property
    def root_version(self) -> int:
        """Version of the root in force; unverified: of the last root seen, 1 before any."""
        return self.unverified_root_version if self.trusted is None else self.trusted.version

    @cached_property
    def _by_product(self) -> Mapping[str, Mapping[str, Config]]:
        rooms: dict[str, dict[str, Config]] = {}
        for path, config in self.configs.items():
            rooms.setdefault(config.product, {})[path] = config
        return {product: MappingProxyType(room) for product, room in rooms.items()}

    def of(self, product: str) -> Mapping[str, Config]:
        """The files of one product by path; empty for a product without any."""
        return self._by_product.get(product, MappingProxyType({}))

    def with_statuses(self, statuses: Mapping[str, ApplyStatus]) -> State:
        """The state with these paths' apply statuses set; unknown paths are left out."""
        known = {path: self.configs[path]._replace(status=s) for path, s in statuses.items() if path in self.configs}
        return replace(self, configs=MappingProxyType({**self.configs, **known})) if known else self

    def apply(self, update: Update, *, now: datetime) -> Change:
        """The state after ``update``, or a ``RemoteError`` that says why it is refused. ``now`` has a time zone."""
        if update.empty:
            return Change(self, frozenset())
        trusted, targets = self._verify(update, now)
        configs: dict[str, Config] = {}
        wanted = dict.fromkeys(update.client_configs)
        changed = {config.product for path, config in self.configs.items() if path not in wanted}
        for path in wanted:
            old = self.configs.get(path)
            configs[path], new = self._stage(path, targets.files.get(path), old, update.files)
            if new:
                changed.add(configs[path].product)
        following = replace(
            self,
            trusted=trusted,
            unverified_root_version=self._unverified_root(update),
            targets_version=targets.version,
            targets=b"" if trusted is None else update.targets,
            oldest_targets=targets.version,
            opaque=self.opaque if targets.custom is None else _opaque(targets.custom),
            configs=MappingProxyType(configs),
        )
        return Change(following, frozenset(changed))

    def _verify(self, update: Update, now: datetime) -> tuple[tuf.TrustedRoot | None, tuf.SignedTargets]:
        """Roots and targets of an update, as far as this state's mode asks."""
        if self.trusted is None:
            return None, tuf.believe_targets(update.targets)
        chain = tuf.extend(self.trusted, update.roots)
        tuf.check_in_force(chain.trusted, now)
        targets = tuf.read_targets(update.targets, chain.trusted, now)
        if targets.version < self.oldest_targets and not chain.rotated:
            raise RollbackError(
                f"targets {targets.version} are older than targets {self.oldest_targets} by the same keys"
            )
        return chain.trusted, targets

    def _unverified_root(self, update: Update) -> int:
        if self.trusted is None and update.roots:
            return tuf.root_version(update.roots[-1])
        return self.unverified_root_version

    def _stage(
        self, path: str, entry: TargetFile | None, old: Config | None, files: Mapping[str, bytes]
    ) -> tuple[Config, bool]:
        """The file to store under ``path``, all of it verified, and whether its content is new."""
        if entry is None:
            raise TargetError(f"{path}: the server wants this file, and the targets do not list it")
        version = _custom_version(path, entry)
        if old is not None and (version, entry.length, entry.hashes) == (old.version, old.length, old.hashes):
            return old, False
        hashes = tuf.check_entry(path, entry)
        if old is None:
            _, _, product, id, name = paths.parse(path)
            if product not in self.products:
                raise PathError(f"{path}: unknown product {product!r}")
        elif _same_content(old.hashes, hashes):
            tuf.verify_file(path, old.raw, entry)
            return old._replace(version=version, length=entry.length, hashes=hashes), False
        else:
            product, id, name = old.product, old.id, old.name
        if path not in files:
            raise TargetError(f"{path}: the file is new or changed, and was not sent")
        raw = files[path]
        tuf.verify_file(path, raw, entry)
        return Config(path, product, id, name, version, entry.length, hashes, raw), True


def files_by_path(sent: Iterable[tuple[str, bytes]]) -> dict[str, bytes]:
    """The files of a response as a mapping; of several under one path the last counts."""
    return dict(sent)


def _same_content(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Do the hashes agree on every algorithm that both list, of which there is at least one?"""
    common = False
    for algorithm, value in one.items():
        if algorithm in other:
            if other[algorithm] != value:
                return False
            common = True
    return common


def _custom_version(path: str, entry: TargetFile) -> int:
    """The configuration's own version, ``custom.v`` of its targets entry."""
    custom: Any = entry.unrecognized_fields.get("custom")
    version = custom.get("v") if isinstance(custom, dict) else None
    if type(version) is not int or not 0 <= version <= _U64_MAX:
        raise TargetError(
            f"{path}: the targets give no usable version of the file ('custom.v' is {str(version)[:40]!r})"
        )
    return version


def _opaque(custom: Any) -> bytes:
    """The opaque state in the targets' ``custom``; empty where there is none, or none that is base64."""
    try:
        return base64.b64decode(custom["opaque_backend_state"], validate=True)
    except (KeyError, TypeError, ValueError):
        return b""
