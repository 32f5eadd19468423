"""The filter of system calls around a simulated kernel: run here as the kernel would, and around a process."""

import errno
import os
import shutil
import socket
import struct
import subprocess
import sys

import pytest

from kmt.simulator import fence

ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
ARCHES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


def verdict(code, number, arch, *arguments):
    """What a filter answers, by the five instructions that it is made of (linux/bpf_common.h)."""
    data, at, held = struct.pack("=IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments))), 0, 0
    instructions = list(struct.iter_unpack("=HBBI", code))
    while True:
        kind, yes, no, value = instructions[at]
        at += 1
        if kind == 0x20:
            (held,) = struct.unpack_from("=I", data, value)
        elif kind in (0x15, 0x35):
            at += yes if (held == value if kind == 0x15 else held >= value) else no
        else:
            assert kind == 0x06
            return value


@pytest.mark.parametrize("machine", ARCHES)
def test_just_the_calls_of_the_table_are_refused(machine):
    code, (arch, place) = fence.program(machine), ARCHES[machine]
    refused = {pair[place] for pair in fence.CALLS.values()}
    assert len(refused) == len(fence.CALLS)
    for number in range(600):
        assert verdict(code, number, arch) == (REFUSE if number in refused else ALLOW)


@pytest.mark.parametrize("machine", ARCHES)
@pytest.mark.parametrize("name", fence.CALLS)
def test_calls(machine, name):
    arch, place = ARCHES[machine]
    assert verdict(fence.program(machine), fence.CALLS[name][place], arch) == REFUSE


@pytest.mark.parametrize("name", ["mount_setattr", "open_tree", "open_tree_attr", "fsopen", "fsmount", "fspick"])
def test_no_newer_way_to_mount_is_left(name):
    """Each could make what is read only writable again, here or on a mount of its own."""
    assert name in fence.CALLS


@pytest.mark.parametrize("machine", ARCHES)
def test_other_abis_are_refused_as_a_whole(machine):
    """Their numbers mean other calls: 349 is bpf on i386, 386 on arm, 321 + 0x40000000 on x32."""
    code, (arch, _) = fence.program(machine), ARCHES[machine]
    for foreign in (0x40000003, 0x40000028, *(known for known, _ in ARCHES.values() if known != arch)):
        assert {verdict(code, number, foreign) for number in range(600)} == {REFUSE}
    x32 = {verdict(code, number + 0x40000000, arch) for number in (0, 1, 321, 512, 0x3FFFFFFF, 0xBFFFFFFF)}
    assert x32 == ({REFUSE} if machine == "x86_64" else {ALLOW})


@pytest.mark.parametrize("machine", ARCHES)
def test_of_sockets_just_the_process_connectors_is_refused(machine):
    """Else a watcher on a simulated kernel would hear of this machine's own processes."""
    code, (arch, place) = fence.program(machine), ARCHES[machine]
    for family in (0, 1, 2, 10, 16, 17):
        for protocol in (0, 6, 11, 16):
            wanted = REFUSE if (family, protocol) == (socket.AF_NETLINK, 11) else ALLOW
            for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 11, 16):
                assert verdict(code, fence.SOCKET[place], arch, family, kind, protocol) == wanted


def test_the_numbers_are_this_machines():
    """As its own headers have them, where they are installed."""
    header = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"
    if os.uname().machine != "x86_64" or not os.path.exists(header):  # noqa: PTH110
        return
    with open(header) as file:  # noqa: PTH123
        known = dict(line.split()[1:3] for line in file if line.startswith("#define __NR_"))
    young = {"open_tree_attr"}  # 6.15
    for name, (number, _) in fence.CALLS.items():
        if f"__NR_{name}" in known or name not in young:
            assert int(known[f"__NR_{name}"]) == number, name
    assert int(known["__NR_socket"]) == fence.SOCKET[0]


def test_an_unknown_machine_has_none():
    assert fence.close("riscv64") is False


def test_it_holds_for_all_that_a_process_starts():
    script = """
import ctypes, os, subprocess, sys
from kmt.simulator import fence
assert fence.close(), "this machine's calls are not known"
call = "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.syscall(%d, 0, None, 0), ctypes.get_errno())"
number = fence.CALLS["bpf"][os.uname().machine == "aarch64"]
print(subprocess.run([sys.executable, "-c", call % number], capture_output=True, text=True).stdout, end="")
from harness.processes.connector import Connector
try: Connector()
except Exception as error: print(error.message)
"""
    done = run(script)
    assert done.stdout == f"-1 {errno.EPERM}\nprocess connector: Operation not permitted\n", done.stderr


THREADS = """
import ctypes, os, queue, threading
from kmt.simulator import fence

asked, said = queue.Queue(), queue.Queue()
libc = ctypes.CDLL(None, use_errno=True)

def other():
    asked.get()
    said.put((libc.syscall(fence.CALLS["bpf"][os.uname().machine == "aarch64"], 0, None, 0), ctypes.get_errno()))

thread = threading.Thread(target=other)
thread.start()
try:
    assert fence.close() and fence.close()
finally:
    asked.put(None)
print(said.get())
thread.join()
"""


def test_it_holds_for_threads_that_were_there_before_and_may_go_up_twice():
    done = run(THREADS)
    assert done.stdout == f"(-1, {errno.EPERM})\n", done.stderr


EARLY = """
import ctypes, os
from kmt.simulator import fence
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall(fence.CALLS["adjtimex"][os.uname().machine == "aarch64"], None)  # EFAULT where it is let through
error = ctypes.get_errno()
def pytest_report_header(): return f"early: {error}"
"""


