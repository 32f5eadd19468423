"""A directory behind an agent's store: what reaches clients has gone through both repositories and the database."""

from __future__ import annotations

import random
import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from remote_site import Site, by_hand, token

from harness.remote import messages
from harness.remote.__main__ import main
from harness.remote.client import Client
from harness.remote.endpoint import Endpoint, token_of
from harness.remote.errors import TamperedError
from harness.remote.fetch import ServerError
from harness.remote.serve.directory import CONFIG, INSIDE, Directory
from harness.remote.serve.host import Host
from harness.remote.serve.repository import Published
from harness.remote.serve.stored import StoredDirectory
from harness.remote.state import State
from harness.remote.store.agent import FRESH
from harness.telemetry import Registry

PATH, OTHER = "datadog/2/TESTING1/a/config", "employee/TESTING2/b/config"


class Clock:
    now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Stored:
    """A directory, what stands behind it, and a client's state that follows."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path, self.clock = path / "site", clock
        self.path.mkdir(exist_ok=True)
        self.director = Directory(self.path, clock=clock)
        self.config = Directory(self.path, inside=CONFIG, clock=clock)
        self.publisher = StoredDirectory(self.director, self.config, path / "store.db", clock=clock)
        self.state = State.verified(self.director.root.read_bytes())

    def put(self, path: str, content: str) -> None:
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)

    def served(self) -> dict[str, bytes]:
        """What a client has that takes what is served now."""
        update = self.publisher.published().update(self.state.root_version, {})
        self.state = self.state.apply(update, now=self.clock.now).state
        return {path: config.raw for path, config in self.state.configs.items()}


@pytest.fixture
def stored(tmp_path: Path, clock: Clock) -> Stored:
    made = Stored(tmp_path, clock)
    made.put(PATH, "one")
    return made


def test_changes_go_through_the_store(stored: Stored) -> None:
    assert stored.served() == {PATH: b"one"}
    assert stored.publisher.published() is stored.publisher.published()
    stored.put(PATH, "two")
    stored.put(OTHER, "more")
    assert stored.served() == {PATH: b"two", OTHER: b"more"}
    (stored.path / PATH).unlink()
    assert stored.served() == {OTHER: b"more"}
    versions = stored.publisher.store.versions()
    assert versions["director"] == versions["config"] == {"root": 1, "timestamp": 4, "snapshot": 4, "targets": 4}


@pytest.mark.parametrize("side", ["director", "config"])
@pytest.mark.parametrize("role", ["root", "targets"])
def test_keys_of_either_repository_are_rotated(stored: Stored, side: str, role: str) -> None:
    for number in range(3):
        getattr(stored, side).rotate(role)
        stored.put(PATH, f"{number}")
        assert stored.served() == {PATH: b"%d" % number}
    assert stored.publisher.store.versions()[side]["root"] == 4
    assert stored.state.root_version == (4 if side == "director" else 1)


@pytest.mark.parametrize("side", ["director", "config"])
@pytest.mark.parametrize("role", ["root", "targets"])
def test_what_the_store_refuses_is_said_once_and_goes_no_further(
    stored: Stored, side: str, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    stored.served()
    getattr(stored, side).expire(role)
    stored.put(PATH, "two")
    for _ in range(3):
        assert stored.served() == {PATH: b"one"}
    (said,) = caplog.records
    assert f"{side}: " in said.message
    assert "expired" in said.message
    getattr(stored, side).renew()
    assert stored.served() == {PATH: b"two"}


def test_two_repositories_that_do_not_agree(stored: Stored, caplog: pytest.LogCaptureFixture) -> None:
    """One backend alone can send nothing: here the config repository has not heard of the file yet."""
    stored.served()
    seen = stored.config.published()
    stored.config.published = lambda: seen  # type: ignore[method-assign]
    stored.put(OTHER, "more")
    assert stored.served() == {PATH: b"one"}
    assert "that the config repository does not" in caplog.text
    del stored.config.published
    assert stored.served() == {PATH: b"one", OTHER: b"more"}


def test_a_restart_goes_on_and_cannot_be_rolled_back(stored: Stored, tmp_path: Path, clock: Clock) -> None:
    index = stored.path / INSIDE / "index.json"
    before = index.read_bytes()
    stored.put(PATH, "two")
    assert stored.served() == {PATH: b"two"}
    stored.publisher.close()
    again = Stored(tmp_path, clock)
    assert again.served() == {PATH: b"two"}
    again.publisher.close()
    index.write_bytes(before)
    (stored.path / PATH).write_text("one")
    rolled_back = Stored(tmp_path, clock)
    assert rolled_back.served() == {PATH: b"two"}
    rolled_back.publisher.close()


def test_what_was_read_first_is_taken_in_first(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two servers ask at once, and between the two the directory changes: the older does not come second."""
    assert stored.served() == {PATH: b"one"}
    read, over, waiting = threading.Event(), threading.Event(), iter([True])
    published = stored.config.published

    def slow() -> Published:
        found = published()
        if next(waiting, False):
            read.set()
            over.wait(0.5)
        return found

    monkeypatch.setattr(stored.config, "published", slow)
    stored.put(PATH, "two")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(stored.publisher.published)
        assert read.wait(60)
        stored.put(PATH, "three")
        stored.publisher.published()
        over.set()
        first.result()
    assert not caplog.records
    assert stored.served() == {PATH: b"three"}


