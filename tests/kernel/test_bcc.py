"""The second engine: BCC compiles in the guest, and what it loads answers as libbpf's objects do."""

import ctypes
import os
import struct
from pathlib import Path

import pytest

from harness.ebpf.runtime import RuntimeCompilationError
from harness.errors import BpfError, ClosedError, SettingsError, VerifierError
from harness.kernel_api import Engine, LoadOptions, MapEdit

SOURCE = Path(__file__).parents[2] / "fixtures/programs/calls.bcc.c"
PROGRAMS = (
    "kprobe_on___x64_sys_getpgid",
    "kretprobe_on___x64_sys_getpgid",
    "tracepoint_on_syscalls__sys_enter_getpgid",
)
pytestmark = pytest.mark.requires("bcc", "headers")
libc = ctypes.CDLL(None)


def options(**changed):
    return LoadOptions(constants={"PROCESS": os.getpid()}, engine=Engine.BCC, **changed)


@pytest.mark.thorough
def test_programs_in_bccs_dialect_are_compiled_counted_and_taken_off(live):
    """One test, for every load costs seconds of compiling under emulation."""
    with live.load("calls", SOURCE.read_bytes(), options()) as loaded:
        assert loaded.programs == PROGRAMS
        for program in PROGRAMS:
            loaded.attach(program)
            loaded.attach(program)  # twice attached it still runs once
        for _ in range(5):
            libc.getpgid(0)
        hits = loaded.maps["hits"]
        assert [struct.unpack("<Q", value)[0] for _, value in hits.items()] == [5, 5, 5]
        loaded.detach(PROGRAMS[0])
        libc.getpgid(0)
        assert [struct.unpack("<Q", value)[0] for _, value in hits.items()] == [5, 6, 6]
        with pytest.raises(SettingsError, match=r"no loaded program .*did you mean"):
            loaded.attach(PROGRAMS[0] + "x")
    loaded.close()
    with pytest.raises(ClosedError):
        hits.get(bytes(4))
    with pytest.raises(ClosedError):
        loaded.attach(PROGRAMS[0])


@pytest.mark.thorough
def test_what_bcc_refuses_is_said_in_a_line(live, capfd):
    with pytest.raises(RuntimeCompilationError, match=r"calls does not compile: .*error: "):
        live.load("calls", b"int kprobe_on_x(void *ctx) { return nope; }", options())
    missing = b"int kprobe_on_no_such_function(void *ctx) { return 0; }"
    with live.load("calls", missing, options()) as loaded, pytest.raises(BpfError, match="to kprobe/no_such_function"):
        loaded.attach("kprobe_on_no_such_function")
    with pytest.raises(VerifierError) as caught:
        live.load("calls", b"int kprobe_on_x(u64 *ctx) { return *(int *)0xffff0000; }", options())
    assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match="BCC has no map edits"):
        live.load("calls", b"", options(map_edits={"hits": MapEdit(max_entries=1)}))
    assert capfd.readouterr().err == ""
