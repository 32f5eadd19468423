"""What is left of a kernel that died, opened by the tools that people use; a debugger on one that lives."""

import re
import socket
import sys
from dataclasses import replace
from pathlib import Path

import drgn
import pexpect
import pytest
from machines import ROOT, SETTINGS, guest, kernel, output, wait_for

from kmt import backends
from kmt.errors import VmPanickedError, VmTimedOutError

pytestmark = pytest.mark.host_only

PANICS = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger"


@pytest.fixture(params=[True, False], ids=["snapshot", "booted"])
def dumping(request):
    return backends.get("qemu", config=replace(SETTINGS, dump=True, snapshots=request.param))


def core_of(error):
    return Path(re.search(r"memory and registers: (\S+vmcore\S*)", error.value.hint)[1])


def read_uts(path):
    """The release as the core's own page tables lead to it, from an address that its VMCOREINFO names."""
    program = drgn.Program()
    program.set_core_dump(path)
    assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL
    described = program["VMCOREINFO"].string_().decode()
    address = int(re.search(r"^SYMBOL\(init_uts_ns\)=([0-9a-f]+)$", described, re.MULTILINE)[1], 16)
    assert f"OSRELEASE={kernel().release}\n" in described
    return program.read(address, 512)


def test_a_panic_leaves_a_core_that_drgn_opens(dumping, tmp_path):
    with pytest.raises(VmPanickedError, match="sysrq") as error, guest(tmp_path, made=dumping) as (_, link):
        output(link, "sh", "-c", PANICS)
    core = core_of(error)
    assert core.parent == tmp_path
    assert core.stat().st_mode & 0o777 == 0o600
    assert core.stat().st_blocks * 512 < core.stat().st_size, "it has holes"
    assert kernel().release.encode() in read_uts(core)


def test_a_hang_leaves_a_core_too(tmp_path):
    made = backends.get("qemu", config=replace(SETTINGS, dump=True))
    with pytest.raises(VmTimedOutError) as error, guest(tmp_path, made=made, seconds=1) as (_, link):
        output(link, "sleep", "1000")
    assert kernel().release.encode() in read_uts(core_of(error))


def test_where_no_core_can_be_written_the_panic_is_told_all_the_same(tmp_path, monkeypatch):
    made = backends.get("qemu", config=replace(SETTINGS, dump=True))
    monkeypatch.setattr("kmt.backends.qemu_dump.shutil.disk_usage", lambda _: type("Full", (), {"free": 0}))
    with pytest.raises(VmPanickedError) as error, guest(tmp_path, made=made) as (_, link):
        output(link, "sh", "-c", PANICS)
    assert "no dump could be written" in error.value.hint
    assert "no room for 512 MiB" in error.value.hint
    assert list(tmp_path.glob("vmcore*")) == []


def test_nobody_who_did_not_ask_has_a_core(tmp_path):
    with pytest.raises(VmPanickedError) as error, guest(tmp_path) as (_, link):
        output(link, "sh", "-c", PANICS)
    assert "memory" not in error.value.hint
    assert list(tmp_path.glob("vmcore*")) == []


def test_a_debugger_attaches_where_the_shell_says():
    argv = ["-m", "invoke", "kmt.shell", "6.1", "--gdb"]
    shell = pexpect.spawn(sys.executable, argv, cwd=str(ROOT), timeout=120, encoding="utf-8", dimensions=(40, 300))
    shell.expect(r"target remote (\S+)'")
    path = shell.match[1]
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(path)
        # The remote protocol: QEMU stops the guest and says so (in its own time), and lets it go on (D).
        heard(stream, rb"\$[ST]\d\d")
        stream.sendall(b"+$D#44")
        heard(stream, rb"\$OK")
    shell.sendline("echo back $((40 + 2))")
    shell.expect_exact("back 42")
    shell.sendcontrol("]")
    shell.expect(pexpect.EOF)
    wait_for(lambda: not Path(path).exists() or not _answers(path))


def heard(stream, pattern):
    """Read until the pattern has come."""
    stream.settimeout(60)
    said = b""
    while not re.search(pattern, said):
        piece = stream.recv(100)
        assert piece, said
        said += piece


def _answers(path):
    with socket.socket(socket.AF_UNIX) as stream:
        return stream.connect_ex(path) == 0
