"""Locked memory: a limit that may not be lifted matters where a load is refused for it, which kernels do before 5.11.

(The same on real kernels: tests/kernel/test_rights.py.)
"""

import errno
import resource

import pytest

from harness.ebpf import live
from harness.errors import BpfError, VerifierError
from harness.kernel_api import LoadOptions

OLD, NEW = "0000000000000000 T tcp_close\n", "0000000000000000 T bpf_ktime_get_coarse_ns\n"
REFUSED = BpfError("loading object x", errno.EPERM)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads into a kernel with these symbols (None: unreadable) that refuses with that error."""

    def loading(symbols, error, *, may_lift=False):
        def refuse(*_):
            raise error

        def setrlimit(*_):
            if not may_lift:
                raise ValueError("not allowed to raise maximum limit")

        monkeypatch.setattr(live, "BpfObject", refuse)
        monkeypatch.setattr(resource, "setrlimit", setrlimit)
        if symbols is not None:
            (tmp_path / "kallsyms").write_text(symbols)
        kernel = live.LiveKernel(proc=tmp_path)
        kernel.lift_memory_limit()  # no error yet
        with pytest.raises(BpfError) as caught:
            kernel.load("x", b"", LoadOptions())
        return caught.value

    return loading


@pytest.mark.parametrize("symbols", [OLD, None], ids=["old", "unknown"])
def test_what_may_be_refused_for_the_limit_says_so(load, symbols):
    told = load(symbols, REFUSED)
    assert str(told).startswith("rlimit memlock: EPERM (Operation not permitted): not allowed to raise maximum limit; ")
    assert "loading object x: EPERM" in str(told)
    assert told.hint.startswith("it takes root, or CAP_SYS_RESOURCE; it takes root, or CAP_BPF, CAP_PERFMON")
    assert (told.operation, told.code, told.__cause__) == ("rlimit memlock", errno.EPERM, REFUSED)


@pytest.mark.parametrize(
    ("symbols", "error", "may_lift"),
    [
        (NEW, REFUSED, False),
        (OLD, REFUSED, True),
        (OLD, BpfError("loading object x", errno.EINVAL), False),
        (OLD, VerifierError("p", errno.EPERM, "R0 pointer arithmetic prohibited", ""), False),
    ],
    ids=["not locked memory", "no limit", "another error", "the verifier's"],
)
def test_what_was_refused_for_something_else_is_told_as_it_was(load, symbols, error, may_lift):
    assert load(symbols, error, may_lift=may_lift) is error
