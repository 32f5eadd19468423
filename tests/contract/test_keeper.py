"""Guests that outlive their run: leased, given back, thrown away, ended; with real guests."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import pexpect
import psutil
import pytest
from machines import ROOT, SMALL, guest, kernel, output, wait_for

from kmt import backends, config, runs
from kmt.backends.kept import kept
from kmt.errors import ConfigError, VmLostError
from kmt.keeper import client
from kmt.keeper.messages import LIMIT, SOCKET, Connection, KeeperError, Wanted, address, request, requested

pytestmark = pytest.mark.host_only


@pytest.fixture
def project(tmp_path):
    """A project of its own, whose keeper has ended when the test has."""
    (tmp_path / "project").mkdir()
    root = tmp_path / "project"
    shutil.copy(ROOT / "tasks.py", root)
    (root / "pyproject.toml").write_text("[tool.kmt]\nmemory = 512\n")
    (root / "test_it.py").write_text(
        "from pathlib import Path\n\n\ndef test_count():\n"
        "    with Path('/tmp/count').open('a') as file:\n        file.write('x')\n"
        "    print(Path('/tmp/count').read_text())\n    assert not Path('gone.py').exists()\n"
    )
    yield root
    found = client.find(root)
    if found is not None:
        ends(found, signal.SIGTERM)


def ends(run, number):
    process = psutil.Process(run.record.pid)
    guests = process.children(recursive=True)
    process.send_signal(number)
    # It is no child of ours: somebody else reaps it.
    wait_for(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    assert psutil.wait_procs(guests, 20)[1] == []


def backend(root, minutes=5.0):
    settings = config.load(root)
    return kept(backends.get("qemu", config=settings), settings, "auto", minutes)


def invoke(root, *words, **more):
    argv = [sys.executable, "-m", "invoke", *words]
    return subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=400, **more)


def test_a_guest_is_lent_again_with_what_was_done_to_it(project, tmp_path):
    made = backend(project)
    with guest(tmp_path, made=made) as (vm, link):
        pid = vm.pid
        output(link, "sh", "-c", "echo mine > /tmp/mark; touch /run/kmt/artifacts/left")
        link.goodbye()
    with guest(tmp_path, made=made) as (vm, link):
        assert vm.pid == pid
        assert output(link, "cat", "/tmp/mark") == (b"mine\n", 0)
        assert link.artifacts(tmp_path / "artifacts") == ([], [])
        # The same kernel, wanted by two at once: nobody shares.
        with guest(tmp_path, made=backend(project)) as (other, another):
            assert other.pid != pid
            assert output(another, "cat", "/tmp/mark")[1] != 0
    run = client.find(project)
    assert (run.dir / SOCKET).stat().st_mode & 0o777 == 0o600
    assert [k.detail for k in run.record.kernels.values()] == ["idle", "idle"]
    ends(run, signal.SIGINT)
    assert client.find(project) is None
    assert runs.find(run.record.id).state == "ended 0"


def test_a_lease_that_did_not_end_well_ends_its_guest(project, tmp_path):
    made = backend(project)

    def fails():
        with guest(tmp_path, made=made) as (vm, _):
            pids.append(vm.pid)
            raise KeyError("a bug")

    pids = []
    with pytest.raises(KeyError):
        fails()
    wait_for(lambda: not psutil.pid_exists(pids[0]))
    with guest(tmp_path, made=made) as (_, link):
        assert output(link, "true") == (b"", 0)


def test_a_guest_that_dies_and_a_keeper_that_dies_are_told(project, tmp_path):
    made = backend(project)
    with guest(tmp_path, made=made) as (vm, link):
        os.kill(vm.pid, signal.SIGKILL)
        with pytest.raises(VmLostError, match="ended by SIGKILL"):
            output(link, "sleep", "100")
    with guest(tmp_path, made=made) as (vm, link):
        ends(client.find(project), signal.SIGKILL)
        with pytest.raises(VmLostError, match="the keeper has ended"):
            output(link, "sleep", "100")
    assert client.find(project) is None


def test_guests_end_when_nobody_wants_them(project, tmp_path):
    made = backend(project, minutes=1 / 60)
    with guest(tmp_path, made=made) as (vm, _):
        run = client.find(project)
    wait_for(lambda: not psutil.pid_exists(vm.pid))
    wait_for(lambda: client.find(project) is None)
    assert runs.find(run.record.id).state == "ended 0"


@pytest.mark.parametrize(
    "said", [b"{}\n", b"[1]\n", b"\xff\n", b"x" * (LIMIT + 8192), b'{"kernel": {"name": 3}}\n', b""]
)
def test_nonsense_is_refused_and_the_keeper_goes_on(project, said):
    run = client.ensure(project, 60.0)
    with socket.socket(socket.AF_UNIX) as stream:
        with address(run.dir) as path:
            stream.connect(path)
        stream.sendall(said)
        stream.shutdown(socket.SHUT_WR)
        answer = Connection(stream).receive()
    assert answer is None or "error" in answer[0]
    assert client.find(project) is not None


def test_a_kernel_that_cannot_boot_is_the_lessees_error(project, tmp_path):
    keeper = client.ensure(project, 60.0)
    broken = replace(kernel(), vmlinuz=tmp_path / "nothing")
    wanted = Wanted(broken, SMALL, "auto", "qemu", "", config.load(project))
    with pytest.raises(KeeperError, match="the keeper has no guest"), client.lease(keeper, wanted):
        pass


def test_a_project_by_way_of_a_link_has_the_same_keeper(project, tmp_path):
    other = tmp_path / "link"
    other.symlink_to(project)
    run = client.ensure(other, 60.0)
    assert client.find(other).record.id == client.find(project).record.id == run.record.id
    assert client.ensure(project, 60.0).record.id == run.record.id


def test_a_guest_of_settings_that_were_edited_is_not_lent(project, tmp_path):
    with guest(tmp_path, made=backend(project)) as (vm, _):
        before = vm.pid
    with (project / "pyproject.toml").open("a") as file:
        file.write("dump = true\nsnapshots = false\n")
    with guest(tmp_path, made=backend(project)) as (vm, _):
        edited = vm.pid
        # As the settings of now say, not those of when the keeper began.
        assert "vmcoreinfo" in psutil.Process(edited).cmdline()
    assert "vmcoreinfo" not in psutil.Process(before).cmdline()
    with guest(tmp_path, made=backend(project)) as (vm, _):
        assert vm.pid == edited != before


def test_what_is_wanted_arrives_as_it_was_said(project):
    wanted = Wanted(kernel(), SMALL, "tcg", "qemu", "id", replace(config.load(project), warm=("json",), dump=True))
    assert requested(json.loads(json.dumps(request(wanted)))) == wanted


@pytest.mark.parametrize("minutes", [0, -1.0])
def test_no_time_at_all_is_refused(project, minutes):
    with pytest.raises(ConfigError, match="more than 0 minutes"):
        backend(project, minutes)


def test_start_keep_then_test_exec_and_shell_use_the_same_guest(project):
    (project / "gone.py").write_text("")
    first = invoke(project, "kmt.start", "--kernels", "6.1", "--keep", "--", "-s")
    assert first.returncode == 1, first.stdout + first.stderr
    (project / "gone.py").unlink()
    again = invoke(project, "kmt.test", "--kernels", "6.1", "--", "-vv", "-s")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "xx" in again.stdout
    assert "guests stay with run" in again.stdout
    assert invoke(project, "kmt.exec", "6.1", "--", "cat", "/tmp/count", stdin=subprocess.DEVNULL).stdout == "xx"
    argv = ["-m", "invoke", "kmt.shell", "6.1"]
    shell = pexpect.spawn(sys.executable, argv, cwd=str(project), timeout=60, dimensions=(30, 100), encoding="utf-8")
    shell.expect_exact("kept: Ctrl-] leaves")
    shell.expect_exact("# ")
    shell.sendline("stty size; cat /tmp/count; echo; pwd")
    shell.expect_exact("30 100\r\n")
    shell.expect_exact("xx")
    shell.expect_exact(str(project))
    shell.sendcontrol("]")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 0
    shown = invoke(project, "kmt.status").stdout
    run_id = re.search(r"^(\S+) +running .*\n +6\.1 +kept idle", shown, re.MULTILINE)[1]
    assert invoke(project, "kmt.stop", "--run", run_id).returncode == 0
    wait_for(lambda: client.find(project) is None)
