"""``inv`` on checkouts of a tiny project: real environments and a real pip; apt-get, sudo and id are recorders."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pexpect
import pytest

pytestmark = pytest.mark.host_only

ROOT = Path(__file__).parents[2]

PYPROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "tiny"
version = "0"
dependencies = ["invoke"]
[project.optional-dependencies]
harness = []
dev = []
[tool.setuptools]
py-modules = []
"""
TASKS = """
import os, sys
from invoke import Exit, task
@task
def where(_c): print(os.environ["KMT_CWD"], os.getcwd(), sys.argv[-1], sep="|")
@task
def fail(_c): raise Exit(code=7)
"""


def make(directory):
    (directory / "vms").mkdir(parents=True)
    shutil.copy(ROOT / "inv", directory / "inv")
    (directory / "vms/packages.txt").write_text("# nothing is needed\n")
    (directory / "pyproject.toml").write_text(PYPROJECT)
    (directory / "tasks.py").write_text(TASKS)
    return directory


def inv(checkout, *words, path=None, **more):
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
    return subprocess.run(
        [checkout / "inv", *words], capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, **more
    )


@pytest.fixture
def fresh(tmp_path):
    return make(tmp_path / "a check-out")


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A checkout that has its environment."""
    checkout = make(tmp_path_factory.mktemp("inv") / "ready one")
    done = inv(checkout, "where")
    assert done.returncode == 0, done.stderr
    return checkout


def test_the_second_time_it_does_nothing(fresh):
    first = inv(fresh, "where", cwd=fresh)
    assert first.returncode == 0, first.stderr
    assert "making .venv" in first.stderr
    begin = time.monotonic()
    second = inv(fresh, "where", cwd=fresh)
    assert (second.returncode, second.stderr, second.stdout) == (0, "", first.stdout)
    assert time.monotonic() - begin < 5


def test_it_works_from_anywhere_by_any_name(ready, tmp_path):
    link = tmp_path / "a link"
    link.symlink_to(ready / "inv")
    again = tmp_path / "again"
    again.symlink_to("a link")
    done = subprocess.run([again, "where", "--", "a  b"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split("|") == [str(tmp_path), str(ready), "a  b\n"]


def test_the_tasks_exit_status_is_its_own(ready):
    assert inv(ready, "fail").returncode == 7


@pytest.mark.parametrize("moment", ["making .venv", "installing the project"])
def test_an_interrupted_run_is_healed_by_the_next(fresh, moment):
    command = [fresh / "inv", "where"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        for line in process.stderr:
            if moment in line:
                break
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGKILL)
    done = inv(fresh, "where")
    assert done.returncode == 0, done.stderr
    assert "installing the project" in done.stderr


def test_two_at_once_share_the_work(fresh):
    both = [
        subprocess.Popen([fresh / "inv", "where"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    errors = "".join(error for _, error in said)
    assert (errors.count("installing the project"), errors.count("waiting for it")) == (1, 1)


def test_a_new_pyproject_or_a_new_place_or_a_lost_python_is_noticed(ready, tmp_path):
    def works_again(checkout):
        done = inv(checkout, "where")
        assert done.returncode == 0, done.stderr
        return done.stderr

    pyproject = ready / "pyproject.toml"
    pyproject.write_text(pyproject.read_text() + "# changed\n")
    assert "making" not in works_again(ready)
    python = ready / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/usr/bin/no-such-python")
    assert "making" in works_again(ready)
    moved = ready.rename(tmp_path / "moved here")
    assert "making" in works_again(moved)
    moved.rename(ready)
    works_again(ready)


def test_what_pip_cannot_do_is_said_and_tried_again(fresh):
    (fresh / "pyproject.toml").write_text(
        PYPROJECT.replace('"invoke"', '"invoke", "kmt-no-such-thing @ file:///nowhere"')
    )
    broken = inv(fresh, "where")
    assert broken.returncode == 6
    assert "nowhere" in broken.stderr
    assert "pip could not install" in broken.stderr
    (fresh / "pyproject.toml").write_text(PYPROJECT)
    assert inv(fresh, "where").returncode == 0


class Machine:
    """Recorders in front of the PATH: a user id, apt-get that installs the command ``widget``, sudo."""

    def __init__(self, bin_, checkout, uid, apt="exit 0"):
        self.bin, self.log = bin_, bin_.parent / "log"
        bin_.mkdir()
        self.log.touch()
        self._script("id", f"[ $1 = -u ] && echo {uid} || echo somebody")
        self._script("apt-get", f'echo "apt-get $*" >>"{self.log}"; {apt}')
        self._script("dpkg", f'echo "dpkg $*" >>"{self.log}"')
        self._script("sudo", f'echo sudo >>"{self.log}"; exec "$@"')
        (checkout / "vms/packages.txt").write_text("widget-tools  kmt-widget  turns things\nsh  sh  is there\n")
        (checkout / ".venv/.declined").unlink(missing_ok=True)

    def _script(self, name, text):
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def said(self):
        return self.log.read_text().splitlines()


INSTALL = "apt-get install -y -q --no-install-recommends widget-tools"


def test_root_installs_what_is_missing_and_only_that(ready, tmp_path):
    machine = Machine(tmp_path / "bin", ready, 0, apt=f'[ $1 != install ] || touch "{tmp_path}/bin/kmt-widget"; '
                      f'chmod +x "{tmp_path}"/bin/*')  # fmt: skip
    done = inv(ready, "where", path=machine.bin)
    assert done.returncode == 0
    assert machine.said()[-1] == INSTALL
    assert "sudo" not in machine.said()
    before = machine.said()
    assert inv(ready, "where", path=machine.bin).stderr == ""
    assert machine.said() == before


def test_root_brings_the_lists_up_to_date_when_an_install_fails(ready, tmp_path):
    machine = Machine(tmp_path / "bin", ready, 0, apt="[ $1 = update ]")
    done = inv(ready, "where", path=machine.bin)
    tail = machine.said()[machine.said().index(INSTALL) :]
    assert tail == [INSTALL, "dpkg --configure -a", "apt-get update -q", INSTALL]
    assert done.returncode == 0
    assert "kmt.doctor" in done.stderr


VAGRANT = "libvirt-daemon-system  kmt-widget  runs machines\n"


@pytest.mark.parametrize(
    ("words", "pyproject", "wanted"),
    [
        (["where"], "", False),
        (["where", "--backend", "vagrant"], "", True),
        (["where", "--backend=vagrant", "--", "x"], "", True),
        (["where", "--", "echo", "--backend", "vagrant"], "", False),
        (["where", "kmt.box"], "", False),
        (["kmt.box"], "", True),
        (["kmt.box", "--help"], "", False),
        (["--help", "kmt.box"], "", False),
        (["-h", "kmt.box"], '[tool.kmt]\nbackend = "vagrant"\n', False),
        (["where"], '[tool.kmt]\nbackend = "vagrant"\n', True),
        (["where"], "[tool.kmt]\nbackend='vagrant'\n", True),
        (["where"], '[tool.kmt]\n  backend="vagrant"\n', True),
        (["where"], '[tool.kmt]\nbackend = "qemu"\n', False),
    ],
)
def test_vagrants_packages_are_for_those_who_ask_and_no_daemon_is_left_running(
    ready, tmp_path, words, pyproject, wanted
):
    machine = Machine(tmp_path / "bin", ready, 0, apt=f'[ $1 != install ] || touch "{tmp_path}/bin/kmt-widget"; '
                      f'chmod +x "{tmp_path}"/bin/*')  # fmt: skip
    machine._script("systemctl", f'echo "systemctl $*" >>"{machine.log}"')
    (ready / "vms/packages.txt").write_text("sh  sh  is there\n")
    (ready / "vms/packages-vagrant.txt").write_text(VAGRANT)
    stamp, before = ready / ".venv/.installed", (ready / "pyproject.toml").read_text()
    made = stamp.read_text()
    (ready / "pyproject.toml").write_text(before + pyproject)
    stamp.write_text(made + pyproject)
    try:
        inv(ready, *words, path=machine.bin)
    finally:
        (ready / "pyproject.toml").write_text(before)
        stamp.write_text(made)
        (ready / "vms/packages-vagrant.txt").unlink()
    installs = [line for line in machine.said() if line.startswith("apt-get install")]
    assert [line.split()[-1] for line in installs] == ["libvirt-daemon-system"] * wanted
    assert ("systemctl disable --now libvirtd.socket" in machine.said()) is wanted


@pytest.fixture
def takes_vagrant(ready):
    (ready / "vms/packages-vagrant.txt").write_text(VAGRANT)
    yield ready
    (ready / "vms/packages-vagrant.txt").unlink()


def switched_off(machine):
    return [line.split()[-1] for line in machine.said() if line.startswith("systemctl disable --now")]


@pytest.mark.parametrize("apt", ["exit 0", "[ $1 = update ]"], ids=["all installed", "apt failed"])
def test_only_units_that_came_with_the_installation_are_switched_off_whatever_came_of_it(takes_vagrant, tmp_path, apt):
    machine = Machine(tmp_path / "bin", takes_vagrant, 0, apt=apt)
    (takes_vagrant / "vms/packages.txt").write_text("sh  sh  is there\n")
    there = "echo virtlogd.service static; echo libvirt-guests.service enabled"
    machine._script("systemctl", f'echo "systemctl $*" >>"{machine.log}"; [ $2 != list-unit-files ] || {{ {there}; }}')
    inv(takes_vagrant, "kmt.box", path=machine.bin)
    off = switched_off(machine)
    assert "libvirtd.socket" in off
    assert "virtlockd.service" in off
    assert not {"virtlogd.service", "libvirt-guests.service"} & set(off)


def test_units_are_switched_off_where_the_installation_is_interrupted(takes_vagrant, tmp_path):
    machine = Machine(tmp_path / "bin", takes_vagrant, 0, apt="[ $1 = update ] || sleep 60")
    (takes_vagrant / "vms/packages.txt").write_text("sh  sh  is there\n")
    machine._script("systemctl", f'echo "systemctl $*" >>"{machine.log}"')
    child = on_a_terminal(takes_vagrant, machine, "kmt.box")
    while not any(line.startswith("apt-get install") for line in machine.said()):
        time.sleep(0.05)
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert "libvirtd.socket" in switched_off(machine)


def test_who_is_asked_is_told_of_the_daemons(takes_vagrant, tmp_path):
    machine = Machine(tmp_path / "bin", takes_vagrant, 1000)
    child = on_a_terminal(takes_vagrant, machine, "kmt.box")
    child.expect(r"switch off \(sudo systemctl\) the daemons that libvirt brings, now\? \[Y/n\]")
    child.sendline("n")
    child.expect(pexpect.EOF)
    assert machine.said() == []


def test_without_a_terminal_nothing_is_asked(ready, tmp_path):
    machine = Machine(tmp_path / "bin", ready, 1000)
    done = inv(ready, "where", path=machine.bin)
    assert (done.returncode, machine.said()) == (0, [])
    assert "apt-get install widget-tools" in done.stderr
    assert "widget-tools: turns things" in done.stderr


def on_a_terminal(checkout, machine, *words):
    environment = {**os.environ, "PATH": f"{machine.bin}:{os.environ['PATH']}"}
    return pexpect.spawn(str(checkout / "inv"), list(words or ["where"]), env=environment, encoding="utf-8", timeout=60)


def test_on_a_terminal_it_asks_before_sudo_and_only_once(ready, tmp_path):
    machine = Machine(tmp_path / "bin", ready, 1000)
    child = on_a_terminal(ready, machine)
    child.expect("turns things")
    child.expect(r"\[Y/n\]")
    child.sendline("n")
    child.expect("going on without")
    child.expect(pexpect.EOF)
    again = on_a_terminal(ready, machine)
    assert again.expect([r"\[Y/n\]", pexpect.EOF]) == 1
    assert machine.said() == []


def test_a_yes_runs_sudo(ready, tmp_path):
    machine = Machine(tmp_path / "bin", ready, 1000)
    child = on_a_terminal(ready, machine)
    child.expect(r"\[Y/n\]")
    child.sendline("")
    child.expect(pexpect.EOF)
    assert machine.said()[-2:] == ["sudo", INSTALL]


def test_elsewhere_than_on_debian_it_names_what_is_missing(ready, tmp_path):
    machine = Machine(tmp_path / "bin", ready, 0)
    (machine.bin / "apt-get").unlink()
    for tool in ["sh", "readlink", "dirname", "cat", "cmp", "head", "sed", "flock", "tail", "ls", "env", "find", "id"]:
        if not (machine.bin / tool).exists():
            (machine.bin / tool).symlink_to(shutil.which(tool))
    done = subprocess.run([ready / "inv", "where"], env={"PATH": str(machine.bin)}, capture_output=True, text=True)
    assert done.returncode == 0
    assert "no apt-get" in done.stderr
    assert "widget-tools: turns things" in done.stderr
