"""What goes wrong with a machine: each has its error, says what to do, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from machines import ROOT, SETTINGS, SMALL, backend, gone, guest, kernel, output, wait_for

from kmt import backends
from kmt.backends import qemu_program
from kmt.boot import disks
from kmt.deadline import Deadline
from kmt.errors import ConfigError, ImageError, VmLostError, VmNeverStartedError, VmPanickedError, VmTimedOutError
from kmt.guest.wire import Kind
from kmt.run.link import Link

pytestmark = pytest.mark.host_only


def script(path, *lines):
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


@pytest.fixture
def use_qemu(monkeypatch, tmp_path):
    """Make ``KMT_QEMU`` a script of the given lines; returns its path."""

    def use(*lines):
        path = script(tmp_path / "qemu", *lines)
        monkeypatch.setenv("KMT_QEMU", str(path))
        return path

    return use


class TestQemu:
    def test_missing(self, monkeypatch):
        monkeypatch.setenv("KMT_QEMU", "/nonexistent/qemu-system-x86_64")
        with pytest.raises(VmNeverStartedError, match=r"not installed \(try: apt-get install qemu-system-x86\)"):
            qemu_program.find()

    def test_missing_from_the_path(self, monkeypatch):
        monkeypatch.setattr(qemu_program.proc, "which", lambda program: None)
        with pytest.raises(VmNeverStartedError, match="qemu-system-x86_64 is not installed"):
            qemu_program.find()

    def test_too_old(self, use_qemu):
        use_qemu("echo QEMU emulator version 6.2.0")
        with pytest.raises(VmNeverStartedError, match=r"is QEMU 6\.2\.0; it takes 7\.0 or newer"):
            qemu_program.find()

    def test_something_else(self, use_qemu):
        use_qemu("echo I am a teapot")
        with pytest.raises(VmNeverStartedError, match="does not speak of QEMU: I am a teapot"):
            qemu_program.find()

    def test_newer_ones_are_taken(self, use_qemu):
        path = use_qemu("echo 'QEMU emulator version 11.0.1 (v11.0.1)'")
        assert qemu_program.find() == str(path)
        assert qemu_program.version(str(path)) == (11, 0, 1)

    def test_that_refuses_its_command_line_says_why(self, use_qemu, tmp_path):
        use_qemu(
            '[ "$1" = --version ] && { echo QEMU emulator version 7.2.0; exit; }',
            "echo 'qemu: cannot set up guest memory: Cannot allocate memory' >&2",
            "exit 1",
        )
        made = backends.get("qemu", config=SETTINGS, accel="tcg")
        with made.launch(kernel(), SMALL, tmp_path, Deadline(60)) as vm:
            death = wait_for(vm.death)
        assert isinstance(death, VmNeverStartedError)
        assert "Cannot allocate memory" in str(death)

    def test_an_unknown_accelerator(self):
        with pytest.raises(ConfigError, match=r"no accelerator 'xen' \(known: auto, kvm, tcg\)"):
            backends.get("qemu", config=SETTINGS, accel="xen")


class TestImage:
    def test_that_is_no_kernel(self, tmp_path):
        path = tmp_path / "vmlinuz"
        path.write_bytes(b"no kernel at all" * 100)
        with pytest.raises(ImageError, match="is no Linux kernel image"):
            disks.check_whole(path)

    def test_that_is_not_there(self, tmp_path):
        with pytest.raises(ImageError, match="No such file"):
            disks.check_whole(tmp_path / "vmlinuz")

    def test_cut_short(self, tmp_path):
        path = tmp_path / "vmlinuz"
        whole = kernel().vmlinuz.read_bytes()
        disks.check_whole(kernel().vmlinuz)
        path.write_bytes(whole[: len(whole) * 9 // 10])
        with pytest.raises(ImageError, match="is cut short"):
            disks.check_whole(path)


def test_a_panic_is_told_in_the_kernels_words(tmp_path):
    with guest(tmp_path) as (vm, link):
        with pytest.raises(VmPanickedError, match="Kernel panic - not syncing: sysrq triggered crash") as caught:
            output(link, "sh", "-c", "echo c > /proc/sysrq-trigger")
        assert caught.value.outcome == "panic"
        assert vm.phase == "panic"
    assert "sysrq triggered crash" in vm.console.read_text()


def test_a_guest_that_stands_still_is_given_up_and_killed(tmp_path):
    with guest(tmp_path) as (vm, _):
        os.kill(vm.pid, signal.SIGSTOP)
        impatient = Link(vm, Deadline(60), factor=0.2, cancel=threading.Event())
        with pytest.raises(VmTimedOutError, match="silent"):
            impatient.receive(Kind.DONE)
        begin = time.monotonic()
    assert gone(vm.pid)
    assert time.monotonic() - begin < 10


def test_a_guest_that_is_not_done_in_time(tmp_path):
    with guest(tmp_path) as (vm, _):
        link = Link(vm, Deadline(1), factor=100, cancel=threading.Event())
        with pytest.raises(VmTimedOutError, match="not done within 1 s"):
            output(link, "sleep", "1000")


def test_a_guest_that_reboots_is_lost(tmp_path):
    with guest(tmp_path) as (_, link), pytest.raises(VmLostError, match="powered itself off"):
        output(link, "sh", "-c", "echo b > /proc/sysrq-trigger; sleep 60")


def test_a_program_that_takes_all_memory_dies_alone(tmp_path):
    with guest(tmp_path) as (vm, link):
        _, status = output(link, "tail", "/dev/zero")
        assert status == -signal.SIGKILL
        wait_for(lambda: vm.phase == "out of memory")
        assert vm.death() is None
        assert any("Killed process" in remark for remark in vm.remarks())
        assert output(link, "echo", "alive") == (b"alive\n", 0)


def test_an_agent_that_is_killed_takes_the_guest_with_it(tmp_path):
    with guest(tmp_path) as (_, link), pytest.raises(VmLostError, match="agent ended with status 137"):
        output(link, "sh", "-c", "kill -9 $PPID; sleep 60")


def test_machines_die_with_the_process_that_started_them(tmp_path):
    with guest(tmp_path):
        pass  # all is made and cached: what follows takes no longer than a boot
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from machines import guest\n"
        "with guest(Path(sys.argv[2])) as (vm, link): print(vm.pid, flush=True); time.sleep(1000)\n"
    )
    words = [sys.executable, "-c", code, str(ROOT / "tests"), str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT) as parent:
        pid = int(parent.stdout.readline())
        assert psutil.Process(pid).name().startswith("qemu")
        parent.kill()
    wait_for(lambda: gone(pid), seconds=10)


def test_a_kernel_that_panics_in_the_middle_of_booting(tmp_path, monkeypatch):
    made = backend()
    broken = tmp_path / "root.erofs"
    broken.write_bytes(bytes(1 << 20))
    files = made.files(kernel(), SMALL)
    monkeypatch.setattr(made, "files", lambda *_: type(files)(files.vmlinuz, files.initramfs, broken, files.kernel))
    with made.launch(kernel(), SMALL, tmp_path, Deadline(60)) as vm:
        death = wait_for(vm.death)
    assert isinstance(death, VmNeverStartedError)
    assert "the root disk is no erofs image" in str(death)


def test_an_initramfs_that_is_none_panics(tmp_path, monkeypatch):
    made = backend()
    empty = tmp_path / "empty.cpio"
    empty.write_bytes(b"")
    files = made.files(kernel(), SMALL)
    monkeypatch.setattr(made, "files", lambda *_: type(files)(files.vmlinuz, empty, files.root, files.kernel))
    with made.launch(kernel(), SMALL, tmp_path, Deadline(60)) as vm:
        death = wait_for(vm.death)
    assert isinstance(death, VmPanickedError)
    assert "Unable to mount root fs" in str(death)
    assert Path(vm.console).is_file()
