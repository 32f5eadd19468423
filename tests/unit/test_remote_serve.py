"""The directory that a serving side signs, its commands, and the whole as people start it."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from remote_site import Site, by_hand, token
from waiting import wait_for

from harness.remote import messages
from harness.remote.__main__ import main
from harness.remote.client import Client
from harness.remote.endpoint import Endpoint, token_of
from harness.remote.errors import ExpiredError
from harness.remote.fetch import UnreachableError
from harness.remote.serve import directory as module
from harness.remote.serve import host
from harness.remote.serve.directory import INSIDE, ROOT_LAST, TARGETS_LAST, Directory, DirectoryError
from harness.remote.serve.repository import Published
from harness.remote.serve.server import GrpcServer
from harness.remote.state import State
from harness.telemetry import Registry

PATH, OTHER, THIRD = (f"datadog/2/TESTING1/{name}/config" for name in "abc")
START = datetime(2030, 1, 1, tzinfo=UTC)


class Clock:
    now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(tmp_path: Path, clock: Clock) -> Directory:
    put(tmp_path, "one")
    return Directory(tmp_path, clock=clock)


def put(directory: Path, content: str, path: str = PATH) -> None:
    file = directory / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def accepted(directory: Directory, state: State | None = None, *, now: datetime = START) -> State:
    """The state of a client that takes what is published."""
    state = state or State.verified(directory.root.read_bytes())
    return state.apply(directory.published().update(state.root_version, {}), now=now).state


def versions(published: Published) -> dict[str, int]:
    return {path: content.version for path, content in published.files.items()}


def test_versions_grow_with_what_changes(directory: Directory) -> None:
    first = directory.published()
    assert (first.targets_version, versions(first)) == (1, {PATH: 1})
    assert directory.published() is first
    put(directory.path, "two")
    put(directory.path, "x", "employee/TESTING2/b/config")
    second = directory.published()
    assert (second.targets_version, versions(second)) == (2, {PATH: 2, "employee/TESTING2/b/config": 1})
    (directory.path / PATH).unlink()
    assert directory.published().targets_version == 3
    assert {config.raw for config in accepted(directory).configs.values()} == {b"x"}


def test_all_of_it_survives_a_restart(directory: Directory, clock: Clock) -> None:
    directory.rotate("targets")
    put(directory.path, "two")
    before = directory.published()
    again = Directory(directory.path, clock=clock).published()
    assert again == before
    assert len(before.roots) == 2


def test_a_crash_between_two_writes_leaves_the_old_one(directory: Directory, clock: Clock) -> None:
    """A root that the index does not name was never published; the next rotation replaces it."""
    state = accepted(directory)
    before = (directory.path / INSIDE / "index.json").read_bytes()
    directory.rotate("root")
    (directory.path / INSIDE / "index.json").write_bytes(before)
    again = Directory(directory.path, clock=clock)
    assert len(again.published().roots) == 1
    again.rotate("root")
    assert accepted(again, state).root_version == 2


@pytest.mark.parametrize("role", ["root", "targets"])
def test_rotation(directory: Directory, role: str) -> None:
    state = accepted(directory)
    for number in (2, 3):
        directory.rotate(role)
        following = accepted(directory, state)
        assert (following.root_version, following.targets_version) == (number, number)
        state = following
    keys = json.loads((directory.path / INSIDE / "index.json").read_text())[role]
    assert keys == [f"{role}-3"]


@pytest.mark.parametrize("role", ["root", "targets"])
def test_expiry_and_renewal(directory: Directory, role: str) -> None:
    state = accepted(directory)
    directory.expire(role)
    with pytest.raises(ExpiredError, match=role):
        accepted(directory, state)
    put(directory.path, "two")
    with pytest.raises(ExpiredError, match=role):
        accepted(directory, state)
    directory.renew()
    assert accepted(directory, state).configs[PATH].raw == b"two"


def test_targets_are_signed_again_before_they_expire(directory: Directory, clock: Clock) -> None:
    first = directory.published()
    clock.now += TARGETS_LAST * 0.7
    assert directory.published() is not first
    assert directory.published().targets == first.targets
    clock.now += TARGETS_LAST * 0.1
    assert directory.published().targets_version == 2
    clock.now += TARGETS_LAST * 0.9
    assert accepted(directory, now=clock.now).targets_version == 3
    assert clock.now < START + ROOT_LAST


def test_keys_are_for_their_owner_alone(directory: Directory) -> None:
    for file in (directory.path / INSIDE).rglob("*"):
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0 or file.name == "lock", file


@pytest.mark.parametrize("edit", ["a file", "a new file", "a file removed"])
def test_an_edit_while_others_are_taken_in_is_served_next(
    directory: Directory, monkeypatch: pytest.MonkeyPatch, edit: str
) -> None:
    put(directory.path, "kept", OTHER)
    state = accepted(directory)
    index, edits = module.publish, iter([edit])

    def publishing(file: Path, content: bytes) -> None:
        index(file, content)
        if file.name == "index.json" and next(edits, None):
            if edit == "a file removed":
                (directory.path / PATH).unlink()
            else:
                put(directory.path, "late", PATH if edit == "a file" else THIRD)

    monkeypatch.setattr(module, "publish", publishing)
    put(directory.path, "two")
    state = accepted(directory, state)
    assert state.configs[PATH].raw == b"two"
    state = accepted(directory, state)
    found = {path: config.raw for path, config in state.configs.items()}
    wanted = {"a file": {PATH: b"late"}, "a new file": {PATH: b"two", THIRD: b"late"}, "a file removed": {}}[edit]
    assert found == {OTHER: b"kept"} | wanted
    assert directory.published() is directory.published()


def test_what_is_no_configuration_is_not_served(directory: Directory, caplog: pytest.LogCaptureFixture) -> None:
    put(directory.path, "read me", "README")
    put(directory.path, "half", "datadog/2/TESTING1/a/.part")
    os.mkfifo(directory.path / "datadog/2/TESTING1/a/pipe")
    for _ in range(2):
        assert list(directory.published().files) == [PATH]
    assert len(caplog.records) == 1
    assert "README" in caplog.text


def test_two_processes_may_work_on_one_directory(directory: Directory, clock: Clock) -> None:
    other = Directory(directory.path, clock=clock)
    state = accepted(directory)
    other.rotate("targets")
    assert directory.published() == other.published()
    assert accepted(directory, state).root_version == 2
    threads = [threading.Thread(target=each.rotate, args=("root",)) for each in (directory, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert accepted(directory, state).root_version == 4


def test_directories_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match="no directory"):
        Directory(tmp_path / "none")
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / INSIDE).write_text("")
    with pytest.raises(DirectoryError):
        Directory(tmp_path / "file")
    for text in ("", "[]", '{"more": 1}', '{"files": {"a": 1}}'):
        (tmp_path / INSIDE).mkdir(exist_ok=True)
        (tmp_path / INSIDE / "index.json").write_text(text)
        with pytest.raises(DirectoryError, match=r"index\.json"):
            Directory(tmp_path)
    (tmp_path / "good").mkdir()
    with pytest.raises(DirectoryError, match="role"):
        Directory(tmp_path / "good").rotate("snapshot")


# As people start it.


def test_serving_by_hand(tmp_path: Path) -> None:
    put(tmp_path, "one")
    with by_hand(tmp_path, "--http", "127.0.0.1:0", "--unix", str(tmp_path / ".s")) as (process, said):
        follow(tmp_path, said)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def follow(tmp_path: Path, said: dict[str, str]) -> None:
    """A client over each form, while files and keys change."""
    assert stat.S_IMODE(Path(said["unix"].removeprefix("unix://")).stat().st_mode) == 0o600
    for form in ("grpcs", "unix", "https"):
        endpoint = Endpoint(said[form], ca=Path(said["ca"]))
        state = State.verified(Path(said["root"]).read_bytes())
        with Client(endpoint.fetcher(token_of(Path(said["token"]))), state, products=["TESTING1"]) as client:
            assert client.update() == {"TESTING1"}
            assert main(["rotate", str(tmp_path), "root"]) == 0
            put(tmp_path, form)
            assert client.update() == {"TESTING1"}
            assert client.configs("TESTING1")[PATH].raw == form.encode()


def test_a_server_that_is_stopped_is_noticed(tmp_path: Path) -> None:
    """Its machine still acknowledges what is sent; nobody reads it, and nobody answers before it goes on."""
    put(tmp_path, "one")
    with by_hand(tmp_path) as (process, said):
        endpoint = Endpoint(said["grpcs"], ca=Path(said["ca"]), seconds=30, keep_alive=0.3)
        fetcher = endpoint.fetcher(token_of(Path(said["token"])))
        asked = messages.request(State.verified(Path(said["root"]).read_bytes()), "x" * 21, [], messages.Agent())
        assert fetcher.fetch(asked).targets
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(UnreachableError, match="ping timeout"):
            fetcher.fetch(asked)
        process.send_signal(signal.SIGCONT)
        assert fetcher.fetch(asked).targets
        fetcher.close()


def test_only_so_many_clients_are_remembered(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks under a new name each time fills no memory."""
    monkeypatch.setattr(host, "_CLIENTS", 3)
    asked, made = State.verified(directory.root.read_bytes()), host.Host(directory, random.Random(0))
    for name in "abcdeb":
        made.serve(messages.request(asked, name, [], messages.Agent()))
    assert set(made.seen) == {"b", "d", "e"}
    for name in "dfg":
        made.serve(messages.request(asked, name, [], messages.Agent()))
    assert set(made.seen) == {"d", "f", "g"}, "who has just been here stays"


