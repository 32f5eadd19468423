"""A real, signed apt repository of tiny kernels, made on the spot and served on the loopback interface."""

import gzip
import hashlib
import io
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
import threading
import time
from email.utils import formatdate
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def image(release, *, magic=b"HdrS"):
    """A file that is a bzImage as far as its header goes."""
    data = bytearray(0x3000)
    data[0x202:0x206] = magic
    struct.pack_into("<HxxxxxxH", data, 0x206, 0x20F, 0x2000 - 0x200)
    struct.pack_into("<H", data, 0x236, 1)
    text = f"{release} (who@where)\0".encode()
    data[0x2000 : 0x2000 + len(text)] = text
    return bytes(data)


def deb(name, version, arch, members, depends=""):
    """The bytes of a package. ``members``: path to bytes, or to a string: a symbolic link's text."""
    control = f"Package: {name}\nVersion: {version}\nArchitecture: {arch}\nMaintainer: x <x@x>\nDescription: x\n"
    control += f"Depends: {depends}\n" if depends else ""
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": _tar({"./control": control.encode()}),
        "data.tar.gz": _tar(members),
    }
    out = b"!<arch>\n"
    for part, data in parts.items():
        out += f"{part:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return out


def _tar(members):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, content in members.items():
            member = tarfile.TarInfo(path)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue(), mtime=0)


class Key:
    """A throw-away OpenPGP key in a home of its own; gpg-agent's socket wants a short path."""

    def __init__(self):
        self.home = Path(tempfile.mkdtemp(prefix="kmt-gpg-"))
        self._gpg("--passphrase", "", "--quick-gen-key", "kmt tests", "ed25519", "sign", "1d")
        self.public = self.home / "public.gpg"
        self.public.write_bytes(self._gpg("--export"))

    def sign(self, text):
        return self._gpg("--clearsign", stdin=text.encode())

    def _gpg(self, *words, stdin=b""):
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", *words]
        return subprocess.run(argv, input=stdin, check=True, stdout=subprocess.PIPE).stdout

    def close(self):
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False)
        shutil.rmtree(self.home, ignore_errors=True)


class Repository:
    """One archive: packages added, then published under suites, signed with the key."""

    def __init__(self, root, key):
        self.root, self.key = root, key
        self.suites = {}
        self._published = 0

    def add(self, suite, name, version="1-1", *, arch="amd64", members=None, depends="", **claims):
        """Add a package; ``claims`` overrule what the index says of it (Size, SHA256, Installed-Size, ...)."""
        data = deb(name, version, arch, members or {}, depends)
        path = f"pool/{name}_{version}_{arch}.deb"
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(data)
        paragraph = {
            "Package": name,
            "Version": version,
            "Architecture": arch,
            "Depends": depends,
            "Installed-Size": "20",
            "Filename": path,
            "Size": str(len(data)),
            "SHA256": hashlib.sha256(data).hexdigest(),
        } | {key.replace("_", "-"): value for key, value in claims.items()}
        self.suites.setdefault(suite, {})[name, version, arch] = paragraph
        return self.root / path

    def kernel(self, suite, release, version="1-1", *, headers=True, arch="amd64", vmlinuz=None, extra=None, **claims):
        """A kernel in one package, with its headers in two more; gives the image package's path in the pool."""
        members = {
            f"./boot/vmlinuz-{release}": vmlinuz if vmlinuz is not None else image(release),
            f"./boot/config-{release}": b"CONFIG_BPF=y\n",
            f"./lib/modules/{release}/modules.order": b"",
            f"./lib/modules/{release}/modules.builtin": b"kernel/net/unix.ko\n",
        } | (extra or {})
        if headers:
            self.headers(suite, release, version)
        return self.add(suite, f"linux-image-{release}", version, arch=arch, members=members, depends="kmod", **claims)

    def headers(self, suite, release, version="1-1"):
        common = f"{release}-common"
        self.add(
            suite,
            f"linux-headers-{release}",
            version,
            members={
                f"./usr/src/linux-headers-{release}/.config": b"x",
                f"./lib/modules/{release}/build": f"/usr/src/linux-headers-{release}",
            },
            depends=f"linux-headers-{common} (= {version}), linux-kbuild",
        )
        members = {f"./usr/src/linux-headers-{common}/include/x.h": b"// x\n"}
        self.add(suite, f"linux-headers-{common}", version, arch="all", members=members)

    def split_kernel(self, suite, release, version="1-1"):
        """A kernel in the shape that Debian has from 6.19 on."""
        parts = {
            "base": {f"./usr/lib/modules/{release}/config": b"CONFIG_BPF=y\n"},
            "binary": {f"./usr/lib/modules/{release}/vmlinuz": image(release)},
            "modules": {f"./usr/lib/modules/{release}/modules.order": b""},
        }
        for role, members in parts.items():
            self.add(suite, f"linux-{role}-{release}", version, members=members)
        self.add(suite, f"linux-image-{release}", version, depends=", ".join(f"linux-{r}-{release}" for r in parts))

    def remove(self, suite, prefix):
        """Take packages out of a suite and out of the pool."""
        for key in [k for k in self.suites[suite] if k[0].startswith(prefix)]:
            (self.root / self.suites[suite].pop(key)["Filename"]).unlink()

    def publish(self, *, signed=True, arch="amd64"):
        """Write and sign the indexes of all suites."""
        for suite, paragraphs in self.suites.items():
            text = "\n".join("".join(f"{k}: {v}\n" for k, v in p.items() if v) for p in paragraphs.values())
            dists = self.root / "dists" / suite
            packages = dists / "main" / f"binary-{arch}" / "Packages"
            packages.parent.mkdir(parents=True, exist_ok=True)
            packages.write_text(text)
            digest = hashlib.sha256(text.encode()).hexdigest()
            release = (
                f"Origin: Tests\nSuite: {suite}\nCodename: {suite}\nDate: {formatdate(usegmt=True)}\n"
                f"Architectures: {arch} all\nNo-Support-for-Architecture-all: Packages\nComponents: main\nSHA256:\n"
                f" {digest} {len(text)} main/binary-{arch}/Packages\n"
            )
            for old in ("InRelease", "Release"):
                (dists / old).unlink(missing_ok=True)
            if signed:
                (dists / "InRelease").write_bytes(self.key.sign(release))
            else:
                (dists / "Release").write_text(release)
            # apt asks "changed since?" in whole seconds
            self._published += 1
            stamp = time.time() + self._published
            for path in dists.rglob("*"):
                os.utime(path, (stamp, stamp))


class Server:
    """Serves a directory over HTTP on the loopback interface; ``asked`` are the paths of all requests so far.

    ``stall``: requests whose path holds this text get their headers and half their bytes, then nothing more.
    ``broken``: requests whose path holds this text get a 503.
    """

    def __init__(self, root):
        self.asked = []
        self.stall = self.broken = ""
        self._ending = threading.Event()
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=str(root))

            def do_GET(self):
                outer.asked.append(self.path)
                if outer.broken and outer.broken in self.path:
                    self.send_error(503)
                elif outer.stall and outer.stall in self.path:
                    data = Path(self.translate_path(self.path)).read_bytes()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    outer._ending.wait(60)
                else:
                    super().do_GET()

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.uri = f"http://127.0.0.1:{self._server.server_port}"

    def packages_asked(self):
        return sorted(path.rpartition("/")[2] for path in self.asked if path.endswith(".deb"))

    def close(self):
        self._ending.set()
        self._server.shutdown()
        self._server.server_close()
