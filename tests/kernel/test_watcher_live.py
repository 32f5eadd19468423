"""The whole watcher on a real kernel: its program, the process monitor, real processes and real libraries."""

import os
from contextlib import contextmanager

import pytest
from waiting import wait_for

from fixtures.workloads import libraries
from fixtures.workloads.processes import holding
from harness.ebpf.settings import BpfSettings
from harness.processes.monitor import ProcessMonitor
from harness.processes.source import opener
from harness.telemetry import Registry
from harness.watcher.identity import PathIdentifier
from harness.watcher.watcher import Watcher


class Log:
    """Callbacks that write down what they were given."""

    def __init__(self):
        self.activated, self.deactivated = [], []

    def rule(self, pattern):
        return pattern, self.activate, self.deactivate

    def activate(self, file):
        # Whatever it is known by, the file can be opened there now, as an uprobe would.
        assert PathIdentifier.of_file(file.host_path) == file.id
        self.activated.append(file.id)

    def deactivate(self, file):
        self.deactivated.append(file.id)


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def metrics():
    return Registry()


@pytest.fixture
def monitor(live, bpf_dir, metrics):
    return ProcessMonitor(opener(live, BpfSettings(bpf_dir)), metrics=metrics)


@pytest.fixture
def watch(live, bpf_dir, monitor, metrics):
    """Makes a watcher of given rules, with a monitor and metrics of its own."""

    @contextmanager
    def make(*rules, **more):
        with Watcher(live, BpfSettings(bpf_dir), rules, **{"monitor": monitor, "metrics": metrics} | more) as watcher:
            yield watcher
        assert watcher.registry.traced() == []
        assert watcher.registry.in_flight == 0
        assert monitor.users == 0

    return make


def traced(watcher):
    """What is registered: paths by the processes that hold them."""
    return {file.path: set(file.pids) for file in watcher.registry.traced()}


def counted(metrics):
    return {metric.name.rpartition(".")[2]: metric.value for metric in metrics.metrics()}


def test_libraries_of_running_processes_and_of_later_ones(watch, log, tmp_path, metrics):
    path = str(libraries.library(tmp_path, "libssl.so.3"))
    with holding(path) as first, watch(log.rule(r"libssl\.so")) as watcher:
        wait_for(lambda: traced(watcher).get(path) == {first.pid})
        with holding(path) as second:
            wait_for(lambda: traced(watcher).get(path) == {first.pid, second.pid})
        wait_for(lambda: traced(watcher).get(path) == {first.pid})
        first.kill()
        first.wait()
        wait_for(lambda: path not in traced(watcher))
        assert log.activated.count(PathIdentifier.of_file(path)) == 1
        assert log.deactivated.count(PathIdentifier.of_file(path)) == 1
    assert sorted(log.activated) == sorted(log.deactivated)
    assert counted(metrics)["lost"] == counted(metrics)["unread"] == 0


def test_its_own_opens_are_none_of_its_business(watch, log, tmp_path):
    path = libraries.library(tmp_path, "libssl.so.3")
    libraries.load(path)
    other = libraries.library(tmp_path, "libssl.so.4")
    with watch(log.rule(r"libssl\.so")) as watcher:
        libraries.open_(os.fsencode(other))
        with holding(other) as process:
            wait_for(lambda: str(other) in traced(watcher))
            assert traced(watcher)[str(other)] == {process.pid}
        assert os.getpid() not in watcher.registry.registered_processes()
        assert str(path) not in traced(watcher)