def test_it_is_up_before_a_plugin_of_the_project_is_imported(tmp_path):
    (tmp_path / "early.py").write_text(EARLY)
    words = [sys.executable, "-m", "pytest", "-p", "kmt.simulator.session", "-p", "early", "--collect-only"]
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert f"early: {errno.EPERM}\n" in done.stdout, done.stdout + done.stderr


# What is mounted.

MOUNTINFO = rb"""22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
31 22 0:27 / /sys/fs/a\040b\011c\134040\012d rw,nosuid,noatime - tmpfs tmpfs rw
32 22 0:28 / /sys/fs/e\043f\12 ro - tmpfs tmpfs rw
33 22 0:29 / /sys/fs/g\x85h\xc2\x85i rw - tmpfs tmpfs rw
"""


def test_names_of_mounts_are_read_as_they_are_written():
    said = fence.mounts(MOUNTINFO.replace(rb"\x85", b"\x85").replace(rb"\xc2", b"\xc2") + b"\n3 cut off")
    assert list(said) == [
        ("/sys", 2 | 4 | 8 | 1 << 21),
        ("/sys/fs/a b\tc\\040\nd", 2 | 1024),
        ("/sys/fs/e#f\\12", 0),
        (os.fsdecode(b"/sys/fs/g\x85h\xc2\x85i"), 0),
    ]


def run(script, *words):
    return subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60)


WRITES = """
import sys
from pathlib import Path
from kmt.errors import ConfigError
from kmt.simulator import fence
{before}
try:
    fence.read_only(sys.argv[1])
except ConfigError as error:
    print(error)
for place in sys.argv[1:]:
    try:
        Path(place, "written").touch()
        print("written")
    except OSError as error:
        print(error.strerror)
"""
UNPRIVILEGED = """
import ctypes, os, struct
if os.geteuid() == 0:  # root, and without the right to mount (CAP_SYS_ADMIN)
    header, data = struct.pack("=Ii", 0x20080522, 0), bytearray(24)
    buffer = (ctypes.c_char * 24).from_buffer(data)
    libc = ctypes.CDLL(None)
    assert libc.capget(header, buffer) == 0
    sets = [value & ~(1 << 21) for value in struct.unpack("=6I", data)]
    assert libc.capset(header, struct.pack("=6I", *sets)) == 0
"""


def test_a_place_that_stays_writable_is_an_error_and_only_that(tmp_path):
    there, inside = tmp_path / "a place", tmp_path / "a place/in it"
    inside.mkdir(parents=True)
    done = run(WRITES.format(before=UNPRIVILEGED), str(there))
    said, after, _ = done.stdout.split("\n")
    why = "unshare: Operation not permitted" if os.geteuid() == 0 else "this user may write there, and may not mount"
    assert f"{str(there)!r} stays writable: {why} (--kernel-backend qemu" in said, done.stderr
    assert after == "written"


READ_ONLY = """
import sys
from kmt.errors import ConfigError
from kmt.simulator import fence
try:
    fence.read_only(sys.argv[1])
except ConfigError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="takes root, and setpriv")
def test_what_counts_for_root_is_not_the_mode_of_a_directory(tmp_path):
    """As with /proc/sys: nobody may make a file there, and root may write to those that are."""
    tmp_path.chmod(0o555)
    rights = "--bounding-set=-sys_admin,-dac_override"
    done = subprocess.run(
        ["setpriv", rights, sys.executable, "-c", READ_ONLY, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert f"{str(tmp_path)!r} stays writable: unshare: Operation not permitted" in done.stdout, done.stderr


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="takes root, and setpriv")
@pytest.mark.skipif(bool(os.statvfs("/proc/sys").f_flag & os.ST_RDONLY), reason="/proc/sys is read only anyway")
def test_settings_of_the_kernel_that_stay_writable_are_an_error():
    words = ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", READ_ONLY, "/proc/sys"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "'/proc/sys' stays writable: unshare" in done.stdout, done.stderr


MOUNT = """
import ctypes, os
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, ctypes.c_ulong(16384 | 1 << 18), None) == 0
for place in sys.argv[{first}:]:
    assert libc.mount(b"none", os.fsencode(place), b"tmpfs", ctypes.c_ulong({flags}), None) == 0
"""
OF_ANOTHER_USER = """
assert libc.unshare(0x10000000) == 0
Path("/proc/self/uid_map").write_text("0 0 1")
"""
"""The process's user namespace is a new one, of which what was mounted before is not."""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_where_nothing_can_be_written_it_is_no_matter_that_mounting_was_refused(tmp_path):
    done = run(WRITES.format(before=MOUNT.format(first=1, flags=1) + UNPRIVILEGED), str(tmp_path))
    assert done.stdout == "Read-only file system\n", done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
@pytest.mark.parametrize("more", ["", OF_ANOTHER_USER], ids=["its own", "of another user"])
def test_whatever_is_mounted_below_is_read_only_and_elsewhere_it_is_not(tmp_path, more):
    there, elsewhere = tmp_path / "a place", tmp_path / "a places"
    inside = there / "in\\it\t\n\u2028twice"
    for directory in (inside, elsewhere):
        directory.mkdir(parents=True)
    done = run(WRITES.format(before=MOUNT.format(first=2, flags=2) + more), str(there), str(inside), str(elsewhere))
    assert done.stdout.splitlines() == ["Read-only file system"] * 2 + ["written"], done.stderr
