"""The harness's own parts on simulated kernels: the fentry tracer, the registry over processes in a proc tree."""

import os
from pathlib import Path

import pytest

from harness.ebpf import core, events
from harness.ebpf.settings import BpfSettings
from harness.errors import SignatureError, VerifierError
from harness.kernel_api import LoadOptions
from harness.telemetry import Registry
from harness.tracer import probes
from harness.tracer.fentry import load_tracer
from harness.tracer.settings import TracerSettings
from harness.watcher import maps
from harness.watcher.registry import FileRegistry
from kmt import archive, build, config
from kmt.archive import btf
from kmt.commands import matrix
from kmt.simulator.kernel import SimulatedKernel
from kmt.simulator.proc_tree import ProcTree
from kmt.simulator.profile import recorded
from kmt.simulator.types import Types

pytestmark = pytest.mark.host_only

ROOT = Path(__file__).parents[2]
DEFAULT = ("5.10", "6.1", "6.12", "6.18", "7.3")


@pytest.fixture(scope="module")
def kernels():
    """BTF files of the default kernels, by name."""
    settings = config.load(ROOT)
    found = archive.prepare_all(matrix.rows(settings, (), "default"), config=settings)
    assert set(found) == set(DEFAULT)
    return {name: btf.raw(kernel) for name, kernel in found.items()}


@pytest.fixture(scope="module")
def bpf_dir(tmp_path_factory):
    """The built programs, as root's."""
    place = tmp_path_factory.mktemp("bpf")
    (place / "co-re").mkdir()
    for name, path in build.build(config.load(ROOT)).objects.items():
        (place / "co-re" / f"{name}.o").write_bytes(path.read_bytes())
        (place / "co-re" / f"{name}.o").chmod(0o644)
    return place


@pytest.fixture(autouse=True)
def _fresh_loader():
    core.reset()
    yield
    core.reset()


@pytest.fixture
def begin(kernels, tmp_path):
    """A simulated kernel of that name with its types, and its proc tree."""

    def of(name, **how):
        profile = recorded()[name]
        tree = ProcTree(tmp_path / "proc", release=profile.release, symbols=profile.functions)
        types = Types.parse(kernels[name].read_bytes())
        return SimulatedKernel(profile, types=types, proc_root=tree.root, cpus=2, **how), tree

    return of


@pytest.mark.skipif(os.geteuid() != 0, reason="assets must be root's")
@pytest.mark.parametrize("name", DEFAULT)
def test_the_fentry_tracer_runs_and_hears_of_a_connection(name, begin, kernels, bpf_dir):
    kernel, _ = begin(name)
    settings = BpfSettings(bpf_dir, btf_path=kernels[name])
    conn = events.Conn(*range(1, 27))._replace(metadata=events.TCP)
    with load_tracer(kernel, settings, fargate=lambda: True) as tracer:
        (loaded,) = kernel.objects
        assert loaded.attached == set(tracer.programs)
        assert ("tcp_sendpage_exit" in tracer.programs) is (name in ("5.10", "6.1"))
        assert kernel.inject("conn_close_event", events.pack(conn), 1) == 0
        assert tracer.closed(0) == [conn]
        assert tracer.closed(0) == []
    assert kernel.objects == ()


def test_a_variant_for_another_kernel_is_refused_as_the_real_one_refuses_it(begin, bpf_dir):
    """With its own word it is a SignatureError before anything is loaded, with the kernel's the verifier objects."""
    kernel, _ = begin("7.3")
    image = (bpf_dir / "co-re/tracer-fentry.o").read_bytes()
    probe = next(p for hook in probes.HOOKS for p in hook if p.program == "tcp_recvmsg_exit_6")
    actual = kernel.signatures([probe.function])[probe.function]

    def load(signature):
        wanted = {probe.program: (probe.function, signature)}
        options = LoadOptions([probe.program], map_edits=TracerSettings().map_edits(), signatures=wanted)
        return kernel.load("tracer-fentry", image, options)

    with pytest.raises(SignatureError):
        load(probe.signature)
    with pytest.raises(VerifierError, match=r"EACCES.*func 'tcp_recvmsg' doesn't have"):
        load(actual)


def test_processes_come_and_go_in_the_tree(begin, tmp_path):
    kernel, tree = begin("6.1")
    root = tmp_path / "root"
    root.mkdir()
    library = root / "libssl.so"
    library.write_bytes(bytes(10))
    assert tree.begin(7, root=root) < tree.begin(8, root=root)
    tree.map(7, library, "/libssl.so")
    assert maps.mapped_files((kernel.proc_root / "7/maps").read_bytes()) == ["/libssl.so"]
    registry = FileRegistry("simulated", proc_root=str(kernel.proc_root), metrics=Registry())
    registry.register("/libssl.so", 7, lambda _: None, lambda _: None)
    assert [traced.pids for traced in registry.traced()] == [(7,)]
    tree.end(7)
    tree.end(7)
    assert not (kernel.proc_root / "7").exists()
    with pytest.raises(FileNotFoundError):
        registry.register("/libssl.so", 7, lambda _: None, lambda _: None)
    assert (kernel.proc_root / "sys/kernel/osrelease").read_text() == f"{kernel.release}\n"
