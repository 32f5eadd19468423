"""What this process may use, read from trees of proc and cgroup files as kernels lay them out."""

import os
import subprocess
import sys

import pytest

from kmt.run import limits

GIB = 1 << 30


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """``tree({path: text})`` writes files below a root of its own, on a machine with 8 processors and 16 GiB."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 16 * GIB}))

    def write(files):
        for path, text in files.items():
            target = tmp_path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(str(text))
        return tmp_path

    return write


V2 = {"proc/self/cgroup": "0::/user/job\n"}
V1 = {"proc/self/cgroup": "9:name=systemd:/\n4:memory:/box\n3:cpuset:/\n1:cpu,cpuacct:/box\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 8),
        (V2, 8),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "max 100000\n"}, 8),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "250000 100000\n"}, 2),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "20000 100000\n"}, 1),
        (V2 | {"sys/fs/cgroup/user/cpu.max": "300000 100000\n", "sys/fs/cgroup/user/job/cpu.max": "max 100000"}, 3),
        (V1 | {"sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": -1,
               "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": 100000}, 8),
        (V1 | {"sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": 400000, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": 100000}, 4),
        # In a container: the name is the one outside, the limit is at the top of what is seen.
        (V2 | {"sys/fs/cgroup/cpu.max": "500000 100000\n"}, 5),
        ({"proc/self/cgroup": "0::/../../other\n", "sys/fs/cgroup/cpu.max": "500000 100000\n"}, 5),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "nonsense\n"}, 8),
        (V2 | {"sys/fs/cgroup/user/job/cpu.max": "0 0\n"}, 8),
        ({"proc/self/cgroup": "nonsense\n::::\n"}, 8),
    ],
)  # fmt: skip
def test_processors(tree, files, wanted):
    assert limits.processors(tree(files)) == wanted


def memory(group, limit, usage, cached):
    return {f"{group}/memory.max": limit, f"{group}/memory.current": usage, f"{group}/memory.stat": cached}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 16 * 1024),
        (V2 | memory("sys/fs/cgroup/user/job", "max\n", GIB, ""), 16 * 1024),
        (V2 | memory("sys/fs/cgroup/user/job", 4 * GIB, GIB, ""), 3 * 1024),
        (V2 | memory("sys/fs/cgroup/user/job", 4 * GIB, GIB, f"anon 1\ninactive_file {GIB // 2}\n"), 3584),
        (V2 | memory("sys/fs/cgroup/user", 4 * GIB, 3 * GIB, "")
            | memory("sys/fs/cgroup/user/job", 4 * GIB, GIB, ""), 1024),
        (V2 | memory("sys/fs/cgroup", 2 * GIB, GIB, "bad\n"), 1024),
        (V2 | memory("sys/fs/cgroup", GIB, 2 * GIB, ""), 0),
        (V1 | {"sys/fs/cgroup/memory/box/memory.limit_in_bytes": 4 * GIB,
               "sys/fs/cgroup/memory/box/memory.usage_in_bytes": 2 * GIB,
               "sys/fs/cgroup/memory/box/memory.stat": f"total_inactive_file {GIB}\n"}, 3 * 1024),
        (V1 | {"sys/fs/cgroup/memory/box/memory.limit_in_bytes": 9223372036854771712,
               "sys/fs/cgroup/memory/box/memory.usage_in_bytes": GIB}, 16 * 1024),
    ],
)  # fmt: skip
def test_memory(tree, files, wanted):
    assert limits.memory_mib(tree(files)) == wanted


def test_an_affinity_is_respected_on_this_machine():
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from kmt.run import limits; print(limits.processors())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"
    assert limits.memory_mib() > 0
