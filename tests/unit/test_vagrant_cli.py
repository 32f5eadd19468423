"""The Vagrant command, by a real executable of that name on PATH where Vagrant itself cannot be made to do it."""

import os
import stat

import pytest

from kmt.deadline import Deadline
from kmt.errors import ConfigError, VmNeverStartedError, VmTimedOutError
from kmt.vagrant import boxes, cli
from kmt.vagrant.boxes import borrow
from kmt.vagrant.cli import Vagrant, check_here


@pytest.fixture
def vagrant(tmp_path, monkeypatch):
    """``vagrant(script)`` makes a command of that name that does so, and gives the object that calls it."""

    def made(script):
        file = tmp_path / "bin" / "vagrant"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{file.parent}:{os.environ['PATH']}")
        return Vagrant({"KMT_SAID": str(tmp_path / "said")})

    return made


def test_what_is_said_and_how(vagrant, tmp_path):
    made = vagrant('echo "$@" >>"$KMT_SAID"')
    made.up("6.1", Deadline(10))
    made.destroy("6.1-2", Deadline(10))
    made.save("6.1", "clean", Deadline(10))
    made.restore("6.1", "clean", Deadline(10))
    assert (tmp_path / "said").read_text().splitlines() == [
        "--machine-readable up --provider libvirt --no-provision 6.1",
        "--machine-readable destroy --force 6.1-2",
        "--machine-readable snapshot save --force 6.1 clean",
        "--machine-readable snapshot restore --no-provision 6.1 clean",
    ]


def test_what_it_answers(vagrant):
    config = r"printf '%s' '1,6.1,ssh-config,Host 6.1\n  Port 2200\n'"
    assert vagrant(config).ssh_config("6.1", Deadline(10)) == "Host 6.1\n  Port 2200\n"
    assert vagrant("echo 1,6.1,state,poweroff").state("6.1", Deadline(10)) == "off"


def test_no_file_for_ssh(vagrant):
    with pytest.raises(VmNeverStartedError, match=r"ssh-config says nothing of 6\.1 \(vagrant up 6\.1\)"):
        vagrant("true").ssh_config("6.1", Deadline(10))


def test_a_call_that_does_not_end_ends_by_the_deadline(vagrant):
    with pytest.raises(VmTimedOutError, match=r"vagrant status 6\.1 was not done within 0 s \(more time"):
        vagrant("exec sleep 1000").state("6.1", Deadline(0.3))


def test_a_failure_is_one_line_with_its_cure(vagrant):
    made = vagrant("echo '1,,error-exit,X,No space left on device'; exit 1")
    with pytest.raises(VmNeverStartedError, match=r"vagrant up .* 6\.1: the disk is full \(make room: .*clean"):
        made.up("6.1", Deadline(10))


def test_no_vagrant(monkeypatch):
    monkeypatch.setattr(cli.proc, "which", lambda program: None)
    with pytest.raises(VmNeverStartedError, match=r"^vagrant is not installed \(apt-get install vagrant vagrant-lib"):
        check_here({})


def test_another_provider_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match=r"VAGRANT_DEFAULT_PROVIDER is 'virtualbox'.*\(unset VAGRANT_DEFAULT_PROV"):
        check_here({"VAGRANT_DEFAULT_PROVIDER": "virtualbox"})


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """The user's Vagrant home with a box in it; the cache is empty."""
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VAGRANT_HOME", str(tmp_path / "theirs"))
    box = tmp_path / "theirs/boxes/me-VAGRANTSLASH-box"
    (box / "0/libvirt").mkdir(parents=True)
    (box / "0/libvirt/metadata.json").write_text('{"provider": "libvirt"}')
    (box / "0/libvirt/box.img").write_text("disk")
    return box


def contents(directory):
    return {path.relative_to(directory): path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_a_box_of_the_users_is_lent_and_not_touched(theirs):
    before = contents(theirs.parents[1])
    ours = borrow("me/box")
    assert (ours / "0/libvirt/box.img").read_text() == "disk"
    assert borrow("me/box") == ours
    assert contents(theirs.parents[1]) == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda box: None, r"there is no box me/other in .*theirs \(vagrant box add --provider libvirt me/other\)"),
        (lambda box: (box / "0/libvirt").rename(box / "0/virtualbox"), "the box me/box is none for libvirt"),
        (lambda box: (box / "0/libvirt/metadata.json").write_text("{"), "is broken: .*is no description of a box"),
        (lambda box: (box / "0/libvirt/box.img").unlink(), r"broken: .*box\.img is missing or empty \(vagrant box rem"),
        (lambda box: (box / "0/libvirt/box.img").write_text(""), "missing or empty"),
        (lambda box: (box / "0/libvirt/metadata.json").write_text('{"disks": [{"path": "a"}]}'), "libvirt/a is miss"),
    ],
    ids=["missing", "another provider", "damaged", "no disk", "empty disk", "no second disk"],
)
def test_a_box_that_will_not_do_is_told_before_a_machine_is_made(theirs, damage, said):
    damage(theirs)
    with pytest.raises(VmNeverStartedError, match=said):
        borrow("me/other" if "other in" in said else "me/box")
    assert not (boxes.home() / "boxes").exists()
