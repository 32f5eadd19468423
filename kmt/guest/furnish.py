"""Makes a machine that is ours alone, and that another init has booted, what tests may expect of any guest.

What ``init.sh`` does for QEMU's guests, for those of Vagrant, whose boxes bring an init of their own. Laws: what is
there already stays (an init may have mounted it); what this kernel lacks is passed over, for a test that needs it says
so itself. Limits and environment are this process's and hold for all that it starts.
"""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from pathlib import Path

from . import fresh

_MOUNTS = (
    ("bpf", "/sys/fs/bpf", "mode=700"),
    ("tracefs", "/sys/kernel/tracing", ""),
    ("debugfs", "/sys/kernel/debug", ""),
    ("securityfs", "/sys/kernel/security", ""),
    ("cgroup2", "/sys/fs/cgroup", ""),
    ("tmpfs", "/dev/shm", "mode=1777"),
)
_SYSCTLS = (
    ("kernel/core_pattern", "/run/kmt/artifacts/core.%e.%p"),
    ("kernel/perf_event_paranoid", "-1"),
    ("kernel/kptr_restrict", "0"),
    ("kernel/yama/ptrace_scope", "0"),
    ("kernel/unprivileged_bpf_disabled", "0"),
    ("kernel/sysrq", "1"),
)
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
_FILES = 65536


def furnish(name: str, entropy: bytes, now: float) -> None:
    """Mount, set and name everything; ``now`` is Unix time, ``entropy`` is for a machine that may be a copy."""
    with suppress(OSError):
        fresh.add_entropy(entropy)  # before anything here draws from it
    Path("/run/kmt").mkdir(parents=True, exist_ok=True)
    for kind, target, options in _MOUNTS:
        _mount(kind, target, options)
    for key, value in _SYSCTLS:
        with suppress(OSError):
            Path("/proc/sys", key).write_text(value)
    with suppress(OSError):
        Path("/proc/sys/kernel/hostname").write_text(f"kmt-{name}"[:64])
    for limit, most in (
        (resource.RLIMIT_MEMLOCK, resource.RLIM_INFINITY),
        (resource.RLIMIT_CORE, resource.RLIM_INFINITY),
        (resource.RLIMIT_NOFILE, _FILES),
    ):
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))
    os.environ.update(_ENVIRONMENT)
    for variable in [key for key in os.environ if key.startswith(("SSH_", "SUDO_", "XDG_"))]:
        del os.environ[variable]
    with suppress(OSError):
        fresh.set_clock(now)
    os.umask(0o022)
    os.chdir("/")


def _mount(kind: str, target: str, options: str) -> None:
    """Mount it where nothing of that kind is, nor of any kind that init put there."""
    if os.path.ismount(target):
        return
    with suppress(OSError):
        Path(target).mkdir(exist_ok=True)
    ctypes.CDLL(None, use_errno=True).mount(kind.encode(), target.encode(), kind.encode(), 0, options.encode())
