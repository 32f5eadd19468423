"""A libvirtd of our own for the time of a session, and what commands of Vagrant have to be started with.

Laws: no libvirtd but our own is ever spoken to, no ``~/.vagrant.d`` but the cache's is ever used; all that a daemon
writes lies in a room of its own in the cache, which goes with it; it and its machines end with the session, however
that ends (a pid namespace), and what a killed one left is swept by the next.

root's libvirtd has its paths compiled in: it gets a mount namespace in which the room lies there, and so do the
commands that talk to it. Any other user's takes them from XDG variables. Boxes (``home``) are shared by all sessions.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kmt import proc
from kmt.config import Config
from kmt.errors import VmNeverStartedError
from kmt.hints import task
from kmt.paths import PACKAGE, cache

POOL = "kmt"
VAGRANTFILE = "Vagrantfile"
"""Said to each Vagrant: one of the user's (VAGRANT_VAGRANTFILE) is not meant for these machines."""
START_SECONDS = 30.0
"""What a libvirtd may take to its first answer: on a busy machine it was seen to take 6."""
ROOMS = "s"
"""Short, and so are the names in it: the paths of libvirt's sockets are made of them."""
SOCKET_LIMIT = 107
"""(unix(7)) Bytes of a socket's path."""
_LONGEST = f"domain-10-{'n' * 20}/monitor.sock"
"""libvirt takes 20 characters of a machine's name for it."""
PLACES = ("etc/libvirt", "var/lib/libvirt", "var/cache/libvirt", "var/log/libvirt", "run/libvirt")
"""What ``daemon.sh`` puts where libvirt looks."""
_QEMU_CONF = """\
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
remember_owner = 0
hugetlbfs_mount = []
"""
_AS_ROOT = 'user = "root"\ngroup = "root"\ndynamic_ownership = 0\n'
_LIBVIRTD_CONF = 'auth_unix_ro = "none"\nauth_unix_rw = "none"\n'
_LOG = "libvirtd.log"
_ALONE = {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"}
"""For root's daemon: it would register machines with systemd-machined, by process numbers of its own namespace."""
_REMOVE_SECONDS = 5.0


@dataclass(frozen=True)
class Session:
    """``[*prefix, "vagrant", ...]`` with ``env`` added to the environment talks to this session's libvirtd.

    ``room`` is the session's own directory: ``machines.json``, ``serial/NAME.log``, Vagrant's state, the daemon's.
    """

    env: dict[str, str]
    prefix: tuple[str, ...]
    uri: str
    room: Path
    daemon: subprocess.Popen[bytes]

    def check(self) -> None:
        """Raise VmNeverStartedError when the daemon has died."""
        if self.daemon.poll() is not None:
            raise dead(self.room)


def home() -> Path:
    """The VAGRANT_HOME of all sessions: boxes."""
    return cache("vagrant", "home")


@contextmanager
def libvirt(config: Config) -> Iterator[Session]:
    """A session with a running libvirtd and a storage pool, ended with the ``with``.

    Enter it from a thread that outlives it (``proc``). Raises VmNeverStartedError when something is not installed, or
    the daemon does not start.
    """
    need("vagrant", "libvirtd", "virsh", "qemu-img")
    with ExitStack() as stack:
        try:
            system = os.geteuid() == 0
            room = stack.enter_context(_room())
            _configure(room, system)
            session = _started(room, system)
        except OSError as error:
            raise VmNeverStartedError(f"libvirt cannot be started: {error}", hint=task("doctor")) from error
        try:
            _pool(session)
            yield session
        finally:
            # SIGTERM is not for pid 1, and machines are to end: --kill-child takes the namespace along.
            session.daemon.kill()
            session.daemon.wait()


def need(*programs: str) -> None:
    """Raise VmNeverStartedError that names the command which installs what is missing."""
    packages = {"vagrant": "vagrant vagrant-libvirt", "libvirtd": "libvirt-daemon-system", "virsh": "libvirt-clients"}
    for program in programs:
        if proc.which(program) is None:
            package = packages.get(program, "qemu-utils")
            raise VmNeverStartedError(
                f"{program} is not installed (the package {package.split()[0]})",
                hint=f"{task('doctor')} says how to install it",
            )


def dead(room: Path) -> VmNeverStartedError:
    """The error for a daemon that is gone, with its last words."""
    log = room / _LOG
    words = [line.split(" : ", 2)[-1] for line in log.read_text(errors="replace").splitlines()] if log.exists() else []
    said = f": {words[-1]}" if words else ""
    return VmNeverStartedError(f"libvirtd has ended{said}", hint=f"run it again; {task('doctor')} says what it needs")


def sweep() -> list[Path]:
    """Remove the rooms of sessions that were killed; those that go on hold a lock on theirs."""
    return [room for room in cache("vagrant", ROOMS).iterdir() if _abandoned(room)]


def _abandoned(room: Path) -> bool:
    try:
        lock = os.open(room, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(room)
        return True
    except OSError:
        return False
    finally:
        os.close(lock)


@contextmanager
def _room() -> Iterator[Path]:
    """A locked directory that goes away at the end."""
    rooms = cache("vagrant", ROOMS)
    # Made and locked under another lock: nobody sweeps it in between.
    with (rooms.parent / "rooms.lock").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        sweep()
        room = next(path for path in iter(lambda: rooms / secrets.token_hex(2), None) if not path.exists())
        room.mkdir(mode=0o700)
        lock = os.open(room, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield room
    finally:
        _remove(room)
        os.close(lock)


def _remove(room: Path) -> None:
    """A daemon that is dying may still write there: so until it is gone."""
    give_up = time.monotonic() + _REMOVE_SECONDS
    while True:
        shutil.rmtree(room, ignore_errors=True)
        if not room.exists() or time.monotonic() > give_up:
            return
        time.sleep(0.05)


def _configure(room: Path, system: bool) -> None:
    for name in (*PLACES, "pool", "serial", "dotfile", "c/libvirt", "cache/libvirt/qemu/log"):
        (room / name).mkdir(parents=True)
    (room / "run").chmod(0o700)
    etc = room / ("etc/libvirt" if system else "c/libvirt")
    (etc / "qemu.conf").write_text(_QEMU_CONF + (_AS_ROOT if system else ""))
    (etc / "libvirtd.conf").write_text(_LIBVIRTD_CONF)


def _environment(room: Path, system: bool) -> dict[str, str]:
    uri = "qemu:///system" if system else "qemu:///session"
    env = {
        "VAGRANT_HOME": str(home()),
        "VAGRANT_DOTFILE_PATH": str(room / "dotfile"),
        "VAGRANT_CWD": str(PACKAGE / "vms"),
        "VAGRANT_VAGRANTFILE": VAGRANTFILE,
        "VAGRANT_DEFAULT_PROVIDER": "libvirt",
        "VAGRANT_CHECKPOINT_DISABLE": "1",
        "VAGRANT_NO_COLOR": "1",
        "LIBVIRT_DEFAULT_URI": uri,
        "LIBVIRT_AUTOSTART": "0",
        "KMT_MACHINES": str(room / "machines.json"),
        "KMT_POOL": POOL,
        "KMT_PREFIX": f"kmt-{room.name}-",
    }
    if not system:
        places = {"CONFIG_HOME": "c", "CACHE_HOME": "cache", "DATA_HOME": "data", "RUNTIME_DIR": "run"}
        env |= {f"XDG_{key}": str(room / name) for key, name in places.items()}
        if len(os.fsencode(room / "c/libvirt/qemu/lib" / _LONGEST)) > SOCKET_LIMIT:
            raise VmNeverStartedError(
                f"{room} is too long a path for libvirt's sockets", hint="set KMT_CACHE to a shorter one"
            )
    return env


def _started(room: Path, system: bool) -> Session:
    env = _environment(room, system)
    user = () if system else ("--user", "--map-current-user")
    libvirtd = proc.which("libvirtd") or "libvirtd"
    pid_file = room / "libvirtd.pid"
    argv = [
        *("unshare", *user, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
        *("sh", str(PACKAGE / "vagrant" / "daemon.sh"), str(room), "system" if system else "user"),
        *(libvirtd, "--pid-file", str(pid_file)),
    ]
    with (room / _LOG).open("wb") as log:
        # The variables are the daemon's; VAGRANT_HOME and its like do it no harm.
        daemon = proc.spawn(argv, stdout=log, stderr=log, env=env | (_ALONE if system else {}), own_session=True)
    prefix = ("nsenter", f"--target={daemon.pid}", "--mount", f"--wd={room}", "--") if system else ()
    return Session(env, prefix, env["LIBVIRT_DEFAULT_URI"], room, daemon)


def _pool(session: Session) -> None:
    """The storage pool, made as soon as the daemon answers."""
    argv = [*session.prefix, "virsh", "--quiet", "pool-create-as", POOL, "dir", "--target", str(session.room / "pool")]
    # Before its socket is there, a command could meet the machine's own libvirtd.
    socket = session.room / "run/libvirt/libvirt-sock"
    give_up = time.monotonic() + START_SECONDS
    said = ""
    while time.monotonic() < give_up:
        session.check()
        if socket.exists():
            done = proc.run(argv, check=False, env=session.env, timeout=START_SECONDS, error=VmNeverStartedError)
            if done.status == 0:
                return
            said = f": {done.tail(1)}"
        with suppress(subprocess.TimeoutExpired):
            session.daemon.wait(0.05)
    raise VmNeverStartedError(f"libvirtd does not answer after {START_SECONDS:.0f} s{said}", hint=task("doctor"))