def test_commands_that_go_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["renew", str(tmp_path / "none")]) == 1
    assert "error: " in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--listen", "256.0.0.1:1"]) == 1
    assert "cannot listen" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--fault", "fall@1"]) == 1
    token = tmp_path / INSIDE / "token"
    token.write_text(" \n")
    assert main(["serve", str(tmp_path)]) == 1
    assert "holds no token" in capsys.readouterr().err
    for words in ([], ["serve"], ["rotate", str(tmp_path), "snapshot"], ["serve", str(tmp_path), "--misbehave", "x"]):
        with pytest.raises(SystemExit) as raised:
            main(words)
        assert raised.value.code == 2


def test_a_client_by_itself_follows_a_real_server(tmp_path: Path) -> None:
    """The thread, its waiting and the wire together: add, change, misbehave, recover, close."""
    heard: list[dict[str, bytes]] = []
    with Site(tmp_path) as site:
        state = site.state()
        with Client(site.endpoint().fetcher(token), state, interval=0.02, metrics=Registry()) as client:
            client.subscribe("TESTING1", lambda configs, report: heard.append({p: c.raw for p, c in configs.items()}))
            client.start()
            for content in (b"one", b"two"):
                site.put(PATH, content)
                wait_for(lambda content=content: heard[-1:] == [{PATH: content}])  # type: ignore[misc]
            site.host.way = "forge"
            wait_for(lambda: client.schedule.errors > 0)
            site.put(PATH, b"three")
            site.host.way = None
            wait_for(lambda: heard[-1:] == [{PATH: b"three"}])
            assert [content[PATH] for content in heard] == [b"one", b"two", b"three"]
            reported = [said.state.error for said in site.host.seen.values()]
            assert reported == [""] or "signed by 0 of 1" in reported[0]
        assert not client.running


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, ACK = 4, 6, 1


