"""Hardware virtualisation that is there and does not work, in each of its ways."""

import json
import os
import time

import pytest
from machines import SETTINGS, SMALL, kernel, wait_for

from kmt import backends
from kmt.backends import qemu_program
from kmt.boot import accel
from kmt.deadline import Deadline
from kmt.errors import ConfigError, VmNeverStartedError

pytestmark = pytest.mark.host_only

ABORTS = "echo 'qemu-system-x86_64: error: failed to set MSR 0x10a to 0x69' >&2; kill -ABRT $$"
HANGS = "exec sleep 1000"
WORKS = f"echo '{accel.MARKER}'"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """This machine with a /dev/kvm that opens, an empty memory, and a QEMU that does ``what`` with it."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accel, "DEVICE", device)
    monkeypatch.setattr(accel, "cache", lambda *parts: tmp_path)
    monkeypatch.setattr(accel, "_told", set())

    def made(what):
        path = tmp_path / "qemu"
        log = tmp_path / "tries"
        version = '[ "$1" = --version ] && { echo QEMU emulator version 7.2.0; exit; }'
        path.write_text(f"#!/bin/sh\n{version}\necho \"$*\" >> '{log}'\n{what}\n")
        path.chmod(0o755)
        qemu_program.version.cache_clear()
        return str(path), lambda: len(log.read_text().splitlines()) if log.exists() else 0

    return made


def test_it_falls_back_and_says_why_in_one_line(machine, caplog):
    qemu, tries = machine(ABORTS)
    choice = accel.choose(qemu, kernel())
    assert choice.accelerator == "tcg"
    assert "failed to set MSR 0x10a to 0x69" in choice.notice
    assert "\n" not in choice.notice
    assert [choice.notice in record.getMessage() for record in caplog.records] == [True]
    assert tries() == 1


def test_the_verdict_is_remembered_and_said_once(machine, caplog):
    qemu, tries = machine(ABORTS)
    assert accel.choose(qemu, kernel()) == accel.choose(qemu, kernel())
    assert tries() == 1
    assert len(caplog.records) == 1


def test_a_guest_that_hangs_is_a_no(machine, monkeypatch):
    monkeypatch.setattr(accel, "PROBE_SECONDS", 1.0)
    qemu, _ = machine(HANGS)
    choice = accel.choose(qemu, kernel())
    assert choice.accelerator == "tcg"
    assert "a guest said nothing in 1 s" in choice.notice


def test_silence_is_believed_for_a_day(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(accel, "PROBE_SECONDS", 1.0)
    qemu, tries = machine(HANGS)
    accel.choose(qemu, kernel())
    assert accel.choose(qemu, kernel()).accelerator == "tcg"
    assert tries() == 1
    (record,) = tmp_path.glob("*.json")
    long_ago = time.time() - accel.DOUBT_SECONDS - 1
    os.utime(record, (long_ago, long_ago))
    accel.choose(qemu, kernel())
    assert tries() == 2


def test_asked_for_by_name_it_is_an_error(machine):
    qemu, _ = machine(ABORTS)
    with pytest.raises(VmNeverStartedError, match="kvm was asked for and does not work here: failed to set MSR"):
        accel.choose(qemu, kernel(), "kvm")


def test_a_guest_that_speaks_is_a_yes(machine):
    qemu, tries = machine(WORKS)
    assert accel.factor(qemu) == accel.FACTORS["tcg"]
    assert accel.choose(qemu, kernel()) == accel.Choice("kvm")
    assert accel.factor(qemu) == 1.0
    assert accel.expected(qemu) == "kvm"
    assert tries() == 1


def test_what_is_expected_is_told_without_a_try(machine):
    qemu, tries = machine(ABORTS)
    assert accel.expected(qemu) == "kvm"
    accel.choose(qemu, kernel())
    assert accel.expected(qemu) == "tcg"
    assert tries() == 1


def test_emulation_needs_no_try(machine):
    qemu, tries = machine(WORKS)
    assert accel.choose(qemu, kernel(), "tcg") == accel.Choice("tcg")
    assert accel.factor(qemu, "tcg") == accel.FACTORS["tcg"]
    assert tries() == 0


def test_no_device_needs_no_try(machine, monkeypatch, tmp_path):
    qemu, tries = machine(WORKS)
    monkeypatch.setattr(accel, "DEVICE", tmp_path / "none")
    assert "there is no" in accel.choose(qemu, kernel()).notice
    assert tries() == 0


def test_a_damaged_memory_is_made_anew(machine, tmp_path):
    qemu, tries = machine(ABORTS)
    accel.choose(qemu, kernel())
    (record,) = tmp_path.glob("*.json")
    for text in ("", "{", "[]", json.dumps({"works": True, "colour": "red"})):
        record.write_text(text)
        assert accel.choose(qemu, kernel()).accelerator == "tcg"
    assert tries() == 5


def test_a_verdict_that_turns_out_wrong_is_forgotten(machine, tmp_path, monkeypatch):
    qemu, _ = machine(WORKS)
    monkeypatch.setenv("KMT_QEMU", qemu)
    made = backends.get("qemu", config=SETTINGS)
    assert made.accelerator(kernel()) == "kvm"
    machine(ABORTS)
    with made.launch(kernel(), SMALL, tmp_path, Deadline(60)) as vm:
        assert "SIGABRT" in str(wait_for(vm.death))
    assert made.accelerator(kernel()) == "tcg"


def test_an_unknown_word(machine):
    qemu, _ = machine(WORKS)
    with pytest.raises(ConfigError, match="known: auto, kvm, tcg"):
        accel.choose(qemu, kernel(), "hvf")


def test_the_probe_really_boots():
    assert accel.boot_probe(qemu_program.find(), kernel(), "tcg") == accel.Verdict(True)
