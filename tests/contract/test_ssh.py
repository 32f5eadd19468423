"""A machine over SSH, by a private sshd: what goes wrong is one line, nothing is left behind. See test_backend.py."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pexpect
import psutil
import pytest
from machines import gone, link_to, output, wait_for
from sshd import free_port, serving

from kmt import archive, backends, config, matrix, proc, runs
from kmt.backends.base import Machine
from kmt.backends.ssh import SshBackend
from kmt.backends.ssh_vm import NOISE
from kmt.commands import snapshots
from kmt.commands.matrix import dry_run, fetch
from kmt.deadline import Deadline
from kmt.errors import (
    AgentError,
    ConfigError,
    SnapshotError,
    UnavailableError,
    VmLostError,
    VmNeverStartedError,
    VmTimedOutError,
)
from kmt.guest.wire import Kind
from kmt.paths import cache
from kmt.run.account import Account
from kmt.run.examples import Examples
from kmt.run.expected import Expected
from kmt.run.guest import Plan
from kmt.run.link import Link
from kmt.run.shared import Job, Shared
from kmt.run.unit import Guests

pytestmark = pytest.mark.host_only


@pytest.fixture
def made(tmp_path):
    return SshBackend(config.load(tmp_path))


def launched(made, row, directory):
    directory.mkdir(exist_ok=True)
    return made.launch(made.kernel(row), Machine(), directory, Deadline(60))


def room_of(link):
    """The directory on the other side, which here is this one's."""
    room = Path(link.inside(""))
    assert room.is_dir()
    return room


def test_the_kernel_is_the_one_that_runs_there(sshd, made):
    kernel = made.kernel(sshd.row())
    assert (kernel.name, kernel.release, kernel.digest) == ("board", platform.release(), "")
    assert kernel.origin == "running on board"


def test_everything_of_ours_is_below_one_directory_that_goes(sshd, made, tmp_path):
    with launched(made, sshd.row(), tmp_path / "run") as vm:
        link = link_to(vm, made)
        room = room_of(link)
        assert room.stat().st_mode & 0o077 == 0
        # A daemon: it has left its session before the command ends, with which that session dies.
        leaves = "setsid sleep 1000 >/dev/null 2>&1 & until [ $(ps -o sid= $!) -eq $! ]; do :; done; echo $!"
        said, _ = output(link, "sh", "-c", f"echo $KMT_ARTIFACTS; {leaves}")
        artifacts, sleeper = said.decode().split()
        assert Path(artifacts).is_relative_to(room)
        assert not gone(int(sleeper))
    assert not room.exists()  # the next one there has the machine alone
    assert gone(int(sleeper))


def test_the_room_goes_however_often_that_side_is_told_to_end(sshd, made, tmp_path):
    with launched(made, sshd.row(), tmp_path / "run") as vm:
        link = link_to(vm, made)
        room = room_of(link)
        agent, sleeper = map(
            int, output(link, "sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $PPID $!")[0].split()
        )
        far = psutil.Process(agent).parent()
        far.suspend()  # so that both are there when it goes on
        for number in (signal.SIGTERM, signal.SIGHUP):
            far.send_signal(number)
        far.resume()
        wait_for(lambda: gone(far.pid))
    assert not room.exists()
    assert gone(agent)
    assert gone(sleeper)


def test_an_agent_that_is_stopped_does_not_stay_behind(sshd, made, tmp_path):
    with launched(made, sshd.row(), tmp_path / "run") as vm:
        link = link_to(vm, made)
        room = room_of(link)
        agent = int(output(link, "sh", "-c", "echo $PPID")[0])
        os.kill(agent, signal.SIGSTOP)
    assert gone(agent)
    assert not room.exists()


def test_a_connection_that_is_cut_is_lost_and_leaves_nothing(sshd, made, tmp_path):
    with launched(made, sshd.row(), tmp_path / "run") as vm:
        link = link_to(vm, made)
        room = room_of(link)
        link.send(Kind.EXEC, {"argv": ["sleep", "1000"], "cwd": "/", "env": {}})
        wait_for(lambda: [p for p in sshd.sessions() if p.name() == "sleep"])
        for session in [p for p in sshd.sessions() if p.name().startswith("sshd")]:
            session.kill()
        with pytest.raises(VmLostError, match="the connection to board ended"):
            link.receive(Kind.EXIT)
        assert isinstance(vm.death(), VmLostError)
    wait_for(lambda: not room.exists())


