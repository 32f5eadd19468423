"""A machine of Vagrant's as it is judged here: by its process, its serial log and our own ssh. No machine is needed."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from machines import wait_for

from kmt import backends
from kmt.backends.base import Machine
from kmt.backends.ssh_words import Target
from kmt.backends.vagrant import AS_ROOT
from kmt.backends.vagrant_machines import domain
from kmt.backends.vagrant_vm import VagrantVm, followed, qemu_of
from kmt.boot.consolelog import Watch
from kmt.errors import VmLostError, VmNeverStartedError, VmPanickedError
from kmt.matrix import Row
from kmt.vagrant import machines

PANIC = b"[    1.000000] Kernel panic - not syncing: sysrq triggered crash\n"


@pytest.fixture
def qemu(tmp_path):
    """A process that is called like QEMU, in whose command line is a path that no other has."""
    program = tmp_path / "qemu-system-x86_64"
    shutil.copy(shutil.which("sleep"), program)
    with subprocess.Popen([program, "1000"]) as process:
        wait_for(Path(f"/proc/{process.pid}/cmdline").read_bytes)  # set late in execve
        yield process
        process.kill()


@pytest.fixture
def watch(tmp_path):
    made = Watch(tmp_path / "console.log")
    yield made
    made.started()
    made.join(5)


@pytest.fixture
def daemon():
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@pytest.fixture
def machine(watch, daemon, tmp_path):
    """``machine(qemu, script)`` is a machine whose connection is that shell script."""
    started = []

    def made(qemu, script):
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(["sh", "-c", script], stdin=theirs, stdout=theirs, stderr=watch.writing)
        started.extend([(process, ours), (process, theirs)])
        vm = VagrantVm(Target("6.1", "", None, AS_ROOT), process, ours, watch, tmp_path / "ssh.log")
        vm.belongs_to(qemu_of(str(qemu.args[0])), daemon, "tcg", restored=False)
        return vm

    yield made
    for process, end in started:
        process.kill()
        process.wait()
        end.close()


def test_a_process_is_found_by_what_is_in_its_command_line(qemu, tmp_path):
    found = qemu_of(str(tmp_path))
    assert (found.pid, found.runs) == (qemu.pid, True)
    assert found.kill()
    assert not found.runs
    qemu.wait()
    assert found.kill()  # that it has gone already is as good
    found.close()
    assert qemu_of(str(tmp_path)) is None


def test_what_is_no_qemu_is_not_taken_for_one(tmp_path):
    program = tmp_path / "another"
    shutil.copy(shutil.which("sleep"), program)
    with subprocess.Popen([program, "1000"]) as process:
        found = qemu_of(str(tmp_path))
        process.kill()
    assert found is None


def test_a_serial_log_is_followed_by_lines_from_before_it_is_there(watch, tmp_path):
    serial = tmp_path / "serial.log"
    with followed(serial, watch):
        with serial.open("wb", buffering=0) as file:
            file.write(b"one\ntw")
            wait_for(lambda: watch.path.read_bytes() == b"one\n")
            watch.write(b"of ssh\n")  # not in the middle of a line
            file.write(b"o\n" + PANIC + b"the end")
        wait_for(lambda: watch.console.panicked)
    watch.started()
    watch.join(5)
    assert watch.path.read_bytes() == b"one\nof ssh\ntwo\n" + PANIC + b"the end"


def test_a_serial_log_that_is_begun_anew_is_followed_from_its_beginning(watch, tmp_path):
    serial = tmp_path / "serial.log"
    serial.write_bytes(b"of the first machine\n")
    with followed(serial, watch):
        wait_for(lambda: watch.path.read_bytes() == b"of the first machine\n")
        serial.write_bytes(PANIC[:-50] + b"\n")
        wait_for(lambda: watch.path.stat().st_size > 21)
    watch.started()
    watch.join(5)
    assert watch.path.read_bytes() == b"of the first machine\n" + PANIC[:-50] + b"\n"


@pytest.mark.parametrize(
    ("name", "called"), [("kmt-1a2b-6.1", "kmt-1a2b-6.1"), ("kmt-6.1+debug~rc_1", "kmt-6.1debugrc_1")]
)
def test_a_domain_is_called_as_vagrant_libvirt_calls_it(name, called):
    assert domain(name) == called


def test_a_port_stays_that_of_a_machine_that_runs_and_is_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))

    def port():
        wish = Machine(memory_mib=512)
        return machines.entry(tmp_path, "6.1", kernel=None, box="a/b", machine=wish, accelerator="tcg").port

    first = port()
    program = tmp_path / "qemu-system-x86_64"
    shutil.copy(shutil.which("sh"), program)
    words = f"user,id=kmt,restrict=on,hostfwd=tcp:127.0.0.1:{first}-:22"
    with socket.socket() as listens:
        listens.bind(("127.0.0.1", first))
        listens.listen()
        with subprocess.Popen([program, "-c", "read _", words], stdin=subprocess.PIPE) as qemu:
            wait_for(lambda: words.encode() in Path(f"/proc/{qemu.pid}/cmdline").read_bytes())  # set late in execve
            assert port() == first, "the machine listens"
            qemu.stdin.close()
        second = port()
        assert second != first, "somebody else does"
        assert port() == second


def test_while_both_run_it_lives(qemu, machine):
    vm = machine(qemu, "exec sleep 1000")
    assert vm.death() is None
    assert (vm.pid, vm.phase, vm.accelerator, vm.restored) == (qemu.pid, "starting", "tcg", False)


def test_a_panic_is_its_death_though_everything_runs(qemu, machine, watch):
    vm = machine(qemu, "exec sleep 1000")
    watch.write(PANIC)
    death = wait_for(vm.death, 10)
    assert isinstance(death, VmPanickedError)
    assert "sysrq" in str(death)
    assert vm.phase == "panic"


def test_a_qemu_that_was_killed_is_told_from_a_connection_that_ended(qemu, machine):
    vm = machine(qemu, "exec sleep 1000")
    qemu.kill()
    qemu.wait()
    death = wait_for(vm.death, 10)
    assert isinstance(death, VmLostError)
    assert "the QEMU of 6.1 ended without a word" in str(death)
    assert vm.phase == "ended"


def test_last_words_count_before_the_end_of_the_process(qemu, machine, watch):
    vm = machine(qemu, "exec sleep 1000")
    qemu.kill()
    qemu.wait()
    watch.write(b"[    1.000000] BUG: kernel NULL pointer dereference, address: 0\n")
    assert isinstance(wait_for(vm.death, 10), VmPanickedError)


def test_a_libvirtd_that_ended_is_named(qemu, machine, daemon):
    vm = machine(qemu, "exec sleep 1000")
    for process in (daemon, qemu):
        process.kill()
        process.wait()
    death = wait_for(vm.death, 10)
    assert isinstance(death, VmLostError)
    assert "libvirtd has ended, and 6.1 with it (run it again" in str(death)


def test_a_box_without_python(qemu, machine):
    death = wait_for(machine(qemu, "exit 127").death, 10)
    assert isinstance(death, VmNeverStartedError)
    assert str(death) == "there is no Python for root in the box of 6.1 (the box needs python3 (and sudo))"


def test_a_key_that_is_refused(qemu, machine, tmp_path):
    (tmp_path / "ssh.log").write_text("root@127.0.0.1: Permission denied (publickey).\n")
    death = wait_for(machine(qemu, "exit 255").death, 10)
    assert isinstance(death, VmNeverStartedError)
    assert "6.1 refuses our key" in str(death)


def test_whoever_a_box_lets_in_python_runs_as_root():
    # Here: root as it is; anybody else has sudo asked, which may say no, but never asks.
    done = subprocess.run([*AS_ROOT[:-1], "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert done.returncode == 0 or b"sudo" in done.stderr


def test_a_row_with_a_box_is_vagrants():
    assert backends.name_for(Row("trixie", box="debian/trixie64"), "qemu") == "vagrant"
    assert backends.name_for(Row("6.1"), "vagrant") == "vagrant"
