"""Which helpers are for programs under the GPL only: each kernel is asked, and so is what simulates it."""

import errno
import resource
from pathlib import Path

import pytest

from harness.ebpf.btf import SYSFS
from harness.errors import VerifierError
from harness.kernel_api import LoadOptions
from kmt.simulator import inside, objects
from kmt.simulator.kernel import SimulatedKernel
from kmt.simulator.profile import recorded
from kmt.simulator.types import Kind, Types
from kmt.simulator.uapi import HELPERS, gpl, gpl_only

pytestmark = [pytest.mark.thorough, pytest.mark.real, pytest.mark.requires("btf", "root")]

PLAIN = {"kprobe": 2, "sched_cls": 3, "xdp": 6, "perf_event": 7}
"""``enum bpf_prog_type``: types that lend all of them but a handful, and want no function to be attached to."""
LSM, LSM_MAC = 29, 27
RESTRICTED = "cannot call GPL-restricted function from non-GPL compatible program"
LICENCES = ("", "BSD", "Proprietary", "GPL v3", "gpl", "GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL")


@pytest.fixture(scope="module", autouse=True)
def _memory():
    """Before 5.11 programs count against it."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture(scope="module")
def types():
    return Types.parse(SYSFS.read_bytes())


def function(types, name):
    """Its number in the kernel's BTF; 0 where it has none."""
    return next((i for i in types.named(name) if types.kind(i) == Kind.FUNC), 0)


def test_the_same_helpers_are_for_the_gpl_only(kernel):
    asked = 0
    for kind, program in PLAIN.items():
        for number, name in enumerate(HELPERS[1:], 1):
            said = inside.load(program, 0, 0, number, licence=b"BSD")
            if not inside.absent(said):
                asked += RESTRICTED in said
                assert (RESTRICTED in said) is gpl_only(name, kind, kernel.version[:2]), (kind, name, said)
    assert asked > 40


@pytest.mark.parametrize("licence", LICENCES)
def test_the_same_words_stand_for_it(licence):
    said = inside.load(PLAIN["kprobe"], 0, 0, HELPERS.index("get_current_task"), licence=licence.encode())
    assert (RESTRICTED in said) is (not gpl(licence))


def test_programs_of_security_modules_must_be_under_it(types):
    hook = function(types, "bpf_lsm_file_open")
    if hook:
        said = inside.load(LSM, LSM_MAC, hook, HELPERS.index("get_current_pid_tgid"), licence=b"BSD")
        assert said.splitlines()[0] == "LSM programs must have a GPL compatible license"
        assert "license" not in inside.load(LSM, LSM_MAC, hook, HELPERS.index("get_current_pid_tgid"))


def test_both_refuse_the_same_program_in_the_same_words(live, bpf_dir, types):
    image = (bpf_dir / "co-re/shared-libraries.o").read_bytes()
    licence = objects.elf.contents(image)["license"]
    other = image.replace(licence, b"BSD".ljust(len(licence), b"\0"))
    profile = recorded()[".".join(live.release.split(".")[:2])]
    simulated = SimulatedKernel(profile, types=types, proc_root=Path("/proc"), cpus=live.cpus)
    programs = ["tracepoint__syscalls__sys_enter_openat"]
    live.lift_memory_limit()
    for kernel in (live, simulated):
        kernel.load("shared-libraries", image, LoadOptions(programs)).close()
        with pytest.raises(VerifierError) as caught:
            kernel.load("shared-libraries", other, LoadOptions(programs))
        assert (caught.value.program, caught.value.code) == (programs[0], errno.EINVAL)
        assert RESTRICTED in caught.value.log
