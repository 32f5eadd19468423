"""Guests from a warm snapshot or a checkpoint: as ready as booted ones, with nothing stale inside."""

import time
from contextlib import ExitStack

import pytest
import snapshots
from machines import SMALL, backend, gone, guest, kernel, link_to, output, wait_for

from kmt import proc
from kmt.deadline import Deadline
from kmt.errors import SnapshotError
from kmt.guest.wire import Kind

pytestmark = pytest.mark.host_only

IDLE_MIB = 100
"""What a guest that does nothing may have for itself."""


@pytest.fixture(scope="module", params=["5.10", "7.3"])
def two(request, tmp_path_factory):
    """Two guests of one snapshot at once."""
    with ExitStack() as stack:
        rooms = [tmp_path_factory.mktemp("guest") for _ in range(2)]
        yield [stack.enter_context(guest(room, kernel_name=request.param)) for room in rooms]


def test_they_come_from_a_snapshot_and_are_ready(two):
    for vm, link in two:
        assert vm.restored
        assert vm.phase == "ready"
        assert vm.death() is None
        assert output(link, "uname", "-r")[0].decode().strip() == vm.kernel.release


def test_they_share_their_memory(two):
    # After the test above both have run a command; they are not quite idle any more.
    assert all(proc.private_mib(vm.pid) < IDLE_MIB for vm, _ in two)


def test_the_clock_is_right_and_runs(two):
    for _, link in two:
        before = time.time()
        said, _ = output(link, "cat", "/proc/uptime")
        stamp, _ = output(link, "date", "+%s.%N")
        again, _ = output(link, "cat", "/proc/uptime")
        assert before - 0.5 < float(stamp) < time.time() + 0.5
        assert float(said.split()[0]) < float(again.split()[0])


def test_a_snapshot_of_yesterday_has_todays_time(tmp_path, monkeypatch):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 24 * 3600)
    with guest(tmp_path) as (vm, link):
        assert vm.restored
        stamp, _ = output(link, "date", "+%s.%N")
        assert abs(float(stamp) - time.time()) < 5


def test_no_two_guests_draw_the_same(two, tmp_path):
    found = []
    for _, link in two:
        snapshots.start(link, tmp_path)
        found.append(snapshots.drawn(link))
    assert snapshots.same(*found) == set()


def test_two_sessions_of_one_guest_neither(two, tmp_path):
    _, link = two[0]
    found = []
    for _ in range(2):
        snapshots.start(link, tmp_path)
        found.append(snapshots.drawn(link))
    assert snapshots.same(*found) == {"host name", "platform", "machine id", "boot id"}


def test_the_time_follows_this_machines(two, monkeypatch):
    # As after a night in which it was suspended: the monotonic clock stood still, the other did not.
    _, link = two[0]
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 12 * 3600)
    output(link, "sleep", "1")
    stamp, _ = output(link, "date", "+%s.%N")
    assert abs(float(stamp) - time.time()) < 60
    monkeypatch.undo()
    output(link, "sleep", "1")
    stamp, _ = output(link, "date", "+%s.%N")
    assert abs(float(stamp) - time.time()) < 60


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A guest frozen after collecting, and the directory that it ran in."""
    room = tmp_path_factory.mktemp("guest")
    made = backend()
    made.prepare(kernel(), SMALL)
    assert made.checkpoints
    with made.launch(kernel(), SMALL, room, Deadline(600), checkpointable=True) as vm:
        link = link_to(vm, made)
        assert snapshots.start(link, tmp_path_factory.mktemp("tree"), pause=True)["paused"]
        frozen = made.checkpoint(vm, Deadline(60))
        wait_for(lambda: gone(vm.pid), 5)
    with frozen:
        yield frozen, room


@pytest.fixture
def restored(checkpoint):
    """Starts guests of the checkpoint; gives (vm, link)."""
    frozen, room = checkpoint
    with ExitStack() as stack:

        def start():
            vm = stack.enter_context(backend().restore(frozen, room, Deadline(600)))
            return vm, link_to(vm, backend())

        yield start


def test_a_checkpoint_goes_on_as_often_as_wanted_and_differently(restored):
    (_, one), (_, other) = restored(), restored()
    for link in (one, other):
        link.send(Kind.RUN, {"ids": snapshots.WANTED})
    found = [snapshots.drawn(link) for link in (one, other)]
    assert snapshots.same(*found) == set()
    vm, link = restored()
    link.send(Kind.RUN, {"ids": snapshots.WANTED})
    assert snapshots.same(snapshots.drawn(link), found[0]) == set()
    assert vm.restored
    stamp, _ = output(link, "date", "+%s.%N")
    assert abs(float(stamp) - time.time()) < 5


def test_what_one_guest_does_another_never_sees(restored):
    (_, one), (_, other) = restored(), restored()
    for link in (one, other):
        link.send(Kind.CANCEL)
        link.receive(Kind.EXIT)
    output(one, "sh", "-c", "echo 1 > /root/mark; sysctl -w kernel.panic=77")
    assert output(other, "cat", "/root/mark")[1] != 0
    assert output(other, "cat", "/proc/sys/kernel/panic")[0] != b"77\n"
    _, third = restored()
    third.send(Kind.CANCEL)
    third.receive(Kind.EXIT)
    assert output(third, "cat", "/root/mark")[1] != 0


def test_a_checkpoint_leaves_no_file(checkpoint):
    _, room = checkpoint
    assert {path.suffix for path in room.iterdir()} <= {".log"}


def test_a_guest_that_was_not_launched_for_it_cannot_be_frozen(tmp_path):
    with guest(tmp_path) as (vm, _), pytest.raises(SnapshotError, match="not launched checkpointable"):
        backend().checkpoint(vm, Deadline(10))


def test_a_machine_without_memory_of_its_own_says_so(tmp_path):
    with guest(tmp_path, name="host") as (vm, _), pytest.raises(SnapshotError, match="cannot be frozen"):
        backend("host").checkpoint(vm, Deadline(10))
    assert not backend("host").checkpoints
