"""The agent's store: two real repositories that must agree, a database, and everything that can be wrong with them."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from tuf_backend import NOW, OTHER, OWN, PATH, Backend, content, everything, sent
from tuf_server import signer

from harness.errors import HarnessError
from harness.remote import errors
from harness.remote.client import Client
from harness.remote.endpoint import Endpoint
from harness.remote.serve.host import Host
from harness.remote.serve.server import GrpcServer
from harness.remote.state import State
from harness.remote.store.agent import FRESH, AgentStore, Received
from harness.remote.store.repository import Metadata
from harness.telemetry import Registry

DAY = timedelta(days=1)


@pytest.fixture
def backend() -> Backend:
    made = Backend()
    made.put(PATH, b"one")
    made.put(OWN, b"own")
    return made


@pytest.fixture
def store(backend: Backend, tmp_path: Path) -> Iterator[AgentStore]:
    with backend.store(tmp_path / "store.db") as made:
        yield made


def test_an_update_is_served_until_the_next(backend: Backend, store: AgentStore) -> None:
    assert (store.targets(), store.published().targets) == ({}, b"")
    assert store.versions()["director"] == {"root": 1, "timestamp": 0, "snapshot": 0, "targets": 0}
    store.update(backend.publish())
    assert content(store) == {PATH: b"one", OWN: b"own"}
    assert store.published() is store.published()
    assert store.published().files == {PATH: (b"one", 1), OWN: (b"own", 1)}
    assert store.versions()["director"] == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 2}
    backend.put(PATH, b"two")
    backend.put(OTHER, b"more")
    backend.remove(OWN)
    store.update(backend.publish())
    assert content(store) == {PATH: b"two", OTHER: b"more"}
    assert store._database.file(OWN) is None, "pruned"


def test_a_client_follows_what_the_store_serves(backend: Backend, store: AgentStore) -> None:
    """Through a change of the director's keys."""
    state = State.verified(backend.director.metadata("1.root.json"))
    for number in range(2):
        backend.put(PATH, b"%d" % number)
        store.update(backend.publish())
        state = state.apply(store.published().update(state.root_version, {}), now=NOW).state
        assert (state.configs[PATH].raw, state.root_version) == (b"%d" % number, number + 1)
        backend.director.rotate_root([signer(f"root of {number}")])


def test_served_over_grpc_and_followed_by_a_real_client(backend: Backend, store: AgentStore, tmp_path: Path) -> None:
    """Backend, store, server, client: a change goes all the way, and one that is refused goes no way at all."""
    state = State.verified(backend.director.metadata("1.root.json"))
    host = Host(store, random.Random(0))
    fetcher = Endpoint(f"unix://{tmp_path}/socket").fetcher(lambda: "token")
    with (
        GrpcServer(host.serve, address=f"unix:{tmp_path}/socket"),
        Client(fetcher, state, products=("TESTING1",), metrics=Registry()) as client,
    ):
        assert client.update() == frozenset()
        store.update(backend.publish())
        assert client.update() == {"TESTING1"}
        assert {path: c.raw for path, c in client.state.configs.items()} == {PATH: b"one", OWN: b"own"}
        assert client.update() == frozenset()
        backend.put(PATH, b"evil", backend.director)
        with pytest.raises(errors.UptaneError):
            store.update(backend.publish())
        assert client.update() == frozenset()
        backend.put(PATH, b"good")
        backend.director.rotate_root([signer("new")])
        store.update(backend.publish())
        assert client.update() == {"TESTING1"}
        assert (client.state.configs[PATH].raw, client.state.root_version) == (b"good", 2)


def test_what_is_not_sent_stays(backend: Backend, store: AgentStore) -> None:
    store.update(backend.publish())
    before = everything(store)
    store.update(Received())
    store.update(backend.received())
    assert everything(store) == before
    backend.director.publish()
    store.update(Received(director=sent(backend.director, known=1)))
    assert store.versions()["director"]["targets"] == 3
    assert store.versions()["config"]["targets"] == 2


def test_the_first_update_needs_both(backend: Backend, store: AgentStore) -> None:
    whole = backend.publish()
    for part in (replace(whole, config=Metadata()), replace(whole, director=Metadata()), Received()):
        with pytest.raises(errors.MetadataError, match="no timestamp was sent"):
            store.update(part)
    assert store.targets() == {}


def test_restart(backend: Backend, tmp_path: Path) -> None:
    """All is there again, and nothing older is taken; dates matter to the next update."""
    path = tmp_path / "store.db"
    old = backend.publish()
    with backend.store(path) as store:
        store.update(old)
        backend.config.rotate_root([signer("other")])
        store.update(backend.publish())
        before = everything(store)
    late = {"clock": lambda: NOW + 100 * DAY}
    with backend.store(path, **late) as store:
        assert everything(store) == before
        assert content(store) == backend.files
        with pytest.raises(errors.ExpiredError):
            store.update(Received())
    with backend.store(path) as store:
        store.close()
    with backend.store(path) as store:
        with pytest.raises(errors.RollbackError):
            store.update(old)
        assert everything(store) == before


