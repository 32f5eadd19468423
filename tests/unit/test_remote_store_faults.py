"""What a backend may do wrong to an agent's store: each is a typed error, and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import TargetFile
from tuf_backend import NOW, OTHER, OWN, PATH, Backend, content, everything, sent
from tuf_repository import Repository
from tuf_server import signer

from harness.remote import errors
from harness.remote.store.agent import Received
from harness.remote.store.repository import MAX_SNAPSHOT, MAX_TIMESTAMP, Metadata

DAY = timedelta(days=1)


@pytest.fixture
def backend() -> Backend:
    made = Backend()
    made.put(PATH, b"one")
    made.put(OWN, b"own")
    return made


Fault = Callable[[Backend], "Received | None"]
FAULTS: dict[str, tuple[Fault, type[errors.RemoteError], str]] = {}


def fault(kind: type[errors.RemoteError], words: str) -> Callable[[Fault], Fault]:
    """Put what a backend may do wrong into the table: it gives what to send, or None for all that is published."""

    def add(build: Fault) -> Fault:
        FAULTS[build.__name__] = build, kind, words
        return build

    return add


def changed(repository: Repository, **parts: Any) -> Metadata:
    return replace(sent(repository), **parts)


@fault(errors.UptaneError, "that the config repository does not")
def a_file_of_the_director_alone(backend: Backend) -> None:
    backend.put(OTHER, b"x", backend.director)


@fault(errors.UptaneError, "9 bytes for the director, 3 for")
def other_lengths(backend: Backend) -> None:
    backend.put(PATH, b"two", backend.config)
    backend.put(PATH, b"of nine b", backend.director)


@fault(errors.UptaneError, "list other hashes")
def other_hashes(backend: Backend) -> None:
    backend.put(PATH, b"two", backend.config)
    backend.put(PATH, b"TWO", backend.director)


@fault(errors.UptaneError, "list other hashes")
def one_hash_more(backend: Backend) -> None:
    backend.config.targets.targets[PATH] = TargetFile.from_data(PATH, b"one", ["sha256", "sha512"])


@fault(errors.UptaneError, "never sent")
def a_file_that_is_not_sent(backend: Backend) -> None:
    backend.put(OTHER, b"x")
    del backend.files[OTHER]


@fault(errors.TargetError, "not what the targets say")
def a_file_of_other_bytes(backend: Backend) -> None:
    backend.files[PATH] = b"two"


@fault(errors.UptaneError, "organisation 3, this is 2")
def a_file_of_another_organisation(backend: Backend) -> None:
    backend.put("datadog/3/TESTING1/a/b", b"x")


@fault(errors.PathError, "unknown source")
def a_path_that_is_none(backend: Backend) -> None:
    backend.put("elsewhere/x", b"x")


@fault(errors.UptaneError, "director: the snapshot is of organisation 'them', this is 'us'")
def a_snapshot_of_another_organisation(backend: Backend) -> None:
    backend.director.snapshot.unrecognized_fields["custom"] = {"org_uuid": "them"}


@fault(errors.UptaneError, "config: the snapshot is of organisation 'them', this is 'us'")
def a_config_snapshot_of_another_organisation(backend: Backend) -> None:
    backend.director.snapshot.unrecognized_fields["custom"] = {"org_uuid": "us"}
    backend.config.snapshot.unrecognized_fields["custom"] = {"org_uuid": "them"}


@fault(errors.UptaneError, "is no string")
def an_organisation_that_is_no_name(backend: Backend) -> None:
    backend.config.snapshot.unrecognized_fields["custom"] = {"org_uuid": 7}


@fault(errors.ThresholdError, "config: ")
def targets_by_the_wrong_key(backend: Backend) -> None:
    backend.config.signers["targets"] = [signer("evil")]


@fault(errors.ThresholdError, "director: ")
def a_timestamp_by_the_wrong_key(backend: Backend) -> None:
    backend.director.signers["timestamp"] = [signer("evil")]


@fault(errors.ThresholdError, "director: ")
def a_root_by_its_own_keys_alone(backend: Backend) -> None:
    backend.director.set_keys("root", [signer("evil")])
    backend.director.publish_root()


@fault(errors.RootChainError, "root 2 is missing before 3")
def a_root_is_missing(backend: Backend) -> Received:
    backend.director.publish_root()
    backend.director.publish_root()
    whole = backend.publish()
    return replace(whole, director=replace(whole.director, roots=whole.director.roots[2:]))


@fault(errors.ExpiredError, "root.json is expired")
def an_expired_root(backend: Backend) -> None:
    backend.config.root.expires = NOW.replace(microsecond=0) - DAY
    backend.config.publish_root()


@fault(errors.ExpiredError, "targets is expired")
def expired_targets(backend: Backend) -> None:
    backend.director.targets.expires = NOW.replace(microsecond=0) - DAY


@fault(errors.RollbackError, "director: ")
def older_targets(backend: Backend) -> None:
    backend.director.targets.version -= 2


@fault(errors.RollbackError, "config: ")
def targets_of_yesterday(backend: Backend) -> Received:
    whole = backend.publish()
    old = backend.config.metadata(f"{backend.config.targets.version - 1}.targets.json")
    return replace(whole, config=replace(whole.config, targets=old))


@fault(errors.MetadataError, "no snapshot|Failed")
def a_snapshot_that_is_none(backend: Backend) -> Received:
    return replace(backend.publish(), config=changed(backend.config, snapshot=b"{}"))


@fault(errors.RollbackError, "Expected snapshot version")
def a_snapshot_that_is_not_sent(backend: Backend) -> Received:
    whole = backend.publish()
    return replace(whole, director=replace(whole.director, snapshot=b""))


@fault(errors.TooLargeError, "timestamp of 16385 bytes")
def a_timestamp_too_large(backend: Backend) -> Received:
    return replace(backend.publish(), config=changed(backend.config, timestamp=b" " * (MAX_TIMESTAMP + 1)))


@fault(errors.TooLargeError, "snapshot of 2000001 bytes")
def a_snapshot_too_large(backend: Backend) -> Received:
    return replace(backend.publish(), config=changed(backend.config, snapshot=b" " * (MAX_SNAPSHOT + 1)))


@fault(errors.TooLargeError, "257 roots")
def too_many_roots(backend: Backend) -> Received:
    return replace(backend.publish(), director=changed(backend.director, roots=(b"{}",) * 257))


@fault(errors.MetadataError, "malformed")
def a_root_that_is_none(backend: Backend) -> Received:
    return replace(backend.publish(), director=changed(backend.director, roots=(b"{}",)))


@fault(errors.TargetError, "role 'more', whose metadata were not sent")
def a_delegated_role_that_is_not_sent(backend: Backend) -> Received:
    backend.config.delegate("targets", "more", ["datadog/2/ASM/*/*"])
    backend.put(OTHER, b"x", backend.director)
    whole = backend.publish()
    return replace(whole, config=replace(whole.config, delegated={}))


@fault(errors.ThresholdError, "config: ")
def a_delegated_role_by_the_wrong_key(backend: Backend) -> None:
    backend.config.delegate("targets", "more", ["*"])
    backend.config.signers["more"] = [signer("evil")]


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("fresh", [False, True])
def test_what_is_wrong_changes_nothing(backend: Backend, tmp_path: Path, name: str, fresh: bool) -> None:
    """Neither in memory nor on disk, for a store that holds something and for one that does not."""
    if fresh and name in {"older_targets", "targets_of_yesterday", "a_snapshot_that_is_not_sent"}:
        fresh = False  # Nothing is older than nothing.
    build, kind, words = FAULTS[name]
    with backend.store(tmp_path / "store.db", org_uuid=lambda: "us") as store:
        if not fresh:
            store.update(backend.publish())
        before = everything(store)
        received = build(backend) or backend.publish()
        with pytest.raises(errors.RemoteError, match=words) as raised:
            store.update(received)
        assert type(raised.value) is kind
        assert everything(store) == before
        assert content(store) == ({} if fresh else {PATH: b"one", OWN: b"own"})
    with backend.store(tmp_path / "store.db") as store:
        assert everything(store) == before
