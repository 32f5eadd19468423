"""The file that the Vagrantfile reads, and what a session is made of: no Vagrant, no libvirt, no kernel."""

import json
import socket
from pathlib import Path

import pytest

from kmt.backends.base import Machine
from kmt.errors import VmNeverStartedError
from kmt.vagrant import box, daemon, machines


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))


def write(room, name, *, accelerator="tcg", **machine):
    return machines.entry(room, name, kernel=None, box="their/box", machine=Machine(**machine), accelerator=accelerator)


def test_a_machine_keeps_its_port_and_no_two_have_one(tmp_path):
    first, second = write(tmp_path, "6.1"), write(tmp_path, "6.12")
    assert first.port != second.port
    again = write(tmp_path, "6.1", memory_mib=2048)
    assert (again.port, again.serial) == (first.port, first.serial)
    assert again.key != first.key, "another machine, so one that was made before is stale"
    assert write(tmp_path, "6.12").key == second.key
    written = json.loads((tmp_path / "machines.json").read_text())["machines"]
    assert {name: about["port"] for name, about in written.items()} == {"6.1": first.port, "6.12": second.port}


def test_a_machine_that_left_the_file_gives_its_port_back(tmp_path):
    write(tmp_path, "6.1")
    write(tmp_path, "6.12")
    machines.keep_only(tmp_path, {"6.12"})
    assert list(machines.read(tmp_path / "machines.json")) == ["6.12"]


def test_a_port_is_of_loopback_and_free():
    port = machines.free_port(set())
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", port))
    assert machines.free_port({port}) != port


@pytest.mark.parametrize("text", ["", "{", "[]", '{"machines": 1}', '{"machines": {"6.1": {}}}', "\x00"])
def test_a_file_that_is_damaged_is_written_anew(tmp_path, text):
    (tmp_path / "machines.json").write_text(text)
    assert machines.read(tmp_path / "machines.json") == {}
    write(tmp_path, "6.1")
    assert list(machines.read(tmp_path / "machines.json")) == ["6.1"]


def test_several_processors_take_hardware_virtualisation(tmp_path):
    assert write(tmp_path, "6.1", accelerator="kvm", cpus=2).port
    with pytest.raises(VmNeverStartedError, match=r"2 processors.*--kernel-backend qemu"):
        write(tmp_path, "6.1", cpus=2)


def test_another_image_is_another_box():
    one, other = box.named(Path("/c/v1/images/aa.erofs")), box.named(Path("/c/v1/images/bb.erofs"))
    assert one.name != other.name
    assert one == box.named(Path("/c/v1/images/aa.erofs"))
    assert one.path == Path(f"/c/v1/vagrant/boxes/{one.name}.box")


@pytest.mark.parametrize("program", ["vagrant", "libvirtd", "virsh", "qemu-img"])
def test_what_is_not_installed_is_named_with_its_package(monkeypatch, program):
    monkeypatch.setattr(daemon.proc, "which", lambda name: None if name == program else f"/bin/{name}")
    with pytest.raises(VmNeverStartedError, match=rf"{program} is not installed.*package.*kmt.doctor"):
        daemon.need("vagrant", "libvirtd", "virsh", "qemu-img")


def test_a_user_whose_sockets_would_have_too_long_a_path_is_told(tmp_path):
    room = tmp_path / ("d" * 100)
    with pytest.raises(VmNeverStartedError, match=r"too long a path.*KMT_CACHE"):
        daemon._environment(room, system=False)
    assert daemon._environment(room, system=True)["LIBVIRT_DEFAULT_URI"] == "qemu:///system"
    usual = Path("/home/somebody/.cache/kmt/v1/vagrant") / daemon.ROOMS / "0123"
    assert daemon._environment(usual, system=False)["XDG_RUNTIME_DIR"] == f"{usual}/run"


def test_the_last_words_of_a_daemon_are_in_its_error(tmp_path):
    (tmp_path / "libvirtd.log").write_text("2026-01-01 00:00: 12: error : virSomething:9 : no more of this\n")
    assert "libvirtd has ended: no more of this" in str(daemon.dead(tmp_path))
    assert "libvirtd has ended" in str(daemon.dead(tmp_path / "nowhere"))