def test_a_newer_first_root(backend: Backend, tmp_path: Path) -> None:
    """An upgrade brings roots that the database has not seen: with the same other keys all stays, else all goes."""
    path = tmp_path / "store.db"
    with backend.store(path) as store:
        store.update(backend.publish())
    for repository in (backend.director, backend.config):
        repository.rotate_root([signer("new")])
        repository.rotate_root([signer("newer")])
    config = backend.config.metadata("3.root.json")
    with AgentStore(path, director=backend.director.metadata("3.root.json"), config=config) as store:
        assert store.versions()["director"] == {"root": 3, "timestamp": 2, "snapshot": 2, "targets": 2}
        assert store.published().roots == (b"", b"", backend.director.metadata("3.root.json"))
    backend.director.set_keys("timestamp", [signer("new timestamp")])
    backend.director.publish_root()
    with AgentStore(path, director=backend.director.metadata("4.root.json"), config=config) as store:
        assert store.versions()["director"] == {"root": 4, "timestamp": 0, "snapshot": 0, "targets": 0}
        store.update(replace(backend.publish(), director=sent(backend.director, known=4)))
        assert content(store) == backend.files


def test_a_full_disk(backend: Backend, store: AgentStore) -> None:
    """SQLite's own refusal, in the middle of the transaction."""
    store.update(backend.publish())
    before = everything(store)
    pages = store._database._run("PRAGMA page_count")[0][0]
    store._database._run(f"PRAGMA max_page_count = {pages}")
    backend.put(OTHER, os.urandom(100_000))
    with pytest.raises(errors.StoreError, match="full"):
        store.update(backend.publish())
    assert everything(store) == before
    store._database._run("PRAGMA max_page_count = 100000")
    store.update(backend.publish())
    assert content(store) == backend.files


def test_delegated_files(backend: Backend, store: AgentStore) -> None:
    """Of the config repository: depth first, ended by a role that terminates, however deep."""
    config = backend.config
    config.delegate("targets", "asm", ["datadog/2/ASM/*/*"])
    config.delegate("asm", "deep", ["datadog/2/ASM/c/*"], terminating=True)
    config.delegate("asm", "after", ["datadog/2/ASM/*/*"])
    config.delegate("targets", "late", ["datadog/2/ASM/*/*"])
    raw = b"delegated"
    backend.put(OTHER, raw, backend.director)
    config.add_file(OTHER, raw, "late")
    config.add_file(OTHER, raw, "after")
    with pytest.raises(errors.UptaneError, match="does not"):
        store.update(backend.publish())
    config.add_file(OTHER, raw, "deep")
    store.update(backend.publish())
    assert content(store)[OTHER] == raw
    other = "datadog/2/ASM/d/e"
    backend.put(other, raw, backend.director)
    config.add_file(other, raw, "late")
    store.update(backend.publish())
    assert content(store)[other] == raw
    config.roles["deep"].targets.clear()
    with pytest.raises(errors.UptaneError, match="does not"):
        store.update(backend.publish())


def test_verified_again_after_a_minute(backend: Backend, tmp_path: Path) -> None:
    """What changes in the database meanwhile is not served then."""
    clock = [0.0]
    path = tmp_path / "store.db"
    with backend.store(path, monotonic=lambda: clock[0]) as store:
        store.update(backend.publish())
        with sqlite3.connect(path) as other:
            other.execute("UPDATE file SET raw = ? WHERE path = ?", (b"new", OWN))
        clock[0] = FRESH - 1
        assert store.file(PATH) == b"one"
        with pytest.raises(errors.TargetError):
            store.file(OWN)
        clock[0] = FRESH
        for _ in range(2):
            with pytest.raises(errors.TargetError, match="not what the targets say"):
                store.file(PATH)
        with sqlite3.connect(path) as other:
            other.execute("UPDATE file SET raw = ? WHERE path = ?", (b"own", OWN))
        assert store.file(PATH) == b"one"
    with pytest.raises(errors.TargetError, match="does not list"), backend.store(path) as store:
        store.file(OTHER)