def test_a_full_disk_is_tried_again(stored: Stored, caplog: pytest.LogCaptureFixture) -> None:
    """Said once, and taken in as soon as there is room, though nothing in the directory has changed since."""
    stored.served()
    database = stored.publisher.store._database
    database._run(f"PRAGMA max_page_count = {database._run('PRAGMA page_count')[0][0]}")
    stored.put(OTHER, "x" * 100_000)
    for _ in range(3):
        assert stored.served() == {PATH: b"one"}
    (said,) = caplog.records
    assert "full" in said.message
    database._run("PRAGMA max_page_count = 100000")
    assert stored.served() == {PATH: b"one", OTHER: b"x" * 100_000}


def test_another_directory_s_database(stored: Stored, tmp_path: Path, clock: Clock) -> None:
    stored.served()
    stored.publisher.close()
    (tmp_path / "other").mkdir()
    (tmp_path / "store.db").rename(tmp_path / "other" / "store.db")
    with pytest.raises(TamperedError):
        Stored(tmp_path / "other", clock)


@pytest.mark.parametrize("form", ["unix", "https"])
def test_a_store_that_is_damaged_is_the_server_s_own_trouble(stored: Stored, tmp_path: Path, form: str) -> None:
    """Seen with the next verification: the client hears of a server that fails, and keeps what it has."""
    times = [0.0]
    stored.publisher.store._monotonic = lambda: times[0]
    with Site(tmp_path, form) as site:
        site.host._publisher = stored.publisher
        fetcher = site.endpoint().fetcher(token)
        asked = messages.request(State.verified(stored.director.root.read_bytes()), "x" * 21, [], messages.Agent())
        assert fetcher.fetch(asked).targets
        with sqlite3.connect(tmp_path / "store.db") as other:
            other.execute("UPDATE file SET raw = 'evil'")
        times[0] += FRESH
        with pytest.raises(ServerError, match="nothing to serve just now"):
            fetcher.fetch(asked)
        fetcher.close()


def test_misbehaving_in_front_of_a_store(stored: Stored) -> None:
    """Ways of attackers work on what the store serves, too."""
    host = Host(stored.publisher, random.Random(0))
    host.way = "forge"
    asked = messages.request(stored.state, "x" * 21, ["TESTING1"], messages.Agent())
    answer = host.serve(asked)
    assert not isinstance(answer, str)
    assert answer.targets != stored.publisher.published().targets


def test_by_hand(tmp_path: Path) -> None:
    """``serve DIR --store FILE``, a client that polls, and the commands for either repository while it serves."""
    site, stored = tmp_path / "site", tmp_path / "site" / PATH
    stored.parent.mkdir(parents=True)
    stored.write_text("one")
    with by_hand(site, "--store", str(tmp_path / "store.db")) as (_, said):
        fetcher = Endpoint(said["grpcs"], ca=Path(said["ca"])).fetcher(token_of(Path(said["token"])))
        state = State.verified(Path(said["root"]).read_bytes())
        with Client(fetcher, state, products=["TESTING1"], metrics=Registry()) as client:
            assert client.update() == {"TESTING1"}
            assert main(["rotate", str(site), "root"]) == 0
            assert main(["rotate", str(site), "targets", "--repository", "config"]) == 0
            stored.write_text("two")
            assert client.update() == {"TESTING1"}
            assert client.configs("TESTING1")[PATH].raw == b"two"
            assert client.state.root_version == 2
            assert main(["expire", str(site), "targets", "--repository", "config"]) == 0
            stored.write_text("three")
            assert client.update() == frozenset()
            assert main(["renew", str(site), "--repository", "config"]) == 0
            assert client.update() == {"TESTING1"}
    assert stat.S_IMODE((tmp_path / "store.db").stat().st_mode) == 0o600
