"""A snapshot that is broken, cannot be made or is another machine's: the guest boots, and says why, once."""

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from machines import ROOT, SETTINGS, SMALL, backend, gone, guest, kernel, link_to, output, wait_for

from kmt import backends, paths
from kmt.backends import qemu_snapshots
from kmt.boot import accel
from kmt.deadline import Deadline
from kmt.errors import AgentError
from kmt.snapshot import ram, store

pytestmark = pytest.mark.host_only


@pytest.fixture(scope="module")
def made():
    """The room of a sound snapshot, in the cache that everybody uses."""
    backend().prepare(kernel(), SMALL)
    return store.rooms() / backend().key(kernel(), SMALL)


@pytest.fixture
def own(tmp_path, monkeypatch, made):
    """A cache like the usual one, but for its snapshots: the room of a copy of that one."""
    usual = paths.cache()
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    mine = paths.cache()
    for room in usual.iterdir():
        if room.name not in ("snapshots", "runs", "locks"):
            (mine / room.name).symlink_to(room)
    return Path(shutil.copytree(made, store.rooms() / made.name))


@pytest.fixture
def fresh():
    """A backend that has not seen anything yet."""
    return backends.get("qemu", config=SETTINGS)


def boots(made, tmp_path, caplog, why):
    """Start two guests: both boot, the reason is said once."""
    caplog.set_level(logging.WARNING, "kmt")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with made.launch(kernel(), SMALL, tmp_path / name, Deadline(600)) as vm:
            assert not vm.restored
            link = link_to(vm, made)
            assert output(link, "uname", "-r")[0].decode().strip() == kernel().release
    said = [record.message for record in caplog.records if "boots" in record.message]
    assert len(said) == 1
    assert why in said[0]
    assert why in made.notice
    return said[0]


def test_a_sound_one_is_used(own, fresh, tmp_path):
    with fresh.launch(kernel(), SMALL, tmp_path, Deadline(600)) as vm:
        assert vm.restored
    assert "boots" not in fresh.notice