def test_the_organisation_is_asked_for_once_a_root(backend: Backend, tmp_path: Path) -> None:
    asked = []

    def who() -> str:
        asked.append(1)
        return "us"

    path = tmp_path / "store.db"
    for repository in (backend.director, backend.config):
        repository.snapshot.unrecognized_fields["custom"] = {"org_uuid": "us"}
    with backend.store(path) as store, pytest.raises(errors.StoreError, match="nobody said"):
        store.update(backend.publish())
    for rotations, times in ((0, 1), (0, 1), (1, 2)):
        for _ in range(rotations):
            backend.config.rotate_root([signer("other")])
        with backend.store(path, org_uuid=who) as store:
            store.update(backend.publish())
            store.update(backend.publish())
        assert len(asked) == times


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE metadata SET raw = '{}' WHERE role = 'snapshot'", "does not follow"),
        ("UPDATE metadata SET raw = replace(raw, 'targets', 'Targets') WHERE role = 'targets'", "does not follow"),
        ("DELETE FROM metadata WHERE role = 'snapshot'", "does not follow"),
        ("DELETE FROM metadata WHERE role = 'root' AND number = 1", "does not follow"),
        ("DROP TABLE file", "no such table"),
        ("PRAGMA user_version = 2", "format 2, not 1"),
    ],
)
def test_a_database_that_was_tampered_with(backend: Backend, tmp_path: Path, statement: str, words: str) -> None:
    path = tmp_path / "store.db"
    backend.config.set_keys("timestamp", [signer("second")])
    backend.config.publish_root()
    with backend.store(path) as store:
        store.update(backend.publish())
    with sqlite3.connect(path) as other:
        other.execute(statement)
    with pytest.raises(errors.StoreError, match=words), backend.store(path) as store:
        store.targets()


def test_a_file_that_is_no_database(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"no database at all" * 100)
    path.chmod(0o600)
    with pytest.raises(errors.TamperedError, match="damaged"):
        backend.store(path)
    path.chmod(0o666)
    with pytest.raises(errors.TamperedError, match="written by others"):
        backend.store(path)
    with pytest.raises(errors.StoreError, match="cannot be opened"):
        backend.store(tmp_path / "none" / "store.db")


class StoreMachine(RuleBasedStateMachine):
    """Honest updates, faults and restarts in any order; the model is what was accepted last."""

    @initialize()
    def start(self) -> None:
        self.room = tempfile.TemporaryDirectory()
        self.path = Path(self.room.name, "store.db")
        self.backend = Backend()
        self.store = self.backend.store(self.path, org_uuid=lambda: "us")
        self.accepted: dict[str, bytes] = {}

    def teardown(self) -> None:
        if hasattr(self, "room"):
            self.store.close()
            self.room.cleanup()

    @rule(path=st.sampled_from([PATH, OTHER, OWN]), raw=st.binary(max_size=3))
    def put(self, path: str, raw: bytes) -> None:
        self.backend.put(path, raw)

    @rule(path=st.sampled_from([PATH, OTHER, OWN]))
    def remove(self, path: str) -> None:
        self.backend.remove(path)

    @rule(director=st.booleans(), number=st.integers(0, 3))
    def rotate(self, director: bool, number: int) -> None:
        repository = self.backend.director if director else self.backend.config
        if repository.signers["root"] != [signer(f"root {number}")]:
            repository.rotate_root([signer(f"root {number}")])

    @rule()
    def update(self) -> None:
        self.store.update(self.backend.publish())
        self.accepted = dict(self.backend.files)
        assert content(self.store) == self.accepted

    @rule(data=st.data())
    def a_part_is_spoilt(self, data: st.DataObject) -> None:
        """Refused, or what is spoilt was not needed."""
        whole = self.backend.publish()
        name = data.draw(st.sampled_from(["director", "config"]))
        part = data.draw(st.sampled_from(["timestamp", "snapshot", "targets"]))
        metadata: Metadata = getattr(whole, name)
        raw = bytearray(getattr(metadata, part))
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
        spoilt: dict[str, Any] = {name: replace(metadata, **{part: bytes(raw)})}
        before = everything(self.store)
        try:
            self.store.update(replace(whole, **spoilt))
        except HarnessError:
            assert everything(self.store) == before
        else:
            self.accepted = dict(self.backend.files)
        assert content(self.store) == self.accepted

    @rule()
    def restart(self) -> None:
        before = everything(self.store)
        self.store.close()
        self.store = self.backend.store(self.path, org_uuid=lambda: "us")
        assert everything(self.store) == before
        assert content(self.store) == self.accepted


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=15, stateful_step_count=10)


UPDATES = """
import sys
from pathlib import Path
from tuf_backend import PATH, Backend

backend = Backend()
with backend.store(Path(sys.argv[1])) as store:
    number = store.versions()["director"]["targets"]
    for repository in (backend.director, backend.config):
        repository.targets.version = repository.snapshot.version = repository.timestamp.version = number
    while True:
        number += 1
        backend.put(PATH, b"%d" % number)
        store.update(backend.publish())
        print(number, flush=True)
"""


def test_killed_again_and_again(tmp_path: Path) -> None:
    """SIGKILL at any moment: the last update that was finished is there, or the one after it, whole."""
    path, backend = tmp_path / "store.db", Backend()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for round in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", UPDATES, str(path)], stdout=subprocess.PIPE, env=environment
        ) as process:
            assert process.stdout is not None
            said = int(process.stdout.readline())
            time.sleep(0.005 * round)
            process.send_signal(signal.SIGKILL)
            said = max([said, *map(int, process.stdout.read().split())])
        with backend.store(path) as store:
            version = store.versions()["director"]["targets"]
            assert version in (said, said + 1)
            assert store.file(PATH) == b"%d" % version
