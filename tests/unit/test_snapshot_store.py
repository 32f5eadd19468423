"""The store of snapshots: whole or not there, checked at each opening, bounded, made once."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kmt.errors import NoPlaceError, SnapshotError
from kmt.snapshot import store

KEY = "0123456789abcdef0123456789abcdef"
SIZE = 1 << 20


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(descriptor, logs):
    assert logs.is_dir()
    os.pwrite(descriptor, b"memory" * 1000, 4096)
    return b"state of devices"


def make(key=KEY, how=fill, **more):
    store.make(key, SIZE, how, kernel="6.1", machine="1 CPU", **more)
    return store.rooms() / key


def test_what_was_made_is_opened():
    make()
    with store.opened(KEY) as snapshot:
        assert snapshot.state == b"state of devices"
        assert os.pread(snapshot.ram, 6, 4096) == b"memory"
    store.verify(KEY)
    (entry,) = store.entries()
    assert (entry.key, entry.record.kernel, entry.record.machine) == (KEY, "6.1", "1 CPU")
    assert 0 < entry.bytes < SIZE


def test_one_that_is_not_there():
    with pytest.raises(SnapshotError, match="No such file"), store.opened(KEY):
        pass


def damaged(what):
    with pytest.raises(SnapshotError, match=what), store.opened(KEY):
        pass


def test_memory_cut_short_is_found_before_it_is_mapped():
    os.truncate(make() / "ram", SIZE - 4096)
    damaged(f"ram has {SIZE - 4096} bytes and was made with {SIZE}")


def test_a_flipped_bit_in_the_device_state():
    state = make() / "state"
    content = bytearray(state.read_bytes())
    content[3] ^= 1
    state.write_bytes(content)
    damaged("state is damaged")


def test_memory_that_was_written_to():
    with (make() / "ram").open("r+b") as file:
        file.write(b"x")
    damaged("ram was changed since it was made")


def test_memory_that_others_may_write_to():
    (make() / "ram").chmod(0o666)
    damaged("ram was changed since it was made")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ram": 5}', "no json"])
def test_a_record_that_is_none(text):
    (make() / "record.json").write_text(text)
    damaged("record.json")
    assert [entry.used for entry in store.entries()] == [0.0]


def test_a_copy_of_the_cache_is_hashed_once_and_then_trusted(monkeypatch):
    room = make()
    shutil.copy(room / "ram", room / "copied")
    (room / "copied").replace(room / "ram")
    with store.opened(KEY):
        pass
    monkeypatch.setattr(store.ram, "digest", lambda fd: pytest.fail("hashed again"))
    with store.opened(KEY):
        pass


def test_verify_sees_a_bit_of_memory_that_trust_does_not():
    room = make()
    status = (room / "ram").stat()
    with (room / "ram").open("r+b") as file:
        file.seek(5000)
        file.write(b"x")
    os.utime(room / "ram", ns=(status.st_atime_ns, status.st_mtime_ns))
    with store.opened(KEY):
        pass
    with pytest.raises(SnapshotError, match="ram is damaged"):
        store.verify(KEY)


def test_dropping_it_does_not_hurt_who_has_it_open():
    make()
    with store.opened(KEY) as snapshot:
        store.discard(KEY)
        assert not store.exists(KEY)
        assert os.pread(snapshot.ram, 6, 4096) == b"memory"


def test_the_least_recently_used_goes_first_and_never_the_new_one():
    def full(descriptor, logs):
        os.pwrite(descriptor, b"x" * SIZE, 0)
        return b""

    keys = [f"{number:032x}" for number in range(4)]
    for number, key in enumerate(keys[:3]):
        os.utime(make(key, full) / "record.json", (number, number))
    with store.opened(keys[0]):
        pass  # it was the oldest
    make(keys[3], full, limit_mib=3)
    assert [entry.key for entry in store.entries()] == [keys[0], keys[3]]
    make(KEY, full, limit_mib=0)
    assert [entry.key for entry in store.entries()] == [KEY]


def test_what_fails_leaves_nothing():
    def broken(descriptor, logs):
        (logs / "console.log").write_text("words")
        raise SnapshotError("no")

    with pytest.raises(SnapshotError, match="no"):
        make(how=broken)
    assert list(store.rooms().iterdir()) == []


def test_a_full_disk_is_no_place(monkeypatch):
    def full(descriptor, logs):
        raise OSError(28, "No space left on device")

    with pytest.raises(NoPlaceError, match="No space left"):
        make(how=full)
    assert list(store.rooms().iterdir()) == []


def test_threads_that_want_the_same_make_it_once():
    made, begin = [], threading.Barrier(4)

    def count(descriptor, logs):
        made.append(1)
        return fill(descriptor, logs)

    def work():
        begin.wait()
        make(how=count)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


CODE = """
import os, sys, time
from kmt.snapshot import store
def slow(descriptor, logs):
    os.pwrite(descriptor, b"x" * 4096, 0)
    print("filling", flush=True)
    sys.stdin.readline()
    return b"state"
