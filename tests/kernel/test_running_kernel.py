"""What the harness asks of the running kernel, and what it says to those who may not ask."""

import os
import resource
import threading
import traceback

import pytest

from harness.ebpf import core
from harness.ebpf.libbpf import BpfObject
from harness.ebpf.live import LiveKernel
from harness.ebpf.settings import BpfSettings
from harness.errors import BpfError, BtfError, HarnessError
from harness.kernel_api import Feature, LoadOptions, Signature
from harness.tracer import probes
from harness.tracer.settings import TracerSettings

NOBODY = 65534


@pytest.mark.requires("btf")
def test_signatures(kernel):
    found = kernel.api.signatures(["tcp_sendmsg", "no_such_function"])
    assert found == {"tcp_sendmsg": Signature(("struct sock *", "struct msghdr *", "size_t"), "int")}


@pytest.mark.requires("btf", "fentry")
def test_every_kernel_has_exactly_one_variant_of_each_hook(kernel):
    signatures = kernel.api.signatures(probes.functions())
    chosen = probes.choose(signatures, TracerSettings())
    for hook in probes.HOOKS:
        fits = [p for p in hook if signatures.get(p.function) == p.signature]
        assert len(fits) == (hook[0].function in signatures)
        assert set(fits) <= set(chosen)
        assert fits or hook[0].gone


def test_symbols(kernel):
    assert kernel.api.symbols(["tcp_sendmsg", "no_such_symbol"]) == {"tcp_sendmsg"}
    assert kernel.api.symbols([]) == frozenset()


def test_probes_agree_with_those_of_the_runner(live, request):
    """Two ways of asking, one answer."""
    for feature in (Feature.BTF, Feature.RINGBUF, Feature.FENTRY):
        assert live.probe(feature) == request.config.hook.pytest_kmt_probe(feature=feature.value)


def test_a_kernel_that_shows_nothing(tmp_path):
    hidden = LiveKernel(btf_file=tmp_path / "vmlinux", proc=tmp_path, tracing=tmp_path)
    assert hidden.probe(Feature.BTF) is False
    assert hidden.probe(Feature.FENTRY) is False
    assert hidden.probe(Feature.OPENAT2) is None, "it could not be asked"
    with pytest.raises(BtfError, match="shows no BTF"):
        hidden.signatures(["tcp_sendmsg"])
    with pytest.raises(HarnessError, match="symbols cannot be read"):
        hidden.symbols(["tcp_sendmsg"])


def test_who_is_not_root_is_told(kernel, bpf_dir):
    """That the limit on locked memory may not be lifted is a reason before 5.11 only."""
    image = (bpf_dir / "co-re/shared-libraries.o").read_bytes()
    first = "loading object" if kernel.version >= (5, 11) else "rlimit memlock: EPERM .*not allowed to raise"

    def load():
        live = LiveKernel()
        with pytest.raises(BpfError, match=r"EPERM.*it takes root"):
            BpfObject("shared-libraries", image, LoadOptions())
        core.setup(BpfSettings(bpf_dir), live)
        with pytest.raises(BpfError, match=rf"^{first}.*it takes root"):
            live.load("shared-libraries", image, LoadOptions())

    assert as_nobody(load) == 0


def as_nobody(call):
    """The exit status of a child without any rights: 0, or 1 if the call raises."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            # Less than everything, so that lifting it is asked of the kernel.
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 16, 1 << 16))
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            call()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_of_racing_first_callers_one_makes_the_loader(bpf_dir, live):
    barrier = threading.Barrier(8)
    made = []

    def first():
        barrier.wait()
        made.append(core.setup(BpfSettings(bpf_dir), live))

    threads = [threading.Thread(target=first) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(map(id, made))) == 1
