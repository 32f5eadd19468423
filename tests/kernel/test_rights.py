"""Who may not load programs is told so: missing capabilities, no root, locked memory, maps and options that cannot be.

Hypothesis draws them together with the settings of the fallback chain, which ends where its table says. What a child
that gave up its rights was told comes back over a pipe. Lockdown cannot be undone, so it gets a kernel of its own.
"""

import ctypes
import json
import os
import resource
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from chain_table import TABLE, WORDS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fixtures.workloads import tcp
from harness.ebpf import core, error_telemetry
from harness.ebpf.fallback import Stage
from harness.ebpf.libbpf import BpfObject
from harness.ebpf.live import LiveKernel
from harness.ebpf.loading import load_module
from harness.ebpf.settings import BpfSettings
from harness.errors import BpfError, VerifierError
from harness.kernel_api import LoadOptions, MapEdit
from harness.telemetry import Registry
from harness.tracer import fentry, kprobe
from harness.watcher import program
from harness.watcher.watcher import Watcher

pytestmark = [pytest.mark.real, pytest.mark.thorough]

MODULE = "shared-libraries"
HOOKS = ("tracepoint__syscalls__sys_enter_openat", "tracepoint__syscalls__sys_exit_openat")
LETTERS = dict(zip("CRP", Stage, strict=True))
NOBODY = 65534
CAPABILITY_VERSION_3 = 0x20080522
CAPABILITIES = {"NET_ADMIN": 12, "SYS_ADMIN": 21, "SYS_RESOURCE": 24, "PERFMON": 38, "BPF": 39}
"""Numbers of linux/capability.h."""
SIZES = {"fits": 16, "zero": 0, "too big": (1 << 32) - 1}


@dataclass(frozen=True)
class Lot:
    """What a child is left with, and what it is to load."""

    bits: str = "1111"
    dropped: frozenset[str] = frozenset()
    nobody: bool = False
    little_memory: bool = False
    size: str = "fits"
    contradiction: bool = False

    @property
    def rights(self):
        return set() if self.nobody else CAPABILITIES.keys() - self.dropped

    @property
    def may(self):
        """As linux/capability.h has it since 5.8: CAP_SYS_ADMIN stands for the two that were made of it."""
        return "SYS_ADMIN" in self.rights or {"BPF", "PERFMON"} <= self.rights

    def has_memory(self, kernel):
        """Before 5.11 maps and programs are locked memory."""
        return not self.little_memory or "SYS_RESOURCE" in self.rights or kernel.version >= (5, 11)

    def can_load(self, kernel):
        return self.may and self.has_memory(kernel) and self.size == "fits" and not self.contradiction


LOTS = st.builds(
    Lot,
    bits=st.sampled_from(sorted(TABLE)),
    dropped=st.frozensets(st.sampled_from(sorted(CAPABILITIES))),
    nobody=st.sampled_from([False, False, False, True]),
    little_memory=st.booleans(),
    size=st.sampled_from(["fits", "fits", *SIZES]),
    contradiction=st.sampled_from([False, False, False, True]),
)
ADMIN = frozenset({"SYS_ADMIN"})


@given(LOTS)
@settings(max_examples=10)
@example(Lot())
@example(Lot(dropped=ADMIN))
@example(Lot(dropped=ADMIN | {"BPF"}))
@example(Lot(dropped=ADMIN | {"PERFMON"}))
@example(Lot(dropped=frozenset({"BPF", "PERFMON", "NET_ADMIN"})))
@example(Lot(nobody=True))
@example(Lot(little_memory=True))
@example(Lot(little_memory=True, dropped=frozenset({"SYS_RESOURCE"})))
@example(Lot(size="zero"))
@example(Lot(size="too big"))
@example(Lot(contradiction=True))
@example(Lot(bits="0100", contradiction=True))
@example(Lot(bits="1000", contradiction=True))
def test_the_chain_ends_where_the_table_says(bpf_dir, kernel, lot):
    core.reset()
    tried = TABLE[lot.bits]
    works = [letter for letter in tried if letter != "R" or kernel.headers] if lot.can_load(kernel) else []
    told = in_child(lambda: load(bpf_dir, lot), lot)
    assert told["descriptors"] == 0, "left open"
    if works:
        assert told.get("stage") == LETTERS[works[0]], told
        return
    assert "HarnessError" in told["kinds"], told
    assert told["text"].startswith(WORDS[tried[-1]]), told
    if tried[-1] == "R" and not kernel.headers:
        return
    if not lot.has_memory(kernel) and lot.size == "fits":
        assert "rlimit memlock: EPERM" in told["text"]
        assert "CAP_SYS_RESOURCE" in told["text"]
    elif not lot.may and lot.size == "fits":
        assert "it takes root, or CAP_BPF, CAP_PERFMON" in told["text"]
        assert "rlimit memlock" not in told["text"]
    elif lot.size != "fits":  # which of the two is said first is the kernel's to choose
        assert "open_at_args" in told["text"] or "it takes root" in told["text"]
    else:
        assert "VerifierError" in told["kinds"]


def load(bpf_dir, lot):
    """The winner, with everything attached for a moment."""
    names = ("enable_co_re", "enable_runtime_compiler", "allow_runtime_compiled_fallback", "allow_prebuilt_fallback")
    chosen = dict(zip(names, (bit == "1" for bit in lot.bits), strict=True))
    live = LiveKernel()

    def start(image, options):
        constants = error_telemetry.constants(error_telemetry.counted(image))
        # Events for a ring buffer, and a perf buffer to put them into.
        constants["ringbuffers_enabled"] = int(lot.contradiction)
        edits = {"open_at_args": MapEdit(max_entries=SIZES[lot.size])}
        wanted = replace(options, programs=HOOKS, constants=constants, map_edits=edits)
        with live.load(MODULE, image, wanted) as loaded:
            for name in HOOKS:
                loaded.attach(name)

    return load_module(live, BpfSettings(bpf_dir, **chosen), MODULE, start).stage


