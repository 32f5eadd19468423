"""A session's libvirtd, the box and the Vagrantfile as a person meets it: real daemons, a real Vagrant, no machine."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from kmt import proc
from kmt.config import Config
from kmt.errors import VmNeverStartedError
from kmt.paths import LAYOUT, cache_base
from kmt.vagrant import box, daemon, machines

pytestmark = [pytest.mark.host_only, pytest.mark.vagrant]

ROOT = Path(__file__).parents[2]
SETTINGS = Config(root=ROOT)
HOLDS = """
import sys, time
from pathlib import Path
from kmt.config import Config
from kmt.vagrant import daemon
with daemon.libvirt(Config(root=Path.cwd())) as session:
    print(session.room, session.daemon.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "c"))
    return tmp_path / "c"


def virsh(session, *words):
    return proc.run([*session.prefix, "virsh", "--quiet", *words], env=session.env).stdout


def below(pid):
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def gone(pids):
    return not any(psutil.pid_exists(pid) for pid in pids)


def wait_until(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_two_sessions_have_a_daemon_and_a_pool_each_and_leave_nothing(own_cache):
    with daemon.libvirt(SETTINGS) as one, daemon.libvirt(SETTINGS) as other:
        assert one.room != other.room
        assert re.search(r"^ *kmt +active", virsh(one, "pool-list"), re.MULTILINE)
        (one.room / "pool/x.img").write_bytes(bytes(512))
        virsh(one, "pool-refresh", "kmt")
        assert "x.img" in virsh(one, "vol-list", "kmt")
        assert "x.img" not in virsh(other, "vol-list", "kmt")
        pids = below(one.daemon.pid) + below(other.daemon.pid)
        assert len(pids) > 2
    wait_until(lambda: gone(pids))
    assert list((own_cache / LAYOUT / "vagrant" / daemon.ROOMS).iterdir()) == []


def test_a_session_that_was_killed_takes_its_daemon_along_and_the_next_removes_its_room(own_cache):
    holder = subprocess.Popen([sys.executable, "-c", HOLDS], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    room, pid = holder.stdout.readline().split()
    pids = below(int(pid))
    assert daemon.sweep() == [], "it goes on"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    wait_until(lambda: gone(pids))
    assert Path(room).exists()
    assert daemon.sweep() == [Path(room)]
    assert not Path(room).exists()


def test_a_daemon_that_dies_is_an_error_that_says_so(own_cache):
    with daemon.libvirt(SETTINGS) as session:
        session.check()
        for pid in reversed(below(session.daemon.pid)):
            os.kill(pid, signal.SIGKILL)
            break
        session.daemon.wait(20)
        with pytest.raises(VmNeverStartedError, match="libvirtd has ended"):
            session.check()


def test_a_daemon_that_cannot_start_is_an_error_with_its_words(own_cache, monkeypatch):
    monkeypatch.setattr(daemon, "_QEMU_CONF", "security_driver = [\n")
    monkeypatch.setattr(daemon, "_LIBVIRTD_CONF", "no such key is known\n")
    with pytest.raises(VmNeverStartedError, match=r"libvirtd has ended: .*libvirtd\.conf"), daemon.libvirt(SETTINGS):
        pass


WITHOUT = """
import os
from pathlib import Path
from kmt.config import Config
from kmt.vagrant import daemon
with daemon.libvirt(Config(root=Path.cwd())) as session:
    inside = Path(f"/proc/{session.daemon.pid}/root")
    words = [pid.joinpath("environ").read_bytes() for pid in Path("/proc").glob("[0-9]*")
             if pid.joinpath("cmdline").read_bytes().endswith(os.fsencode(session.room / "libvirtd.pid") + b"\\0")
             and b"libvirtd" in pid.joinpath("cmdline").read_bytes().split(b"\\0")[0]]
    print(all(b"DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent" in each for each in words) and len(words))
    print(sorted(os.listdir("/run")), os.readlink("/run/link"), Path("/run/kept/a file").read_text().strip())
"""


def test_roots_daemon_makes_nothing_outside_of_its_room_and_finds_no_bus(own_cache):
    """In a /run of its own, in which libvirt has never been, with what else may be there."""
    run = (
        "mount -n -t tmpfs tmpfs /run; mkdir /run/dbus /run/kept; echo hello >'/run/kept/a file'; ln -s kept /run/link"
    )
    words = ["unshare", "--mount", "sh", "-ec", f'{run}; : >/run/x; exec "$@"', "sh", sys.executable, "-c", WITHOUT]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1", "['dbus', 'kept', 'link', 'x'] kept hello"]


def test_a_session_whose_files_cannot_be_written_is_an_error_that_says_so(own_cache, monkeypatch):
    def full(*words):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(daemon, "_configure", full)
    with pytest.raises(VmNeverStartedError, match=r"libvirt cannot be started: .*No space left"):
        daemon.libvirt(SETTINGS).__enter__()
    assert list((own_cache / LAYOUT / "vagrant" / daemon.ROOMS).iterdir()) == []


def test_an_ordinary_user_has_a_session_too(monkeypatch):
    """In a user namespace: the same files, another id."""
    with tempfile.TemporaryDirectory(prefix="k") as short:
        monkeypatch.setenv("KMT_CACHE", short)
        _as_user()


def _as_user():
    code = HOLDS.replace("time.sleep(600)", "print(session.uri, session.prefix, session.daemon.poll())")
    words = ["unshare", "--user", "--map-user=1000", "--map-group=1000", sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "qemu:///session () None"


def vagrant(*words, **environment):
    """As a person would, in vms/."""
    env = {**os.environ, "VAGRANT_CHECKPOINT_DISABLE": "1", **environment}
    return subprocess.run(
        ["vagrant", *words], cwd=ROOT / "vms", env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        timeout=300,
    )  # fmt: skip


def test_without_the_file_vagrant_says_in_one_line_what_makes_it(tmp_path):
    done = vagrant("status", KMT_CACHE=str(tmp_path), VAGRANT_HOME=str(tmp_path / "home"))
    assert done.returncode == 1
    missing = f"{tmp_path}/{LAYOUT}/vagrant/machines.json is missing"
    assert done.stderr.splitlines()[-1] == f"{missing}; make it and the box: ./inv kmt.box, or python -m kmt box"


def test_the_vagrantfile_looks_where_the_file_is_written(tmp_path, monkeypatch):
    for variables in ({"KMT_CACHE": str(tmp_path / "a")}, {"KMT_CACHE": "", "XDG_CACHE_HOME": str(tmp_path / "b")}):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        room = machines.people()
        assert room.is_relative_to(cache_base())
        (room / machines.FILE).write_text(json.dumps({"machines": {"9.9": {"port": 1, "box": "their/box"}}}))
        done = vagrant("status", VAGRANT_HOME=str(tmp_path / "h"), VAGRANT_DOTFILE_PATH=str(tmp_path / "dot"))
        assert "9.9 " in done.stdout, done.stderr


def test_the_box_is_made_and_added_once(own_cache, tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    (tree / "usr").mkdir(parents=True)
    (tree / "usr/file").write_text("content\n" * 1000)
    root = daemon.cache("images") / "abc.erofs"
    box.rootfs.pack(tree, root)
    monkeypatch.setattr(box.image, "ensure", lambda config, progress: root)
    made = box.ensure_box(SETTINGS)
    disk = box.installed(made)
    proc.run(["qemu-img", "check", disk])
    before = (disk.stat().st_ino, made.path.stat().st_ino)
    assert box.ensure_box(SETTINGS) == made
    assert (disk.stat().st_ino, made.path.stat().st_ino) == before

    other = root.with_name("def.erofs")
    other.write_bytes(root.read_bytes())
    monkeypatch.setattr(box.image, "ensure", lambda config, progress: other)
    os.utime(made.path, (0, 0))
    newer = box.ensure_box(SETTINGS)
    assert newer.name != made.name
    assert box.installed(newer).is_file()
    assert not made.path.exists(), "nobody has used it for a day"
    assert not disk.exists()


def test_a_part_of_a_box_is_added_again_and_no_box_of_the_users_is_removed(own_cache, tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    tree.mkdir()
    root = daemon.cache("images") / "abc.erofs"
    box.rootfs.pack(tree, root)
    monkeypatch.setattr(box.image, "ensure", lambda config, progress: root)
    theirs = tmp_path / "theirs"
    (theirs / "0/libvirt").mkdir(parents=True)
    (theirs / "0/libvirt/box.img").touch()
    boxes = daemon.home() / "boxes"
    boxes.mkdir()
    for name in ("kmt-anything", f"kmt-{'0' * 16}"):
        (boxes / name).symlink_to(theirs)
    ours = boxes / f"kmt-{'1' * 16}"
    (ours / "0/libvirt").mkdir(parents=True)
    (boxes / "kmt-mine").mkdir()
    made = box.ensure_box(SETTINGS)
    assert (theirs / "0/libvirt/box.img").exists()
    assert sorted(path.name for path in boxes.iterdir()) == sorted(
        ["kmt-anything", f"kmt-{'0' * 16}", "kmt-mine", made.name]
    )
    box.installed(made).with_name("metadata.json").unlink()
    assert not box.is_installed(made)
    box.ensure_box(SETTINGS)
    assert box.is_installed(made)


def test_a_broken_box_is_an_error_that_names_the_file(own_cache, monkeypatch):
    root = daemon.cache("images") / "abc.erofs"
    root.touch()
    monkeypatch.setattr(box.image, "ensure", lambda config, progress: root)
    broken = box.named(root)
    broken.path.parent.mkdir(parents=True)
    broken.path.write_bytes(b"no tar")
    with pytest.raises(
        box.ImageError, match=r"does not take the box .*kmt-\w+\.box(.|\n)*Unrecognized archive(.|\n)*\(rm /"
    ):
        box.ensure_box(SETTINGS)


FULL = """
from pathlib import Path
from kmt.config import Config
from kmt.vagrant import box, daemon
root = daemon.cache("images") / "abc.erofs"
box.rootfs.pack(Path("{tree}"), root)
box.image.ensure = lambda config, progress: root
box.ensure_box(Config(root=Path.cwd()))
"""


def test_a_full_disk_is_an_error_that_says_what_to_do(own_cache, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(3_000_000))
    own_cache.mkdir()
    words = ["sh", "-c", 'mount -t tmpfs -o size=8m tmpfs "$KMT_CACHE" && exec "$@"', "sh"]
    words += [sys.executable, "-c", FULL.format(tree=tree)]
    done = subprocess.run(["unshare", "--mount", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert re.search(r"ImageError: the box could not be made(.|\n)*No space left(.|\n)*KMT_CACHE", done.stderr), (
        done.stderr
    )