def frame(kind: int, flags: int = 0, payload: bytes = b"") -> bytes:
    """Of HTTP/2, on stream 0 (RFC 9113)."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + bytes(4) + payload


@pytest.mark.parametrize("alive", [True, False], ids=["answers", "silent"])
def test_a_client_that_gives_no_sign_of_life_is_let_go(directory: Directory, tmp_path: Path, alive: bool) -> None:
    """As one whose machine has vanished: its socket is open, and nobody reads it."""
    address = f"unix:{tmp_path}/socket"
    asked = 0
    serving = host.Host(directory, random.Random(0))
    with (
        GrpcServer(serving.serve, address=address, keep_alive=1),
        socket.socket(socket.AF_UNIX) as client,
        client.makefile("rb") as said,
    ):
        client.settimeout(60)
        client.connect(f"{tmp_path}/socket")
        client.sendall(PREFACE + frame(SETTINGS))
        while asked < 3 and (head := said.read(9)):
            payload = said.read(int.from_bytes(head[:3]))
            if head[3] == SETTINGS and not head[4] & ACK:
                client.sendall(frame(SETTINGS, ACK))
            if head[3] == PING and not head[4] & ACK:
                asked += 1
                if alive:
                    client.sendall(frame(PING, ACK, payload))
    assert asked == (3 if alive else 1)
