"""How many processors and how much memory this process may use: affinity, cgroups of both versions, what is free.

Laws: the tightest limit of all groups from ours to the top counts; a limit that cannot be read is none; never
less than one processor. A cpuset needs no reading: the kernel narrows the affinity by it (cpuset(7)).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

_TOP = Path("/")


def processors(root: Path = _TOP) -> int:
    """Whole processors that this process may keep busy. ``root`` is where ``proc`` and ``sys`` are."""
    allowed = float(len(os.sched_getaffinity(0)))
    for group in _groups(root, "cpu"):
        allowed = min(allowed, _quota(group))
    return max(1, int(allowed))


def memory_mib(root: Path = _TOP) -> int:
    """MiB that this process may still take: what is free in the machine and in each of its groups."""
    free = float(psutil.virtual_memory().available)
    for group in _groups(root, "memory"):
        free = min(free, _room(group))
    return max(0, int(free)) >> 20


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The directories of this process's groups that have the controller, each up to the top of its hierarchy."""
    mounts = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, name = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            tops = [mounts, mounts / "unified"]
        elif controller in controllers.split(","):
            tops = [mounts / controllers, mounts / controller]
        else:
            continue
        # In a container the name may be the one outside, of which nothing is to be seen in here but the top.
        parts = [part for part in name.split("/") if part not in ("", "..")]
        for top in dict.fromkeys(tops):
            for depth in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:depth])


def _quota(group: Path) -> float:
    """Processors by the group's quota, of version 2 or 1; infinite without one."""
    words = _text(group / "cpu.max").split() or [
        _text(group / "cpu.cfs_quota_us").strip(),
        _text(group / "cpu.cfs_period_us").strip(),
    ]
    quota, period = (_number(word) for word in [*words, ""][:2])
    return quota / period if 0 < quota < float("inf") and 0 < period < float("inf") else float("inf")


def _room(group: Path) -> float:
    """Bytes that the group may still take; what it caches of files it gives back first."""
    for limit, usage, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, used = (_number(_text(group / name).strip()) for name in (limit, usage))
        if most < float("inf") and used < float("inf"):
            pairs = (line.split() for line in _text(group / "memory.stat").splitlines())
            reclaimable = next((_number(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == cached), 0.0)
            return max(0.0, most - used + min(reclaimable, used))
    return float("inf")


def _number(word: str) -> float:
    """``max``, nothing and nonsense are infinite; -1 (no quota, in version 1) stays what it is."""
    try:
        return float(int(word))
    except ValueError:
        return float("inf")


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
