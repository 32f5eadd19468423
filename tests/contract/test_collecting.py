"""Collecting in guests where the first of the kernels cannot be had or dies, and what modules find there."""

from dataclasses import replace
from pathlib import Path

import pytest

from kmt import backends, runs
from kmt.backends.host import HostBackend
from kmt.config import Config
from kmt.errors import AgentError
from kmt.matrix import Row
from kmt.plugin.collect import FirstThatCan, GuestCollector
from kmt.run.guest import Plan

pytestmark = pytest.mark.host_only

NEEDS_A_GUEST = """
import os
assert os.environ["KMT_GUEST"]
def test_here(): pass
"""
ENDS_THE_FIRST = """
import os, signal
if os.environ["KMT_KERNEL"] == "first":
    os.kill(os.getppid(), signal.SIGKILL)
def test_here(): pass
"""
READS_PROGRAMS = """
import os
from pathlib import Path
NAMES = sorted(path.name for path in Path(os.environ["KMT_BPF_DIR"], "bin").iterdir())
import pytest
@pytest.mark.parametrize("name", NAMES)
def test_of(name): pass
"""


class DeadAtOnce(HostBackend):
    """A machine whose agent ends before it says a word."""

    started = 0

    def command_line(self, kernel, machine, run_dir):
        type(self).started += 1
        return ["false"]


@pytest.fixture
def collecting(tmp_path):
    """Make a collector of rows with backends over a project of the modules above."""
    root = tmp_path / "project"
    root.mkdir()
    modules = {"needs": NEEDS_A_GUEST, "ends": ENDS_THE_FIRST, "reads": READS_PROGRAMS, "nowhere": "import no_such\n"}
    for name, text in modules.items():
        (root / f"test_{name}.py").write_text(text)
    config = Config(root=root, backend="qemu", timeout=30)
    plan = Plan(root=root, inifile="", options=(), env={}, strict_skips=False, known={})
    made = []
    with runs.start([], ["collecting"]) as run:

        def of(*rows, **settings):
            ours = replace(config, **settings)
            made.append(FirstThatCan([GuestCollector(Row(name), b, ours, plan, run) for name, b in rows]))
            return made[-1]

        yield of
        for one in made:
            one.close()


def ids(found):
    return [test.id for test in found]


def test_a_kernel_that_cannot_be_had_leaves_it_to_the_next(collecting):
    gone = backends.get("qemu", config=Config(root=Path("/")))
    found = collecting(("gone", gone), ("second", HostBackend())).collect("test_needs.py")
    assert ids(found) == ["test_needs.py::test_here"]


def test_a_kernel_that_dies_at_once_is_tried_once(collecting):
    DeadAtOnce.started = 0
    collector = collecting(("dead", DeadAtOnce()), ("second", HostBackend()))
    for _ in range(2):
        assert ids(collector.collect("test_needs.py")) == ["test_needs.py::test_here"]
    assert DeadAtOnce.started == 1


def test_a_kernel_that_a_module_ends_serves_the_next_module(collecting):
    first, second = HostBackend(), HostBackend()
    collector = collecting(("first", first), ("second", second))
    assert ids(collector.collect("test_ends.py")) == ["test_ends.py::test_here"]
    assert ids(collector.collect("test_needs.py")) == ["test_needs.py::test_here"]
    assert [one.row.name for one in collector._left] == ["first", "second"]


def test_what_cannot_be_collected_anywhere_names_the_kernels(collecting):
    collector = collecting(("dead", DeadAtOnce()), ("second", HostBackend()))
    with pytest.raises(AgentError, match=r"second: the guest cannot collect it either(.|\n)*no_such"):
        collector.collect("test_nowhere.py")
    collector = collecting(("dead", DeadAtOnce()), ("dead too", DeadAtOnce()))
    for _ in range(2):
        with pytest.raises(AgentError, match=r"dead: the agent on this machine ended(.|\n)*dead too: "):
            collector.collect("test_needs.py")


def test_a_module_finds_the_programs_where_tests_will(collecting, tmp_path):
    (tmp_path / "project" / "idle.c").write_text("int main(void) { return 0; }\n")
    collector = collecting(("here", HostBackend()), workloads=("*.c",))
    assert ids(collector.collect("test_reads.py")) == ["test_reads.py::test_of[idle]"]


def test_programs_that_cannot_be_built_are_for_the_run_to_say(collecting, tmp_path):
    (tmp_path / "project" / "broken.c").write_text("int main(void) {\n")
    collector = collecting(("here", HostBackend()), workloads=("*.c",))
    assert ids(collector.collect("test_needs.py")) == ["test_needs.py::test_here"]