def in_child(work, lot):
    """What a child is told that has given up what ``lot`` says."""
    hear, say = os.pipe()
    pid = os.fork()
    if not pid:
        told = {}
        try:
            os.close(hear)
            give_up(lot)
            before = descriptors()
            try:
                told["stage"] = str(work())
            except BaseException as error:
                # All stages but the last one wrap what they were told.
                kinds = (*type(error).__mro__, *type(error.__cause__).__mro__)
                told |= {"kinds": [kind.__name__ for kind in kinds], "text": str(error)}
            with suppress(BaseException):
                core.reset()
            told["descriptors"] = descriptors() - before
        finally:
            os.write(say, json.dumps(told).encode())
            os._exit(0)
    os.close(say)
    with open(hear, "rb") as pipe:  # noqa: PTH123
        told = json.load(pipe)
    os.waitpid(pid, 0)
    return told


def descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def give_up(lot):
    if lot.little_memory:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 12, 1 << 12))
    if lot.nobody:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return
    kept = (1 << 64) - 1
    for name in lot.dropped:
        kept &= ~(1 << CAPABILITIES[name])
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    kept &= (1 << last + 1) - 1
    low, high = kept & 0xFFFFFFFF, kept >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())


def test_locked_memory(bpf_dir, kernel):
    """Before 5.11 maps and programs are locked memory, and the limit holds for who may not lift it; from then on they
    are the memory of a cgroup, and the limit says nothing."""
    image = (bpf_dir / f"co-re/{MODULE}.o").read_bytes()

    def loaded():
        BpfObject(MODULE, image, LoadOptions(programs=HOOKS)).close()
        return "loaded"

    told = in_child(loaded, Lot(little_memory=True, dropped=frozenset({"SYS_RESOURCE"})))
    if kernel.version >= (5, 11):
        assert told.get("stage") == "loaded", told
    else:
        assert "BpfError" in told["kinds"]
        assert "EPERM" in told["text"]
        assert "before 5.11 it also takes room in RLIMIT_MEMLOCK" in told["text"]


LOADERS = {
    "fentry": lambda live, settings: fentry.load_tracer(live, settings, fargate=lambda: True),
    "kprobe": kprobe.load_tracer,
    "watcher": program.start,
}
LACKING = [{"SYS_ADMIN", "BPF"}, {"SYS_ADMIN", "PERFMON"}, {"SYS_ADMIN", "BPF", "PERFMON"}, set(CAPABILITIES)]
CORE_ONLY = {"allow_runtime_compiled_fallback": False, "allow_prebuilt_fallback": False}


@pytest.mark.requires("btf", "fentry")
@pytest.mark.parametrize("name", LOADERS)
def test_who_gave_up_capabilities_is_told_which_it_takes(bpf_dir, name):
    """By what loads it in earnest. CAP_SYS_ADMIN alone is not missed: the two that were made of it do."""
    settings = BpfSettings(bpf_dir, **CORE_ONLY)

    def load():
        with LOADERS[name](LiveKernel(), settings):
            return "loaded"

    for dropped in LACKING:
        told = in_child(load, Lot(dropped=frozenset(dropped)))
        assert {"BpfError", "HarnessError"} <= set(told["kinds"]), told
        assert "EPERM" in told["text"]
        assert "it takes root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN" in told["text"]
        assert told["descriptors"] == 0, "left open"
    told = in_child(load, Lot(dropped=ADMIN))
    assert told == {"stage": "loaded", "descriptors": 0}


@pytest.mark.requires("btf")
def test_a_watcher_without_capabilities_says_so_and_goes_on(bpf_dir, caplog):
    """It has no program and looks at what runs; what it says is what to do."""
    settings = BpfSettings(bpf_dir, **CORE_ONLY)

    def watch():
        with Watcher(LiveKernel(), settings, [], metrics=Registry()) as watcher:
            assert watcher.program is None
        return "; ".join(record.getMessage() for record in caplog.records if record.levelname == "ERROR")

    told = in_child(watch, Lot(dropped=frozenset(CAPABILITIES)))
    assert "opens are not seen, running processes only: co-re load failed: " in told.get("stage", ""), told
    assert "it takes root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN" in told["stage"]


@pytest.mark.pristine
@pytest.mark.requires("lockdown", "btf", "fentry")
def test_a_locked_down_kernel(live, bpf_dir):
    """Integrity lets us in; confidentiality takes away the helpers that read its memory, and each tracer says so."""
    settings = BpfSettings(bpf_dir)
    state = Path("/sys/kernel/security/lockdown")
    state.write_text("integrity")
    running = kprobe.load_tracer(live, settings)
    state.write_text("confidentiality")
    for name in ("fentry", "kprobe"):
        core.reset()
        with pytest.raises(VerifierError) as caught:
            LOADERS[name](live, settings)
        assert "/sys/kernel/security/lockdown" in caught.value.hint, name
    # What runs runs on, and goes when it is to: but for its events in tracefs, which cannot be opened any more.
    tcp.exchange(3, 4)
    assert sorted(c.sent_bytes for c in running.closed(0) if c.pid == os.getpid()) == [3, 4]
    with pytest.raises(BpfError, match=r"EPERM.*a locked-down kernel refuses it"):
        running.close()
