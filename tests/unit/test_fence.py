"""The filter of system calls around a simulated kernel: run here as the kernel would, and around a process."""

import errno
import os
import struct
import subprocess
import sys

import pytest

from kmt.simulator import fence

ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
ARCHES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}


def verdict(code, number, arch):
    """What a filter answers, by the four instructions that it is made of (linux/bpf_common.h)."""
    data, at, held = struct.pack("=II", number, arch), 0, 0
    instructions = list(struct.iter_unpack("=HBBI", code))
    while True:
        kind, yes, no, value = instructions[at]
        at += 1
        if kind == 0x20:
            (held,) = struct.unpack_from("=I", data, value)
        elif kind == 0x15:
            at += yes if held == value else no
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
    assert verdict(code, min(refused), 0x40000003) == ALLOW, "another architecture's numbers mean other calls"


def test_the_numbers_are_this_machines():
    """As its own headers have them, where they are installed."""
    header = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"
    if os.uname().machine != "x86_64" or not os.path.exists(header):  # noqa: PTH110
        return
    with open(header) as file:  # noqa: PTH123
        known = dict(line.split()[1:3] for line in file if line.startswith("#define __NR_"))
    assert {name: int(known[f"__NR_{name}"]) for name in fence.CALLS} == {n: p[0] for n, p in fence.CALLS.items()}


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
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["-1", str(errno.EPERM)], done.stderr