# Each with what is said, and the command that mends it.
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key": "stranger"}, r"board refuses our key \(this must work without a question: ssh -F .* board true"),
        ({"known": "empty"}, r"the host key of board is not known here \(look at it and accept it once: ssh -F"),
        ({"known": "changed"}, r"the host key of board is not the one that is known: .*ssh-keygen -R 'board'"),
        ({"port": "closed"}, r"nothing listens at board \(is its sshd running"),
        (
            {"python": "no-such-python3"},
            r"there is no no-such-python3 on board: .*no-such-python3.* \(install it there",
        ),
        ({"python": "false"}, "the agent on board ended with status 1"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_what_keeps_us_out_is_said_in_one_line(sshd, made, changes, said):
    known = sshd.room / "known", sshd.room / "changed", sshd.room / "empty"
    before = [file.read_bytes() for file in known]
    if changes.get("port"):
        changes = {"port": free_port()}
    with pytest.raises(VmNeverStartedError, match=said) as caught:
        made.kernel(sshd.row(**changes))
    assert "\n" not in str(caught.value)
    assert [file.read_bytes() for file in known] == before  # above all, no key was accepted


def test_a_jump_host_asks_nothing_either(sshd, project):
    row = sshd.row(key="user")
    jump = row.ssh_config.with_name("ssh-by-a-jump")
    unknown = f"Host jump\n    UserKnownHostsFile {sshd.room}/empty\nHost board\n    ProxyJump jump\n"
    jump.write_text(unknown + row.ssh_config.read_text())
    (project.root / "pyproject.toml").write_text('[tool.kmt]\ncatalogue = "kernels.toml"\n')
    sshd.catalogue(project.root / "kernels.toml", replace(row, ssh_config=jump))
    words = ["-m", "kmt", "exec", "board", "--", "true"]
    with pexpect.spawn(sys.executable, words, cwd=project.root, timeout=100, encoding="utf-8") as terminal:
        terminal.expect(pexpect.EOF)
    assert "Are you sure" not in terminal.before
    assert "the host key of board is not known here" in terminal.before
    assert (sshd.room / "empty").read_bytes() == b""


def test_a_file_for_this_machine_may_say_that_its_key_does_not_matter(sshd, made):
    row = sshd.row(known="changed")
    row.ssh_config.write_text(f"{row.ssh_config.read_text()}    StrictHostKeyChecking no\n")
    assert made.kernel(row).release == platform.release()


def test_a_configuration_that_ssh_cannot_read(sshd, made):
    row = sshd.row(key="broken")
    row.ssh_config.write_text("Nonsense yes\n")
    with pytest.raises(VmNeverStartedError, match="ssh cannot read its configuration for board"):
        made.kernel(row)


def test_no_room_there_for_the_agent(sshd, made, tmp_path):
    row = sshd.row(python=f"prlimit --fsize=1000 {sys.executable}")
    with launched(made, row, tmp_path / "run") as vm, pytest.raises(VmNeverStartedError, match="File too large"):
        link_to(vm, made)


def test_no_ssh_here(sshd, made, monkeypatch):
    monkeypatch.setattr(proc, "which", lambda program: None)
    with pytest.raises(VmNeverStartedError, match=r"ssh is not installed \(apt-get install openssh-client\)"):
        made.kernel(sshd.row())


def test_login_scripts_may_print_but_not_for_ever(made, tmp_path):
    for name, noise, ends in (
        ("some", "echo noise; echo kmt-far", True),
        ("flood", "yes noise | head -c 9000000", False),
    ):
        (tmp_path / name).mkdir()
        with serving(tmp_path / name, f'ForceCommand {noise}; exec sh -c "$SSH_ORIGINAL_COMMAND"') as server:
            if ends:
                assert made.kernel(server.row()).release == platform.release()
            else:
                with pytest.raises(VmNeverStartedError, match="its login scripts must be still"):
                    made.kernel(server.row())


def test_facts_may_be_long_but_not_without_end(sshd, made, tmp_path):
    packages = {f"package-{number}": "1.0" for number in range(10_000)}
    line = {"python": "3.13.5", "release": "9.9", "machine": "x", "uid": 0, "extension": ".so", "packages": packages}
    (tmp_path / "facts").write_text(f"kmt-far {json.dumps(line)}\n")
    (tmp_path / "long").write_text(f"cat {tmp_path}/facts; cat >/dev/null")
    (tmp_path / "endless").write_text("printf 'kmt-far '; yes noise | tr -d '\\n'")
    assert (tmp_path / "facts").stat().st_size > NOISE
    assert made.kernel(sshd.row(python=f"sh {tmp_path}/long")).release == "9.9"
    with pytest.raises(VmNeverStartedError, match="what board says of itself has no end"):
        made.kernel(sshd.row(python=f"sh {tmp_path}/endless"))


def test_other_rows_and_other_wishes_are_refused(sshd, made, tmp_path):
    with pytest.raises(ConfigError, match=r"6\.1 is no machine over SSH"):
        made.kernel(matrix.Row("6.1", series="6.1", suites=("bookworm",)))
    with pytest.raises(UnavailableError, match="reached over SSH at board: nothing to fetch"):
        archive.prepare(sshd.row(), config=config.load(tmp_path))
    assert made.pristine is None
    assert not made.checkpoints
    with pytest.raises(SnapshotError, match="cannot be frozen"):
        made.checkpoint(None, Deadline(1))
    with pytest.raises(SnapshotError, match="cannot be restored"):
        made.restore(None, tmp_path, Deadline(1))


def test_a_row_chooses_its_backend():
    assert backends.name_for(matrix.Row("board", ssh="board"), "qemu") == "ssh"
    assert backends.name_for(matrix.Row("6.1"), "qemu") == "qemu"


def test_a_room_that_is_no_path_is_not_believed(sshd, made, tmp_path, monkeypatch):
    with launched(made, sshd.row(), tmp_path / "run") as vm:
        link = Link(vm, Deadline(30), factor=1.0, cancel=threading.Event())
        frame = link.receive(Kind.HELLO)
        frame.body["room"] = "relative"
        monkeypatch.setattr(link, "receive", lambda *_: frame)
        with pytest.raises(AgentError, match="its room is 'relative'"):
            link.hello()


def test_nothing_that_was_compiled_there_reaches_other_guests(sshd, made, tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "project"
    root.mkdir()
    (root / "helper.py").write_text("VALUE = 1\n")
    with runs.start(["board"], []) as run, launched(made, sshd.row(), tmp_path / "run") as vm:
        settings, row = config.load(root), sshd.row()
        plan = Plan(root, "", (), {}, False, {}, modules={"helper.py": False})
        shared = Shared(settings, plan, run, Examples(root, 1), lambda _: None, lambda _: False, Expected())
        job = Job(row, made, False, (), ())
        guests = Guests(made.kernel(row), job, shared, Account(job, shared), made)
        link = guests.link(vm, Deadline(60))
        tails = link.said["bytecode"] = {"plain": ".cpython-313.pyc", "rewritten": ".cpython-313-pytest-9.2.0.pyc"}
        guests.bring(link, tmp_path)
        assert shared.bytecode.claim(tails) == [("helper.py", False)]  # left for a guest of ours
    assert not list(cache("bytecode").iterdir())


TESTS = """
    import os, pathlib, sys
    import pytest

    ROOM = pathlib.Path(os.environ["KMT_ARTIFACTS"]).parents[2] if "KMT_GUEST" in os.environ else None

    def test_runs_in_a_room(kernel):
        assert kernel.name == "board"
        assert pathlib.Path(__file__).is_relative_to(ROOM)
        assert (pathlib.Path(__file__).parent / "data.txt").read_text() == "travelled"
        pathlib.Path(os.environ["KMT_ARTIFACTS"], "seen.txt").write_text("by a test")

    def test_fails():
        assert sys.flags.optimize == 42

    @pytest.mark.pristine
    def test_wants_an_untouched_kernel(): pass

    @pytest.mark.requires(cpus=2)
    def test_elsewhere_a_machine_of_its_own(): assert os.getppid() > 1
"""


@pytest.mark.parametrize("python", [sys.executable, "/usr/bin/python3 -S"], ids=["same", "bare"])
def test_a_project_is_tested_there_and_reported_like_anywhere(sshd, project, python):
    project.write(TESTS)
    project.write("travelled", "data.txt")
    (project.root / "pyproject.toml").write_text('[tool.kmt]\ncatalogue = "kernels.toml"\n')
    sshd.catalogue(project.root / "kernels.toml", sshd.row(python=sshd.python(python)))
    done = project.run("--kernel-json=out.json", "--junitxml=out.xml", "-v", kernel="board")
    assert done.returncode == 1, done.stdout + done.stderr
    (kernel,) = json.loads((project.root / "out.json").read_text())["kernels"]
    assert (kernel["backend"], kernel["release"], kernel["accelerator"]) == ("ssh", platform.release(), "none")
    assert {t["id"].split("::")[1]: t["outcome"] for t in kernel["tests"]} == {
        "test_runs_in_a_room": "passed",
        "test_fails": "failed",
        "test_wants_an_untouched_kernel": "error",
        "test_elsewhere_a_machine_of_its_own": "passed",
    }
    assert (kernel["guests"], kernel["private_mib"]) == (1, [])
    assert "a kernel that nobody has touched, and the backend ssh has none" in done.stdout
    (seen,) = (project.root.parent / "cache").rglob("seen.txt")
    assert seen.read_text() == "by a test"
    assert 'value="ssh"' in (project.root / "out.xml").read_text()
    wait_for(lambda: not sshd.rooms())


def test_what_is_lacking_there_is_said_in_one_line(sshd, project):
    project.write("def test_one(): pass\n")
    (project.root / "pyproject.toml").write_text(
        '[tool.kmt]\ncatalogue = "kernels.toml"\nrequirements = ["no-such-thing>=1", "pluggy"]\n'
    )
    sshd.catalogue(project.root / "kernels.toml", sshd.row())
    done = project.run(kernel="board")
    assert done.returncode == 0, done.stdout
    said = [line for line in done.stdout.splitlines() if "lacks what cannot be sent there" in line]
    assert len(said) == 1
    assert said[0].endswith(": no-such-thing")


def kmt(project, *words):
    command = [sys.executable, "-m", "kmt", *words]
    return subprocess.run(
        command, cwd=project.root, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )


def test_listing_fetching_and_a_command_there(sshd, project):
    (project.root / "pyproject.toml").write_text('[tool.kmt]\ncatalogue = "kernels.toml"\n')
    (project.root / "data.txt").write_text("travelled")
    sshd.catalogue(project.root / "kernels.toml", sshd.row())
    assert "reached over SSH at board" in kmt(project, "ls").stdout
    done = kmt(project, "fetch")
    assert (done.returncode, done.stdout) == (0, "board: nothing to fetch: it runs at board\n")
    done = kmt(project, "exec", "board", "--", "sh", "-c", "pwd; cat data.txt; exit 7")
    assert done.returncode == 7, done.stderr
    where, text = done.stdout.splitlines()
    assert where.endswith(str(project.root))
    assert where != str(project.root)
    assert text == "travelled"
    name, command = dry_run(project.root, [], "", "")
    assert name == "# board"
    assert "BatchMode=yes" in command


def test_its_processes_are_few(sshd, made, tmp_path):
    # One for the room, one for the agent: what the agent starts is below it.
    with launched(made, sshd.row(), tmp_path / "run") as vm:
        link = link_to(vm, made)
        agent = psutil.Process(int(output(link, "sh", "-c", "echo $PPID")[0]))
        assert agent.children() == []
        assert [child.pid for child in agent.parent().children()] == [agent.pid]


def test_a_machine_that_answers_no_more_is_given_up(sshd, made, tmp_path):
    with launched(made, sshd.row(), tmp_path / "run") as vm:
        link = link_to(vm, made)
        link._silence = 5.0
        sessions = [p for p in sshd.sessions() if p.name().startswith("sshd")]
        for session in sessions:
            session.suspend()
        try:
            with pytest.raises(VmTimedOutError, match="silent for 5 s"):
                output(link, "true")
        finally:
            for session in sessions:
                session.resume()


def test_a_run_that_is_interrupted_leaves_nothing_there(sshd, project):
    project.write("import time, pathlib\ndef test_long():\n    pathlib.Path('begun').touch()\n    time.sleep(1000)\n")
    (project.root / "pyproject.toml").write_text('[tool.kmt]\ncatalogue = "kernels.toml"\n')
    sshd.catalogue(project.root / "kernels.toml", sshd.row())
    command = project.command("--kernel", "board")
    with subprocess.Popen(command, cwd=project.root, stdout=subprocess.PIPE, text=True) as run:
        wait_for(lambda: [room for room in sshd.rooms() if Path(f"{room}{project.root}/begun").exists()])
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    wait_for(lambda: not sshd.rooms())


def test_a_run_that_is_interrupted_at_a_terminal_was_stopped(sshd, project):
    project.write("import time, pathlib\ndef test_long():\n    pathlib.Path('begun').touch()\n    time.sleep(1000)\n")
    (project.root / "pyproject.toml").write_text('[tool.kmt]\ncatalogue = "kernels.toml"\n')
    sshd.catalogue(project.root / "kernels.toml", sshd.row())
    program, *words = project.command("--kernel", "board", "--kernel-json=out.json")
    with pexpect.spawn(program, words, cwd=project.root, timeout=100, encoding="utf-8") as terminal:
        wait_for(lambda: [room for room in sshd.rooms() if Path(f"{room}{project.root}/begun").exists()])
        terminal.sendintr()
        terminal.expect(pexpect.EOF)
    (kernel,) = json.loads((project.root / "out.json").read_text())["kernels"]
    assert (kernel["outcome"], kernel["not_run"]) == ("stopped", 1), terminal.before
    wait_for(lambda: not sshd.rooms())


def test_a_machine_that_is_lost_costs_its_own_tests_alone(sshd, project):
    project.write("def test_one(): pass\n")
    (project.root / "pyproject.toml").write_text('[tool.kmt]\ncatalogue = "kernels.toml"\n')
    sshd.catalogue(project.root / "kernels.toml", sshd.row(key="stranger"))
    done = project.run("--kernel-json=out.json", kernel="board,host")
    board, host = sorted(json.loads((project.root / "out.json").read_text())["kernels"], key=lambda k: k["name"])
    assert (done.returncode, board["outcome"], host["outcome"]) == (6, "lost", "ok")
    assert board["reason"] == "board refuses our key"
    assert "ssh-copy-id" in board["hint"]


def test_where_no_kernels_files_are_needed_that_is_said(sshd, project):
    (project.root / "pyproject.toml").write_text('[tool.kmt]\ncatalogue = "kernels.toml"\n')
    sshd.catalogue(project.root / "kernels.toml", sshd.row())
    said = ["board: no snapshot: it runs at board", "5.15-simulated: no snapshot: it is simulated"]
    assert list(snapshots.make(project.root, ["board", "5.15-simulated"])) == said
    assert fetch(project.root, ["5.15-simulated"]) == (["5.15-simulated: nothing to fetch: it is simulated"], 0)


@pytest.mark.parametrize("whole", [True, False])
def test_only_a_matrix_that_was_there_and_real_can_say_that_no_kernel_runs_a_test(sshd, project, monkeypatch, whole):
    monkeypatch.setenv("KMT_MIRROR", "file:/nonexistent")
    project.write("import pytest\n@pytest.mark.requires('flux')\ndef test_flux(kernel): pass\n")
    project.write("def pytest_kmt_probe(feature): return False if feature == 'flux' else None\n", "conftest.py")
    (project.root / "pyproject.toml").write_text('[tool.kmt]\ncatalogue = "kernels.toml"\nstrict_skips = true\n')
    catalogue = project.root / "kernels.toml"
    sshd.catalogue(catalogue, sshd.row())
    if not whole:
        with catalogue.open("a") as file:
            file.write('[[kernel]]\nname = "6.1"\nseries = "6.1"\nsuites = ["bookworm"]\ndefault = true\n')
    done = project.run("--kernel-backend=auto", kernel="default")
    assert ("skipped everywhere" in done.stdout) is whole
    assert ("6.1-simulated: simulated, for it could not be had" in done.stdout) is not whole
    assert done.returncode == int(whole), done.stdout