store.make(sys.argv[1], 1 << 20, slow, kernel="", machine="")
print("made", flush=True)
"""


def other(key):
    words = [sys.executable, "-c", CODE, key]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, cwd=Path(__file__).parents[2], **pipes)


def test_a_run_that_is_killed_while_saving_leaves_nothing_that_stays():
    with other(KEY) as one, other("f" * 32) as two:
        for process in (one, two):
            assert process.stdout.readline() == "filling\n"
        for process in (one, two):
            process.kill()
    assert len(list(store.rooms().iterdir())) == 2
    assert not store.exists(KEY)
    assert store.entries() == []
    make()
    assert [room.name for room in store.rooms().iterdir()] == [KEY]


def test_what_another_run_is_saving_is_not_swept():
    with other("f" * 32) as process:
        assert process.stdout.readline() == "filling\n"
        make()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "made\n"
    assert store.exists("f" * 32)
    store.verify("f" * 32)


def test_two_runs_that_want_the_same_meet():
    with other(KEY) as process:
        assert process.stdout.readline() == "filling\n"
        waiting = threading.Thread(target=make, kwargs={"how": lambda *_: pytest.fail("made twice")})
        waiting.start()
        process.stdin.write("\n")
        process.stdin.flush()
        waiting.join(30)
        assert not waiting.is_alive()
    with store.opened(KEY) as snapshot:
        assert snapshot.state == b"state"


@pytest.mark.parametrize("name", ["state", "record.json", "ram"])
def test_one_that_lacks_a_file_is_broken_and_no_more(name):
    (make() / name).unlink()
    damaged(f"{name}: .*No such file")
    with pytest.raises(SnapshotError, match=name):
        store.verify(KEY)
    store.discard(KEY)
    assert list(store.rooms().iterdir()) == []


def test_what_cannot_be_read_is_broken():
    state = make() / "state"
    state.unlink()
    state.mkdir()
    damaged("state: Is a directory")


def test_a_copy_whose_record_cannot_be_renewed_is_used_all_the_same(monkeypatch):
    room = make()
    shutil.copy(room / "ram", room / "copied")
    (room / "copied").replace(room / "ram")

    def full(target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "published", full)
    with store.opened(KEY) as snapshot:
        assert snapshot.state == b"state of devices"


def test_an_error_of_who_has_it_open_is_not_the_snapshots():
    make()
    with pytest.raises(FileNotFoundError, match="mine"), store.opened(KEY):
        raise FileNotFoundError(2, "mine")


def test_a_drop_that_is_killed_midway_leaves_nothing_that_looks_like_one(monkeypatch):
    make()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        store.discard(KEY)
    assert not store.exists(KEY)
    assert store.entries() == []
    assert len(list(store.rooms().iterdir())) == 1
    make()
    assert [room.name for room in store.rooms().iterdir()] == [KEY]


def test_a_drop_takes_nothing_that_another_run_makes_meanwhile(monkeypatch):
    make()
    remove, made = shutil.rmtree, []

    def slow(path, **options):
        if not made:
            made.append(True)
            make()
        remove(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", slow)
        store.discard(KEY)
    with store.opened(KEY) as snapshot:
        assert snapshot.state == b"state of devices"


def test_a_drop_that_cannot_rename_drops_all_the_same(monkeypatch):
    make()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", full)
        store.discard(KEY)
    assert list(store.rooms().iterdir()) == []


def test_its_record_is_readable():
    said = json.loads((make() / "record.json").read_text())
    assert said["ram"]["size"] == SIZE
    assert set(said["ram"]) == {"inode", "size", "mtime_ns", "mode"}
