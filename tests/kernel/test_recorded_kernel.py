"""The kernel is what its profile, or its neighbours' profiles and the gates, say it is."""

import json
import subprocess
import tempfile
from pathlib import Path

import pytest

from harness.ebpf.btf import SYSFS
from kmt.kernel import Kernel
from kmt.simulator import gates, inside
from kmt.simulator.agreement import asked_of
from kmt.simulator.assemble import BPFTOOL, PROBE, assemble, request
from kmt.simulator.derive import KernelFacts
from kmt.simulator.facts import Fact, Sort, recorded
from kmt.simulator.profile import recorded as profiles_of
from kmt.simulator.types import Types

pytestmark = [pytest.mark.thorough, pytest.mark.requires("btf", "root")]


@pytest.fixture(scope="module")
def seen():
    """This kernel, asked anew; its configuration is not at hand."""
    raw = SYSFS.read_bytes()
    types = Types.parse(raw)
    features = json.loads(subprocess.run([*BPFTOOL, *PROBE], check=True, capture_output=True).stdout)
    said = inside.answer(request(types))
    with tempfile.TemporaryDirectory() as empty:
        kernel = Kernel("this", said["release"], Path(empty), None, None, (), None, "", "here")
        tools = {"version": "", "libbpf_version": ""}
        return assemble(kernel, "", types, raw, said, features, tools)


def test_what_is_told_of_this_kernel_is_so(seen):
    told = KernelFacts(seen.series, profiles_of(), gates.load())
    facts = asked_of((seen, seen)) | {
        Fact(Sort.CALL, f"{kind} {helper}") for kind in seen.helpers for helper in {*seen.helpers["xdp"], "bpf_d_path"}
    }
    answers = {fact: (recorded(seen, fact), told.told(fact)) for fact in facts}
    known = {fact: pair for fact, pair in answers.items() if None not in pair}
    wrong = {str(fact): (value, str(said)) for fact, (value, said) in known.items() if value != said.value}
    assert wrong == {}, "the kernel has changed: ./inv kmt.profile records it anew"
    assert len(known) > 400


def test_a_program_that_cannot_be_attached_tells_nothing():
    """Another BTF id than a function's: no program gets as far as its helpers."""
    assert inside.callable_helpers((26, 24, 1), {"bpf_ktime_get_ns": 5}) is None
