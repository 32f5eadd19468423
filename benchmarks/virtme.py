"""virtme-ng as a peer to measure against: installed from PyPI into the cache, run on a kernel of ours.

It runs with its own defaults but for the CPU model, which is one on which emulated kernels do not panic (see
``kmt/backends/qemu_args.py``). With ``ninep`` the root is shared by 9p: by default it is by virtiofs, and with QEMU
7.2's virtiofsd that takes some three seconds more. It needs the generic flavour of a kernel: the cloud one has no 9p.
"""

import os
import sys
from pathlib import Path

from kmt import paths, proc
from kmt.boot import disks
from kmt.errors import KmtError

VERSION = "1.42"
SAFE = """#!/bin/sh
# QEMU with a processor that emulation gets right.
for word do
    shift
    case $word in max | max,*) word=max,-cx16,la57=off ;; esac
    set -- "$@" "$word"
done
exec qemu-system-x86_64 "$@"
"""


class Virtme:
    """virtme-ng on one kernel. ``run`` gives what a command printed; ``python`` is its interpreter, with pytest."""

    def __init__(self, kernel, accelerator, *, ninep):
        home = paths.cache("bench", f"virtme-{VERSION}")
        self._bin = home / "venv" / "bin"
        self.python = self._bin / "python"
        with paths.locked("bench"):
            self._install(home)
        self._path = f"{home}:{self._bin}"
        # --verbose: without a terminal it prints nothing else.
        share = ["--force-9p"] if ninep else []
        self._argv = [self._bin / "vng", *share, "--memory", "1G", "--verbose", "--run", kernel.vmlinuz]
        if accelerator == "tcg":
            self._argv += ["--disable-kvm", "--qemu", home / "qemu"]

    def _install(self, home):
        if not (home / "whole").exists():
            proc.run([sys.executable, "-m", "venv", home / "venv"])
            wanted = [f"virtme-ng=={VERSION}", "pytest", "hypothesis"]
            proc.run([self.python, "-m", "pip", "install", "--quiet", *wanted], timeout=600)
            for name, content in (("busybox", disks.busybox()), ("qemu", SAFE.encode())):
                (home / name).write_bytes(content)
                (home / name).chmod(0o755)
            (home / "whole").touch()

    def run(self, command, cwd: Path, expected: str):
        """Run one command in a guest; KmtError when ``expected`` is not in what it printed."""
        env = {"PATH": f"{self._path}:{os.environ['PATH']}"}
        done = proc.run([*self._argv, "--", *command], cwd=cwd, env=env, timeout=600, check=False)
        if expected not in done.stdout + done.stderr:
            raise KmtError(f"virtme-ng did not print {expected!r}:\n{done.tail(20)}")
