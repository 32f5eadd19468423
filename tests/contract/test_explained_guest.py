"""A real kernel's refusal and a guest that is lost twice: retried, explained and named for what they are."""

import json
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.host_only

KERNEL = "6.12"
TESTS = """
    import time

    def test_refused():
        from bcc import BPF
        program = "BPF_HASH(m, u32, u32); int f(void *ctx) { u32 k = 0, *v = m.lookup(&k); return *v; }"
        BPF(text=program).load_func("f", BPF.KPROBE)

    def test_powers_off():
        with open("/proc/sysrq-trigger", "w") as trigger:
            trigger.write("o")
        time.sleep(60)

    def test_behind_it():
        pass
"""


def test_a_refused_program_and_a_lost_guest_are_two_causes(tmp_path):
    (tmp_path / "test_theirs.py").write_text(textwrap.dedent(TESTS))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--kernel", KERNEL, "--kernel-retries=1"]
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 400}
    done = subprocess.run([*command, "--kernel-json=results.json"], **run)
    assert done.returncode == 1, done.stdout
    (kernel,) = json.loads((tmp_path / "results.json").read_text())["kernels"]
    tests = {test["id"].split("::")[1]: test for test in kernel["tests"]}
    assert {name: test["outcome"] for name, test in tests.items()} == {
        "test_refused": "failed", "test_powers_off": "error", "test_behind_it": "error",
    }  # fmt: skip
    assert [len(test["retries"]) for test in tests.values()] == [1, 1, 1]
    assert (kernel["outcome"], kernel["guests"], kernel["recovered"]) == ("lost", 2, [])
    done = subprocess.run([sys.executable, "-m", "kmt", "explain", "results.json"], **run)
    refused, lost = done.stdout.split("\n\n")[:2]
    assert refused.startswith(f"1. verifier: the verifier refused a program: 1 test on {KERNEL}\n")
    assert "invalid mem access 'map_value_or_null'" in refused, "the verifier's own words, out of what bcc printed"
    assert lost.startswith(f"2. lost: the guest, or the way to it, was lost: 2 tests on {KERNEL}\n")
