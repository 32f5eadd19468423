"""A kernel's tasks, started and ended in the worst order: its accounts are closed once, and only when all is over."""

from pathlib import Path

import pytest

from kmt import backends, config, runs
from kmt.backends.base import Machine
from kmt.matrix import Row
from kmt.run import kernel as kernel_run
from kmt.run.events import Finished, Report
from kmt.run.examples import Examples
from kmt.run.expected import Expected
from kmt.run.guest import Plan
from kmt.run.kernel import KernelRun
from kmt.run.shared import Job, Shared
from kmt.run.spread import Unit

UNITS = tuple(Unit(Machine(), (f"{name}.py::a",)) for name in "abc")
IDS = tuple(nodeid for unit in UNITS for nodeid in unit.ids)


class AtOnce:
    """A scheduler whose workers are quicker than whoever submits."""

    def submit(self, rank, task):
        task.work()


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_the_last_of_the_first_attempts_may_end_before_the_second_ones_are_all_submitted(
    tmp_path, monkeypatch, retries
):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pyproject.toml").write_text(f"[tool.kmt]\nretries = {retries}\n")
    said, ran = [], []

    class FailingUnit:
        def __init__(self, unit, guests):
            self.unit, self.account = unit, guests.account

        def run(self):
            for nodeid in self.unit.ids:
                ran.append(nodeid)
                for when in ("setup", "call", "teardown"):
                    word = "failed" if when == "call" else "passed"
                    self.account.emit(Report("6.1", {"nodeid": nodeid, "when": when, "outcome": word}))

    monkeypatch.setattr(kernel_run, "UnitRun", FailingUnit)
    monkeypatch.setattr(KernelRun, "_phases", lambda *_: None)
    settings = config.load(tmp_path)
    with runs.start(["6.1"], []) as run:
        plan = Plan(Path(tmp_path), "", (), {}, False, {})
        shared = Shared(settings, plan, run, Examples(tmp_path, 1), said.append, lambda _: False, Expected())
        backend = backends.get("host", config=settings, accel="auto", progress=lambda *_: None)
        KernelRun(0, Job(Row("6.1"), backend, False, IDS, UNITS), shared, AtOnce()).submit()
    assert sorted(ran) == sorted(IDS * (1 + retries))
    (finished,) = (event for event in said if isinstance(event, Finished))
    assert finished is said[-1]
    assert [(test.id, test.outcome, len(test.retries)) for test in finished.result.tests] == [
        (nodeid, "failed", retries) for nodeid in IDS
    ]
