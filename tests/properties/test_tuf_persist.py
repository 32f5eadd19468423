"""What a client keeps on disk, through crashes between any two writes: a restart is never a roll-back."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from strategies import key_names
from tuf_server import EARLIER, NOW, Server, sign

from harness.remote.errors import RollbackError, TamperedError
from harness.remote.persist import FILE, RealDisk, StateFile
from harness.remote.state import Kept, State

pytestmark = pytest.mark.thorough


class Crash(BaseException):
    """The machine has stopped."""


class CrashingDisk(RealDisk):
    """Stops before its n-th step. What had not been synced by then may be lost, whole or in part."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.unsynced: set[Path] = set()
        """Files whose content the disk need not have."""
        self.renamed: dict[Path, bytes | None] = {}
        """Names that the disk may still have for what was there before."""

    def step(self) -> None:
        if not self.steps:
            raise Crash
        self.steps -= 1

    def write(self, path: Path, data: bytes) -> None:
        self.unsynced.add(path)
        super().write(path, data[: len(data) // 2] if not self.steps else data)
        self.step()

    def sync(self, path: Path) -> None:
        self.step()
        super().sync(path)
        self.unsynced.discard(path)
        if path.is_dir():
            self.renamed.clear()

    def rename(self, old: Path, new: Path) -> None:
        self.step()
        self.renamed[new] = new.read_bytes() if new.exists() else None
        super().rename(old, new)
        if old in self.unsynced:
            self.unsynced.add(new)

    def lose(self, data: st.DataObject) -> None:
        """The power fails too: the disk shows what it likes of all that was not synced."""
        for path in filter(Path.exists, self.unsynced):
            raw = path.read_bytes()
            path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
        for path, before in self.renamed.items():
            if data.draw(st.booleans()):
                path.unlink() if before is None else path.write_bytes(before)


class Restarts(RuleBasedStateMachine):
    """``done`` was saved for sure; ``begun`` may have been."""

    @initialize(signers=key_names("targets"))
    def start(self, signers: tuple[str, ...]) -> None:
        self.room = tempfile.TemporaryDirectory()
        self.directory = Path(self.room.name, "kept")
        self.server = Server(targets_keys=signers)
        self.born_with = self.server.roots[0]
        self.file = StateFile(self.directory)
        self.state = self.file.load(self.born_with)
        self.done, self.begun = self.state.kept, self.state.kept

    def teardown(self) -> None:
        if hasattr(self, "room"):
            self.file.close()
            self.room.cleanup()

    @rule()
    def publish(self) -> None:
        self.server.targets_version += 1
        self.server.files["employee/TESTING1/a/b"] = (b"%d" % self.server.targets_version, 1)

    @rule()
    def rotate_root(self) -> None:
        self.server.rotate(root=(f"root-{len(self.server.roots)}",))

    @rule(signers=key_names("targets"))
    def rotate_targets(self, signers: tuple[str, ...]) -> None:
        if set(signers) != set(self.server.targets_keys):
            self.server.rotate(targets=signers)
            self.server.targets_version = 1

    @rule()
    def poll(self) -> None:
        self.state = self.state.apply(self.server.answer(self.state), now=NOW).state
        self.begun = self.state.kept
        self.file.save(self.state)
        self.done = self.begun

    @rule(steps=st.integers(0, 4), power=st.booleans(), data=st.data())
    def poll_and_crash(self, steps: int, power: bool, data: st.DataObject) -> None:
        """The process dies on the way, or just after it; with ``power``, the machine does."""
        self.publish()
        disk = CrashingDisk(steps)
        self.file._disk = disk
        with contextlib.suppress(Crash):
            self.poll()
        if power:
            disk.lose(data)
        self.restart()

    @rule()
    def restart(self) -> None:
        self.file.close()
        self.file = StateFile(self.directory)
        self.state = self.file.load(self.born_with)
        assert self.state.kept in (self.done, self.begun)
        assert not self.state.configs
        self.done = self.begun = self.state.kept

    @rule()
    def an_older_answer_is_replayed(self) -> None:
        older = self.state.oldest_targets - 1
        same = Server(targets_keys=self.server.targets_keys, roots=self.server.roots)
        if older >= 0 and self.state.root_version == len(self.server.roots):
            same.targets_version = older
            with pytest.raises(RollbackError):
                self.state.apply(same.answer(self.state), now=NOW)

    @invariant()
    def only_one_at_a_time_and_nothing_else_in_the_directory(self) -> None:
        assert {path.name for path in self.directory.iterdir()} <= {"lock", FILE, f"{FILE}.new"}


TestRestarts = Restarts.TestCase
TestRestarts.settings = settings(max_examples=max(10, settings().max_examples // 3), stateful_step_count=15)


def held(server: Server, state: State | None = None) -> State:
    """A client of this server, up to date."""
    state = state or State.verified(server.roots[0])
    return state.apply(server.answer(state), now=NOW).state


def catching_up(rotations: list[tuple[str, ...]]) -> tuple[Server, State]:
    server = Server(files={"employee/TESTING1/a/b": (b"x", 1)}, targets_version=7)
    state = held(server)
    for root in rotations:
        server.rotate(root=root)
    return server, held(server, state)


@given(st.lists(key_names("root"), max_size=4))
def test_round_trip(rotations: list[tuple[str, ...]]) -> None:
    """What is restored trusts and refuses the same, and what it keeps is the same again."""
    server, state = catching_up(rotations)
    assert state.kept is not None
    again = State.restored(server.roots[0], state.kept)
    assert (again.trusted, again.kept, again.oldest_targets) == (state.trusted, state.kept, state.oldest_targets)
    assert (again.targets_version, again.configs) == (0, {})
    assert replace(held(server, again), targets=b"") == replace(state, targets=b"")


@settings(max_examples=max(20, settings().max_examples // 2))
@given(st.data())
def test_any_byte_changed_is_noticed(data: st.DataObject) -> None:
    _, state = catching_up([("root-1",)])
    with tempfile.TemporaryDirectory() as room:
        with StateFile(Path(room)) as file:
            file.save(state)
        path = Path(room, FILE)
        raw = path.read_bytes()
        at = data.draw(st.integers(0, len(raw) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if kind == "flip":
            changed = raw[:at] + bytes([raw[at] ^ data.draw(st.integers(1, 255))]) + raw[at + 1 :]
        else:
            changed = raw[:at] if kind == "cut" else raw[:at] + data.draw(st.binary(min_size=1, max_size=1)) + raw[at:]
        path.write_bytes(changed)
        with StateFile(Path(room)) as file, pytest.raises(TamperedError):
            file.load(Server().roots[0])


@pytest.mark.parametrize("rotated", [False, True])
def test_a_newer_root_to_begin_with(rotated: bool) -> None:
    """An upgrade of the client brings a root that its file has never seen; its dates do not matter here."""
    server, state = catching_up([("root-1",)])
    server.rotate(root=("root-2",))
    server.rotate(targets=("targets-9",) if rotated else None, thresholds=(1, 1), expires=EARLIER)
    assert state.kept is not None
    again = State.restored(server.roots[-1], state.kept)
    assert (again.root_version, again.oldest_targets) == (len(server.roots), 0 if rotated else 7)


def test_more_roots_than_one_update_may_bring() -> None:
    server = Server()
    for number in range(260):
        server.rotate(root=(f"root-{number % 2}",))
    targets = sign(server.targets(), server.targets_keys)
    assert State.restored(server.roots[0], Kept(tuple(server.roots), targets)).root_version == 261
