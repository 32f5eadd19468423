"""Vagrant's machines: real Vagrant, real libvirt. What all backends must do is in test_backend.py."""

import json
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from machines import SETTINGS, SMALL, kernel, link_to, output, wait_for

from kmt import backends
from kmt.backends.vagrant_machines import OURS
from kmt.deadline import Deadline
from kmt.errors import SnapshotError, VmLostError, VmNeverStartedError, VmPanickedError
from kmt.matrix import Row
from kmt.vagrant.daemon import sweep

pytestmark = [pytest.mark.host_only, pytest.mark.vagrant]
# Not ours to change: what people's own Vagrant and this machine's own libvirt keep.
KERNEL = "5.10"  # the contract itself runs on 6.12
THEIRS = ("~/.vagrant.d", *(f"{place}/libvirt" for place in ("/etc", "/var/lib", "/var/cache", "/var/log", "/run")))


@pytest.fixture
def made():
    return backends.get("vagrant", config=SETTINGS)


def kept_by_others():
    """Each file there, its size and when it was changed last."""
    found = {}
    for place in THEIRS:
        for path in [Path(place).expanduser(), *Path(place).expanduser().rglob("*")]:
            if path.exists():
                status = path.lstat()
                found[str(path)] = (status.st_mtime_ns, status.st_size, status.st_mode)
    return found


@pytest.fixture(scope="module", autouse=True)
def _the_libvirt_and_the_vagrant_of_this_machine_are_not_touched():
    before = kept_by_others()
    yield
    assert kept_by_others() == before


def test_a_port_that_was_taken_meanwhile_is_named(made, tmp_path):
    made.prepare(kernel(KERNEL), SMALL)
    describe = made._entry

    def taken(*words):
        entry = describe(*words)
        port.bind(("127.0.0.1", entry.port))
        port.listen()
        return entry

    made._entry = taken
    said = pytest.raises(VmNeverStartedError, match="somebody else listens at the port that is")
    with socket.socket() as port, said, made.launch(kernel(KERNEL), SMALL, tmp_path, Deadline(300)):
        pass


def test_each_guest_of_a_machine_is_a_clean_one_after_a_panic_too(made, tmp_path):
    own = replace(kernel(KERNEL), name="again")  # a machine that no other test has had
    made.prepare(own, SMALL)
    for number, restored in enumerate((False, False, True)):  # made, made again and kept, brought back
        with made.launch(own, SMALL, tmp_path, Deadline(300)) as vm:
            link = link_to(vm, made)
            assert output(link, "cat", "/etc/of-another")[1] == 1
            assert output(link, "touch", "/etc/of-another")[1] == 0
            assert vm.restored == restored
            now, _ = output(link, "date", "+%s")
            assert abs(time.time() - int(now)) < 60
            if number < 2:
                with pytest.raises(VmPanickedError, match="sysrq"):
                    output(link, "sh", "-c", "echo c > /proc/sysrq-trigger")
        wait_for(lambda: not Path(f"/proc/{vm.pid}").exists())  # its parent, which is not we, has to notice


def test_a_libvirtd_that_dies_is_named_and_what_comes_next_has_a_new_one(made, tmp_path):
    made.prepare(kernel(KERNEL), SMALL)
    with made.launch(kernel(KERNEL), SMALL, tmp_path, Deadline(300)) as vm:
        link = link_to(vm, made)
        before = OURS.session(SETTINGS)
        assert f"guest={before.env['KMT_PREFIX']}{KERNEL}," in Path(f"/proc/{vm.pid}/cmdline").read_text()
        before.daemon.kill()
        with pytest.raises(VmLostError, match=f"libvirtd has ended, and {KERNEL} with it"):
            output(link, "sleep", "1000")
    after = OURS.session(SETTINGS)
    assert after.daemon.poll() is None
    assert after.room != before.room


def test_a_box_that_is_not_there_is_said_before_anything_starts(made, tmp_path, monkeypatch):
    monkeypatch.setenv("VAGRANT_HOME", str(tmp_path / "empty"))
    with pytest.raises(VmNeverStartedError, match=r"there is no box no/such in .*empty \(vagrant box add"):
        made.kernel(Row("mine", box="no/such"))


def test_other_wishes_are_refused(made):
    assert made.pristine is made
    assert not made.checkpoints
    assert made.kernel(Row("6.1", series="6.1", suites=("bookworm",))) is None
    with pytest.raises(SnapshotError, match="cannot be frozen"):
        made.checkpoint(None, Deadline(1))
    with pytest.raises(SnapshotError, match="cannot be restored"):
        made.restore(None, Path("/"), Deadline(1))


TESTS = """
    import os, pathlib, pytest

    def test_is_root_at_the_same_path(kernel):
        assert os.geteuid() == 0
        assert str(pathlib.Path(__file__).parent) == {root!r}
        pathlib.Path(os.environ["KMT_ARTIFACTS"], "seen.txt").write_text("by a test")

    def test_what_guests_have():
        for place in ("/sys/fs/bpf", "/sys/kernel/tracing", "/sys/fs/cgroup", "/dev/shm"):
            assert os.path.ismount(place), place
        assert pathlib.Path("/proc/sys/kernel/unprivileged_bpf_disabled").read_text() == "0\\n"

    @pytest.mark.pristine
    def test_of_an_untouched_kernel(): assert not list(pathlib.Path("/sys/fs/bpf").iterdir())

    def test_fails(): assert False
"""


@pytest.mark.thorough
def test_a_project_is_tested_there_and_reported_like_anywhere(project, monkeypatch):
    project.write(TESTS.format(root=str(project.root)))
    monkeypatch.delenv("KMT_CACHE")  # the kernels, image and box that are there
    words = ("--kernel-backend=vagrant", "--kernel-json=out.json")
    command = project.command(*words, "--kernel", KERNEL)
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True, timeout=500)
    assert done.returncode == 1, done.stdout + done.stderr
    (found,) = json.loads((project.root / "out.json").read_text())["kernels"]
    assert (found["backend"], found["release"]) == ("vagrant", kernel(KERNEL).release)
    assert {t["id"].split("::")[1]: t["outcome"] for t in found["tests"]} == {
        "test_is_root_at_the_same_path": "passed",
        "test_what_guests_have": "passed",
        "test_of_an_untouched_kernel": "passed",
        "test_fails": "failed",
    }
    assert found["guests"] == 2


OWNER = """
import time
from pathlib import Path
from kmt import config
from kmt.backends.vagrant_machines import OURS
session = OURS.session(config.load(Path()))
print(session.room, session.daemon.pid, flush=True)
time.sleep(1000)
"""


def test_a_session_that_is_killed_leaves_no_machine_and_its_room_is_swept(made, tmp_path):
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        room, daemon = owner.stdout.readline().split()
        owner.kill()
    wait_for(lambda: not Path(f"/proc/{daemon}").exists(), seconds=15)
    sweep()
    assert not Path(room).exists()
