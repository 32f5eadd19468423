"""The verifier's words made short: recorded logs (fixtures/verifier), and any text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ebpf.verifier import LONGEST, reason

LOGS = Path(__file__).parents[2] / "fixtures/verifier"
CALL = "failed = bpf_ringbuf_output(&shared_libraries, path, sizeof(*path), 0);"
WORDS = {
    "value-5.10": "invalid access to map value, value_size=8 off=16 size=8; "
    "R0 min value is outside of the allowed memory range, at: count(unread);",
    "value-7.3": "invalid access to map value, value_size=8 off=16 size=8; "
    "R0 min value is outside of the allowed memory range, at: count(unread); @ shared-libraries.bpf.c:162",
    "helper-5.10": f"cannot pass map_type 4 into func bpf_ringbuf_output#130, at: {CALL}",
    "helper-7.3": f"cannot pass map_type 4 into func bpf_ringbuf_output#130, at: {CALL} @ shared-libraries.bpf.c:138",
    "arguments-7.3": "func 'tcp_recvmsg' doesn't have 6-th argument; invalid bpf_context access off=48 size=8, "
    "at: if (copied > 0 && !(flags & MSG_PEEK)) @ tracer-fentry.bpf.c:219",
    "accept-7.3": "func 'inet_csk_accept' doesn't have 4-th argument; invalid bpf_context access off=32 size=8, "
    "at: int BPF_PROG(inet_csk_accept_exit_4, struct sock *listener, int flags, int *error, bool kern, "
    "struct sock *sk) @ tracer-fentry.bpf.c:204",
}


@pytest.mark.parametrize("name", WORDS)
def test_recorded(name):
    assert reason((LOGS / f"{name}.log").read_text()) == WORDS[name]


def test_every_recording_is_compared():
    assert {path.stem for path in LOGS.glob("*.log")} == set(WORDS)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("", "the verifier said nothing"),
        ("\0\0", "the verifier said nothing"),
        ("0: (b7) r0 = 0\nprocessed 1 insns (limit 1000000)\n", "processed 1 insns (limit 1000000)"),
        ("BPF program is too large. Processed 1000001 insn\n", "BPF program is too large. Processed 1000001 insn"),
        ("Verification failed: no reason\n", "Verification failed: no reason"),
    ],
)
def test_short_logs(log, said):
    assert reason(log) == said


@given(
    st.text()
    | st.lists(st.sampled_from([*"0123456789:;R=()", "\n", "from 1 to 2", "Verification failed:"])).map("".join)
)
def test_any_text_gives_one_line(log):
    said = reason(log)
    assert 0 < len(said) <= LONGEST
    assert len(said.splitlines()) == 1
