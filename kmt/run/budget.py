"""What all guests of a run may take together, and who goes next: tasks in order, as far as the budget goes.

Laws: tasks start in the order of their rank, and one that does not fit yet is not overtaken (a guest with two
processors would wait for ever behind a stream of small ones); a task that is larger than the whole budget runs
alone; a task keeps to one thread, because guests die with the thread that started them (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass

from kmt.backends.base import Machine
from kmt.config import Config
from kmt.run import limits

MEMORY_OVERHEAD_MIB = 256
"""What QEMU itself may take beside the guest's memory."""
TRANSLATED_MIB = 512
"""What it takes besides for translated code, where it emulates."""


@dataclass(frozen=True)
class Budget:
    """Processors of guests, and their memory in MiB. A guest may touch all of its memory, so all of it counts."""

    cpus: int
    memory_mib: int

    def guests(self, machine: Machine) -> int:
        """How many such machines may run at once, emulated or not; one always may."""
        by_memory = self.memory_mib // (machine.memory_mib + MEMORY_OVERHEAD_MIB + TRANSLATED_MIB)
        return max(1, min(self.cpus // machine.cpus, by_memory))


def budget(config: Config) -> Budget:
    """What ``[tool.kmt]`` and the command line say, else what this machine gives to this process."""
    return Budget(config.jobs or limits.processors(), config.memory_limit or limits.memory_mib())


@dataclass(frozen=True)
class Task:
    """``work`` is called once, from one thread, while nobody else has its processors and memory."""

    work: Callable[[], None]
    cpus: int = 1
    memory_mib: int = 0

    @classmethod
    def keeping(cls, machine: Machine, work: Callable[[], None], *, emulated: bool = True) -> Task:
        """A task that has such a machine running."""
        overhead = MEMORY_OVERHEAD_MIB + (TRANSLATED_MIB if emulated else 0)
        return cls(work, machine.cpus, machine.memory_mib + overhead)


class Scheduler:
    """Tasks go in at any time, also from tasks; ``work`` is what each of the pool's threads runs."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._waiting: list[tuple[tuple[int, ...], int, Task]] = []
        self._running: list[Task] = []
        self._count = 0
        self._changed = threading.Condition()

    def submit(self, rank: tuple[int, ...], task: Task) -> None:
        """Have it run when its turn has come: lower ranks first, then the order of submission."""
        with self._changed:
            self._count += 1
            heapq.heappush(self._waiting, (rank, self._count, task))
            self._changed.notify_all()

    def work(self) -> None:
        """Run tasks until none is waiting and none is running that could submit another."""
        while (task := self._next()) is not None:
            try:
                task.work()
            finally:
                with self._changed:
                    self._running.remove(task)
                    self._changed.notify_all()

    def _next(self) -> Task | None:
        with self._changed:
            while self._waiting or self._running:
                if self._waiting and self._fits(self._waiting[0][2]):
                    _, _, chosen = heapq.heappop(self._waiting)
                    self._running.append(chosen)
                    return chosen
                self._changed.wait()
            return None

    def _fits(self, new: Task) -> bool:
        cpus = new.cpus + sum(task.cpus for task in self._running)
        memory = new.memory_mib + sum(task.memory_mib for task in self._running)
        return not self._running or (cpus <= self._budget.cpus and memory <= self._budget.memory_mib)
