"""The watcher on a real kernel against a model: real files and processes, mount namespaces and chroots.

The model is the set of processes that have each file open. After every step the registry must come to be that.
"""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from waiting import wait_for

from fixtures.workloads.nursery import Nursery
from harness.ebpf.settings import BpfSettings
from harness.processes.monitor import ProcessMonitor
from harness.processes.source import opener
from harness.telemetry import Registry
from harness.watcher.identity import PathIdentifier
from harness.watcher.watcher import Watcher

pytestmark = pytest.mark.thorough

EXAMPLES = 6 if "KMT_GUEST" in os.environ else 20
names = st.sampled_from([f"kmtlibssl.so.{n}" for n in range(3)])
WAYS = ["by its path", "relative", "in a chroot", "by a bind mount", "by a bind mount in a chroot"]


class LiveMachine(RuleBasedStateMachine):
    """See the module; ``live``, ``bpf_dir`` and ``nursery`` are set by the test."""

    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.files = Path(self.directory.name)
        for n in range(3):
            (self.files / f"kmtlibssl.so.{n}").touch()
        (self.files / "kmtlibssl.so.mounted").touch()
        self.holders = {}
        self.log = []
        self.metrics = Registry()
        bpf = BpfSettings(self.bpf_dir)
        monitor = ProcessMonitor(opener(self.live, bpf), metrics=self.metrics)
        hooks = (lambda file: self.log.append(("act", file.id)), lambda file: self.log.append(("deact", file.id)))
        # No sweep: every end has to be heard.
        self.watcher = Watcher(
            self.live,
            bpf,
            [(r"/kmtlibssl\.so|^kmtlibssl", *hooks)],
            monitor=monitor,
            metrics=self.metrics,
            sweep=10_000,
        )
        self.started = False

    def comes_to_be_the_model(self):
        if not self.started:
            return
        wanted = {id: tuple(sorted(those)) for id, those in self.holders.items()}
        wait_for(lambda: {file.id: file.pids for file in self.watcher.registry.traced()} == wanted)
        wait_for(lambda: self.watcher.registry.in_flight == 0)

    @initialize(before=st.lists(st.tuples(names, st.sampled_from(WAYS)), min_size=1, max_size=3))
    def start(self, before):
        """Some have files open already."""
        for name, way in before:
            self.begin(name, way)
        self.watcher.start()
        assert self.watcher.program is not None
        self.started = True
        self.comes_to_be_the_model()

    @rule(name=names, way=st.sampled_from(WAYS))
    def begin(self, name, way):
        file, mounted = self.files / name, self.files / "kmtlibssl.so.mounted"
        if not file.exists():
            return
        how = {
            "by its path": {"path": str(file)},
            "relative": {"path": name, "cwd": str(self.files)},
            "in a chroot": {"path": f"/{name}", "root": str(self.files)},
            "by a bind mount": {"path": str(mounted), "bind": (str(file), str(mounted))},
            "by a bind mount in a chroot": {
                "path": f"/{mounted.name}", "bind": (str(file), str(mounted)), "root": str(self.files)
            },
        }[way]  # fmt: skip
        pid = self.nursery.begin(**how)
        self.holders.setdefault(PathIdentifier.of_file(file), set()).add(pid)
        self.comes_to_be_the_model()

    @precondition(lambda self: self.holders)
    @rule(number=st.integers(0, 9))
    def end(self, number):
        pids = sorted(set().union(*self.holders.values()))
        pid = pids[number % len(pids)]
        self.nursery.end(pid)
        self.holders = {id: those - {pid} for id, those in self.holders.items() if those != {pid}}
        self.comes_to_be_the_model()

    @rule(name=names, times=st.integers(1, 5))
    def open_and_end(self, name, times):
        """Processes that are over before anybody can look at them."""
        if (self.files / name).exists():
            for _ in range(times):
                self.nursery.short(str(self.files / name))
            self.comes_to_be_the_model()

    @rule(name=names, other=names, what=st.sampled_from(["replace", "link", "rename", "delete"]))
    def change(self, name, other, what):
        file, new = self.files / name, self.files / other
        if what == "replace":
            # Two files that are there at the same time have two numbers: what is held keeps its own.
            (self.files / "fresh").touch()
            (self.files / "fresh").replace(file)
        elif what == "link" and file.exists() and not new.exists():
            new.hardlink_to(file)
        elif what == "rename" and file.exists():
            file.rename(new)
        elif what == "delete":
            file.unlink(missing_ok=True)

    def teardown(self):
        for pid in set().union(*self.holders.values()):
            self.nursery.end(pid)
        self.holders = {}
        self.comes_to_be_the_model()
        self.watcher.stop()
        value = {metric.name.rpartition(".")[2]: metric.value for metric in self.metrics.metrics()}
        assert value["registered"] == value["unregistered"]
        assert (value["total_files"], value["total_pids"], value["lost"], value["hook_failed"]) == (0, 0, 0, 0)
        for id in {id for _, id in self.log}:
            words = [word for word, other in self.log if other == id]
            assert words == ["act", "deact"] * (len(words) // 2)
        self.directory.cleanup()


def test_the_registry_comes_to_be_what_processes_have_open(live, bpf_dir):
    with Nursery() as nursery:
        machine = type("Machine", (LiveMachine,), {"live": live, "bpf_dir": bpf_dir, "nursery": nursery})
        chosen = settings(
            max_examples=EXAMPLES, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        )
        run_state_machine_as_test(machine, settings=chosen)


@pytest.mark.parametrize("wrong", ["/none", "/proc/self/none"])
def test_a_nursery_says_what_is_wrong(wrong):
    with Nursery() as nursery, pytest.raises(RuntimeError, match="FileNotFoundError"):
        nursery.begin(wrong)