def test_memory_cut_short(own, fresh, tmp_path, caplog):
    os.truncate(own / "ram", (SMALL.memory_mib << 20) // 2)
    said = boots(fresh, tmp_path, caplog, f"ram has {SMALL.memory_mib << 19} bytes")
    assert "the warm snapshot of 6.1 was thrown away and it boots" in said
    assert not own.exists()


def test_a_flipped_bit_in_the_device_state(own, fresh, tmp_path, caplog):
    content = bytearray((own / "state").read_bytes())
    content[len(content) // 2] ^= 1
    (own / "state").write_bytes(content)
    boots(fresh, tmp_path, caplog, "state is damaged")
    assert not own.exists()


def test_a_file_of_it_is_missing(own, fresh, tmp_path, caplog):
    (own / "state").unlink()
    boots(fresh, tmp_path, caplog, "state: No such file")
    assert not own.exists()


def rehashed(room, state):
    """Give a snapshot another device state that passes for its own."""
    (room / "state").write_bytes(state)
    record = json.loads((room / "record.json").read_text())
    record["state_sha256"] = hashlib.sha256(state).hexdigest()
    (room / "record.json").write_text(json.dumps(record))


def test_a_state_that_qemu_does_not_take(own, fresh, tmp_path, caplog):
    rehashed(own, (own / "state").read_bytes()[:1000])
    boots(fresh, tmp_path, caplog, "QEMU could not go on from it")
    assert not own.exists()


def test_memory_of_nothing(own, fresh, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("kmt.backends.qemu.RESTORE_SECONDS", 0.2)
    size = (own / "ram").stat().st_size
    with (own / "ram").open("r+b") as file:
        file.truncate(0)
        file.truncate(size)
        record = json.loads((own / "record.json").read_text())
        record["ram"] = store._trust(file.fileno()).__dict__
    (own / "record.json").write_text(json.dumps(record))
    boots(fresh, tmp_path, caplog, "the warm snapshot of 6.1 was thrown away")
    assert not own.exists()


def test_it_is_deleted_while_guests_run(own, fresh, tmp_path):
    with fresh.launch(kernel(), SMALL, tmp_path, Deadline(600)) as vm:
        assert vm.restored
        link = link_to(vm, fresh)
        shutil.rmtree(own)
        # Reads what only the file had so far: its own pages are few.
        assert output(link, "sh", "-c", "cat /usr/bin/* > /dev/null; python3 -c 'print(6 * 7)'") == (b"42\n", 0)


def test_another_qemu_has_another_key(tmp_path, monkeypatch, fresh):
    real = fresh.command_line(kernel(), SMALL, tmp_path)[0]
    keys = {fresh.key(kernel(), SMALL)}
    for version in ("7.2.22", "10.0.2"):
        path = tmp_path / f"qemu-{version}"
        path.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && echo QEMU emulator version {version} || exec {real} "$@"\n'
        )
        path.chmod(0o755)
        monkeypatch.setenv("KMT_QEMU", str(path))
        keys.add(backends.get("qemu", config=SETTINGS, accel="tcg").key(kernel(), SMALL))
    assert len(keys) == 3


def test_another_processor_has_another_key(monkeypatch, fresh):
    key = fresh.key(kernel(), SMALL)
    monkeypatch.setattr(accel, "processor", lambda: "flags: fewer")
    assert fresh.key(kernel(), SMALL) != key


@pytest.mark.parametrize("other", [{"memory_mib": 768}, {"cpus": 2}, {"compiler": True}])
def test_another_machine_has_another_key(fresh, other):
    assert fresh.key(kernel(), replace(SMALL, **other)) != fresh.key(kernel(), SMALL)


def test_an_edited_agent_has_another_key(monkeypatch, fresh):
    key = fresh.key(kernel(), SMALL)
    monkeypatch.setattr("kmt.boot.disks.agent_archive", lambda: b"another agent")
    assert fresh.key(kernel(), SMALL) != key


def test_no_room_to_make_one(own, fresh, tmp_path, caplog, monkeypatch):
    shutil.rmtree(own)
    monkeypatch.setattr(ram, "check_place", _no_room)
    said = boots(fresh, tmp_path, caplog, "there is no warm snapshot of 6.1 and it boots")
    assert "MiB free" in said


def _no_room(directory, size, check=ram.check_place):
    check(directory, 1 << 70)


def test_no_room_for_a_copy_keeps_the_snapshot(own, fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "copy_file_range", _full)
    with fresh.launch(kernel(), SMALL, tmp_path, Deadline(600), checkpointable=True) as vm:
        assert not vm.restored
        assert "No space left" in fresh.notice
    assert own.exists()


def _full(*_, **__):
    raise OSError(28, "No space left on device")


MOUNTED = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from machines import *
from kmt.snapshot import ram
ram.check_place = lambda directory, size: None
made = backend()
with made.launch(kernel(), SMALL, Path(sys.argv[2]), Deadline(600)) as vm:
    link = link_to(vm, made)
    print("restored" if vm.restored else "booted", output(link, "uname", "-r")[1], made.notice)
"""


def test_the_disk_fills_up_while_it_is_made(own, tmp_path):
    # A write into a shared mapping that finds no block is a SIGBUS: QEMU dies, the run does not.
    code = tmp_path / "code.py"
    code.write_text(MOUNTED)
    mount = 'mount -t tmpfs -o size=40m none "$1" && shift && exec "$@"'
    words = ["unshare", *([] if os.geteuid() == 0 else ["-Ur"]), "-m", "sh", "-c", mount, "sh", store.rooms()]
    words += [sys.executable, code, ROOT / "tests", tmp_path]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("booted 0 "), done.stdout + done.stderr
    assert "SIGBUS" in done.stdout


def test_a_warm_up_that_is_not_clean(own, fresh, tmp_path, caplog, monkeypatch):
    shutil.rmtree(own)

    def unclean(vm, deadline, factor, modules):
        raise AgentError("the guest could not do it: NotCleanError: 2 threads run")

    monkeypatch.setattr(qemu_snapshots, "warm_and_freeze", unclean)
    boots(fresh, tmp_path, caplog, "2 threads run")
    assert list(store.rooms().iterdir()) == []


def test_switched_off(own, tmp_path):
    made = backends.get("qemu", config=replace(SETTINGS, snapshots=False))
    assert not made.checkpoints
    with made.launch(kernel(), SMALL, tmp_path, Deadline(600)) as vm:
        assert not vm.restored
    assert "boots" not in made.notice


KILLED = """
import sys; sys.path.insert(0, sys.argv[1])
from machines import *
backend().prepare(kernel(), SMALL)
"""


def test_a_run_that_is_killed_while_saving(own):
    shutil.rmtree(own)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(ROOT / "tests")], cwd=ROOT) as process:
        (half,) = wait_for(lambda: [p for p in store.rooms().glob(".*/*/ram") if p.stat().st_blocks > 100])
        machines = psutil.Process(process.pid).children(recursive=True)
        assert machines
        process.kill()
    wait_for(lambda: all(gone(machine.pid) for machine in machines), 10)
    assert store.entries() == []
    # What is left of it goes when the next is made; test_snapshot_store.py makes one.
    assert half.exists()


def test_a_guest_that_stood_still_goes_on_with_the_right_time(own, fresh, tmp_path):
    with guest(tmp_path, made=fresh) as (vm, link):
        os.kill(vm.pid, signal.SIGSTOP)
        time.sleep(2)
        os.kill(vm.pid, signal.SIGCONT)
        stamp, status = output(link, "date", "+%s.%N")
        assert status == 0
        assert abs(float(stamp) - time.time()) < 5


def test_a_module_to_be_warm_that_the_image_lacks(tmp_path, caplog):
    made = backends.get("qemu", config=replace(SETTINGS, warm=("no_such_module",)))
    with caplog.at_level(logging.WARNING), guest(tmp_path, made=made) as (vm, link):
        assert not vm.restored
        assert output(link, "true") == (b"", 0)
    assert "there is no warm snapshot of 6.1 and it boots" in caplog.text
    assert "No module named 'no_such_module'" in caplog.text
