"""A private sshd on a loopback port, with keys of its own: a real machine over SSH that needs no other machine.

Nothing outside its room is read or written: no keys and settings of the user, and where it runs as root, which
wants a directory in /run and a user of its own, a /run and an /etc/passwd of its own. Its package is not among those
that this project installs, for it would make the machine listen: it is unpacked.
"""

import getpass
import os
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from machines import wait_for

from kmt import proc
from kmt.matrix import Row

_SERVER = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {room}/host
AuthorizedKeysFile {room}/authorized
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
{more}
"""
_CLIENT = """\
Host *
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {room}/{key}
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {room}/{known}
    GlobalKnownHostsFile /dev/null
"""


@dataclass(frozen=True)
class Server:
    room: Path
    port: int
    pid: int

    def row(self, name="board", *, key="user", known="known", python="", port=None):
        """A row for it, whose Python is ours if it is not told; for each key, known hosts and port ssh has a file."""
        file = self.room / f"ssh-{key}-{known}-{port or self.port}"
        file.write_text(
            _CLIENT.format(port=port or self.port, user=getpass.getuser(), room=self.room, key=key, known=known)
        )
        return Row(name, ssh="board", ssh_config=file, python=python or self.python(sys.executable))

    def python(self, words):
        """What starts that Python with a directory for temporary files in which nobody else has any."""
        (self.room / "far").mkdir(exist_ok=True)
        return f"env TMPDIR={self.room}/far {words}"

    def rooms(self):
        """The directories that agents have there now."""
        return list((self.room / "far").iterdir())

    def catalogue(self, path, row):
        """Write a ``kernels.toml`` with that row."""
        path.write_text(
            f'[[kernel]]\nname = "{row.name}"\nssh = "{row.ssh}"\nssh_config = "{row.ssh_config}"\n'
            f'python = "{row.python}"\ndefault = true\n'
        )

    def sessions(self):
        """Its processes for connections, and all below them."""
        return psutil.Process(self.pid).children(recursive=True)


def new_key(path):
    """A key pair; the public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", path], check=True)
    return path.with_suffix(".pub").read_text()


def free_port():
    """A loopback port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _unpacked(room):
    """Where the package and what it needs are unpacked: those that this machine lacks."""
    (room / "debs" / "partial").mkdir(parents=True)
    options = [f"Dir::Cache::archives={room}/debs", "Debug::NoLocking=1", "APT::Sandbox::User="]
    words = ["apt-get", "-q", *(word for option in options for word in ("-o", option))]
    proc.run([*words, "--download-only", "--no-install-recommends", "-y", "install", "openssh-server"], timeout=300)
    for package in (room / "debs").glob("*.deb"):
        proc.run(["dpkg-deb", "-x", str(package), str(room / "root")])
    return room / "root"


def _command(room):
    """Its words, what its environment has besides ours, and the lines of its configuration that name its parts."""
    words, env, lines = [proc.which("sshd"), "-D", "-e", "-f", str(room / "sshd_config")], {}, ""
    if not words[0]:
        root = _unpacked(room)
        words[0] = str(root / "usr/sbin/sshd")
        env["LD_LIBRARY_PATH"] = os.pathsep.join(str(path) for path in (root / "usr/lib").glob("*-linux-gnu"))
        parts = {"SshdSessionPath": "sshd-session", "SshdAuthPath": "sshd-auth"}  # from 9.8 and 10.0 on
        places = {name: root / "usr/lib/openssh" / file for name, file in parts.items()}
        lines = "".join(f"{name} {place}\n" for name, place in places.items() if place.exists())
    if os.getuid() != 0:
        return words, env, lines
    users = Path("/etc/passwd").read_text()
    (room / "passwd").write_text(users if "\nsshd:" in users else f"{users}sshd:x:65533:65534::/run/sshd:/bin/false\n")
    begin = f"mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && mount --bind {room}/passwd /etc/passwd"
    return ["unshare", "--mount", "--", "sh", "-c", f'{begin} && exec "$@"', "sh", *words], env, lines


@contextmanager
def serving(room, more=""):
    """One that runs; ``more`` are lines for its sshd_config."""
    host = new_key(room / "host")
    (room / "authorized").write_text(new_key(room / "user"))
    new_key(room / "stranger")
    words, env, parts = _command(room)
    for _ in range(5):  # somebody else may take the port first
        port = free_port()
        (room / "sshd_config").write_text(_SERVER.format(port=port, room=room, more=parts + more))
        with (room / "sshd.log").open("ab") as log:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=log, env={**os.environ, **env})
        wait_for(lambda p=process, n=port: _listens(n) or p.poll() is not None)
        if process.poll() is None:
            break
    else:
        raise AssertionError((room / "sshd.log").read_text())
    for name, key in (("known", host), ("changed", (room / "stranger.pub").read_text()), ("empty", "")):
        (room / name).write_text(f"[127.0.0.1]:{port} {key}" if key else "")
    server = Server(room, port, process.pid)
    try:
        yield server
    finally:
        left = server.sessions()
        process.terminate()
        process.wait()
        for child in left:
            with suppress(psutil.Error):
                child.kill()
