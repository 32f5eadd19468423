"""The file that a client keeps its roots and targets in: who may have written it, and what the disk may refuse."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tuf_server import NOW, Server

from harness.remote import persist
from harness.remote.client import Client
from harness.remote.errors import RollbackError, StoreError, TamperedError
from harness.remote.persist import FILE, MAX_FILE, RealDisk, StateFile
from harness.remote.serve import answers
from harness.remote.state import Kept, State
from harness.remote.wire import config_pb2 as pb
from harness.telemetry import Registry


def up_to_date(server: Server) -> State:
    state = State.verified(server.roots[0])
    return state.apply(server.answer(state), now=NOW).state


SERVER = Server(targets_version=5)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    with StateFile(tmp_path / "made" / "here") as file:
        assert file.load(SERVER.roots[0]) == State.verified(SERVER.roots[0])
        file.save(up_to_date(SERVER))
        path = tmp_path / "made" / "here" / FILE
        before = path.stat()
        file.save(up_to_date(SERVER))
        assert path.stat().st_ino == before.st_ino, "the same is not written twice"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    with StateFile(path.parent) as file:
        assert file.load(SERVER.roots[0]).oldest_targets == 5


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with StateFile(tmp_path) as file:
        with pytest.raises(StoreError, match="in use"):
            StateFile(tmp_path)
        file.close()
        StateFile(tmp_path).close()


def test_another_root_to_begin_with(tmp_path: Path) -> None:
    server = Server()
    server.rotate(root=("root-1",))
    with StateFile(tmp_path) as file:
        file.save(up_to_date(server))
        with pytest.raises(TamperedError, match="does not follow from the client's own root"):
            file.load(Server(root_keys=("other",)).roots[0])


def test_targets_that_the_kept_roots_did_not_sign(tmp_path: Path) -> None:
    forged = Kept((SERVER.roots[0],), Server(targets_keys=("evil",)).answer(State.unverified()).targets)
    with StateFile(tmp_path) as file:
        file.save(up_to_date(SERVER))
        (tmp_path / FILE).write_bytes(persist._encode(forged))
        with pytest.raises(TamperedError, match="is signed by 0 of 1"):
            file.load(SERVER.roots[0])


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write(tmp_path: Path, mode: int) -> None:
    with StateFile(tmp_path) as file:
        file.save(up_to_date(SERVER))
        (tmp_path / FILE).chmod(mode)
        with pytest.raises(TamperedError, match="written by others"):
            file.load(SERVER.roots[0])


def test_a_directory_that_others_may_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(TamperedError, match="written by others"):
        StateFile(tmp_path)


@pytest.mark.parametrize("what", ["directory", "fifo", "link", "huge"])
def test_what_is_no_file_of_ours(tmp_path: Path, what: str) -> None:
    path = tmp_path / FILE
    match what:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path, 0o600)
        case "link":
            path.symlink_to("/dev/null")
        case "huge":
            path.touch(0o600)
            os.truncate(path, MAX_FILE + 1)
    with StateFile(tmp_path) as file, pytest.raises(StoreError, match=FILE):
        file.load(SERVER.roots[0])


def test_a_format_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StateFile(tmp_path) as file:
        with monkeypatch.context() as patch:
            patch.setattr("harness.remote.persist._FORMAT", 2)
            file.save(up_to_date(SERVER))
        with pytest.raises(StoreError, match="format '2', not 1"):
            file.load(SERVER.roots[0])


@pytest.mark.parametrize("step", ["write", "sync", "rename"])
def test_a_disk_that_refuses(tmp_path: Path, step: str) -> None:
    """The error is typed, what was kept is kept, and the next save tries again."""

    class Full(RealDisk):
        pass

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    setattr(Full, step, refuse)
    with StateFile(tmp_path) as file:
        file.save(up_to_date(SERVER))
    newer = Server(targets_version=6)
    with StateFile(tmp_path, disk=Full()) as file:
        assert file.load(SERVER.roots[0]).oldest_targets == 5
        for _ in range(2):
            with pytest.raises(StoreError, match="cannot be written: No space left"):
                file.save(up_to_date(newer))
    with StateFile(tmp_path) as file:
        assert file.load(SERVER.roots[0]).oldest_targets == 5
        file.save(up_to_date(newer))
        assert file.load(SERVER.roots[0]).oldest_targets == 6


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be opened"):
        StateFile(tmp_path / "file" / "x")


def test_an_unverified_state_has_nothing_to_keep(tmp_path: Path) -> None:
    with StateFile(tmp_path) as file, pytest.raises(StoreError, match="unverified"):
        file.save(State.unverified())


class Direct:
    """A fetcher that asks the server in this process."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def fetch(self, request: pb.ClientGetConfigsRequest) -> pb.ClientGetConfigsResponse:
        return answers.answer(self.server.publish(), request)

    def close(self) -> None:
        pass


def test_a_client_that_keeps_its_state(tmp_path: Path) -> None:
    """Restarted, it refuses what is older, and gets its files again; a state that cannot be kept does not count."""
    path = "employee/TESTING1/a/b"
    server = Server(files={path: (b"x", 1)}, targets_version=5)

    def client(file: StateFile) -> Client:
        state = file.load(server.roots[0])
        return Client(
            Direct(server), state, products=("TESTING1",), keep=file.save, clock=lambda: NOW, metrics=Registry()
        )

    with StateFile(tmp_path) as file, client(file) as first:
        assert first.update() == {"TESTING1"}
    with StateFile(tmp_path) as file, client(file) as second:
        server.targets_version = 4
        with pytest.raises(RollbackError, match="targets 4 are older than targets 5"):
            second.update()
        assert second.configs("TESTING1") == {}
        server.targets_version = 5
        assert second.update() == {"TESTING1"}
        assert second.configs("TESTING1")[path].raw == b"x"
        server.files, server.targets_version = {path: (b"y", 2)}, 6
        tmp_path.rename(tmp_path.with_name("gone"))
        with pytest.raises(StoreError, match="cannot be written"):
            second.update()
        assert second.configs("TESTING1")[path].raw == b"x"
        tmp_path.with_name("gone").rename(tmp_path)
        assert second.update() == {"TESTING1"}
    with StateFile(tmp_path) as file:
        assert file.load(server.roots[0]).oldest_targets == 6


SAVES = """
import sys
from pathlib import Path
from tuf_server import NOW, Server
from harness.remote.persist import StateFile
from harness.remote.state import State

server = Server()
with StateFile(Path(sys.argv[1])) as file:
    state = file.load(server.roots[0])
    server.targets_version = state.oldest_targets
    while True:
        server.targets_version += 1
        state = state.apply(server.answer(state), now=NOW).state
        file.save(state)
        print(state.targets_version, flush=True)
"""


def test_killed_again_and_again(tmp_path: Path) -> None:
    """SIGKILL at any moment: what was said to be saved is there, and at most one more."""
    root, said = Server().roots[0], 0
    for round in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", SAVES, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        ) as process:
            assert process.stdout is not None
            said = int(process.stdout.readline())
            time.sleep(0.003 * round)
            process.send_signal(signal.SIGKILL)
            said = max([said, *map(int, process.stdout.read().split())])
        with StateFile(tmp_path) as file:
            assert file.load(root).oldest_targets in (said, said + 1)
