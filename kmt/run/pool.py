"""The run: several kernels at once under a budget of cores and memory, their events in one stream.

Laws: every job ends in exactly one ``Finished``; leaving the stream early ends all guests. What happens within one
kernel is ``kernel.py``'s.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import psutil

from kmt.backends.base import Machine
from kmt.config import Config
from kmt.results import KernelResult
from kmt.run.events import Event, Finished
from kmt.run.examples import Examples
from kmt.run.guest import Plan
from kmt.run.kernel import Job, KernelRun, Shared
from kmt.runs import Run

MEMORY_OVERHEAD_MIB = 256
"""What QEMU itself may take beside the guest's memory."""


def jobs_at_once(config: Config) -> int:
    """How many guests this machine carries: the configured number, else by cores and free memory."""
    if config.jobs:
        return config.jobs
    by_memory = (psutil.virtual_memory().available >> 20) // (config.memory + MEMORY_OVERHEAD_MIB)
    return max(1, min(len(os.sched_getaffinity(0)), by_memory))


class Running:
    """Jobs that run from the moment of the ``with`` to its end, which stops all guests and waits for their threads.

    ``on_result`` is given each kernel's result before it is filled in by its thread; ``events`` is where threads
    put what happens, others' too.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        config: Config,
        plan: Plan,
        run: Run,
        is_property: Callable[[str], bool],
        on_result: Callable[[KernelResult], None],
        events: queue.Queue[Event],
    ) -> None:
        self._events = events
        examples = Examples(plan.root, len(jobs))
        self._shared = Shared(config, plan, run, examples, self._events.put, is_property)
        self._waiting: queue.SimpleQueue[KernelRun] = queue.SimpleQueue()
        for job in jobs:
            kernel = KernelRun(job, self._shared)
            on_result(kernel.result)
            self._waiting.put(kernel)
        self._left = len(jobs)
        # Daemons, so that a second Ctrl-C need not wait for them: their guests die with this process.
        count = min(jobs_at_once(config), len(jobs))
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def __enter__(self) -> Running:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.cancel()
        # Ctrl-C for the second time means at once: guests and whatever else threads started die with this process.
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            for thread in self._threads:
                thread.join()

    def _work(self) -> None:
        # Guests die with the thread that started them (PR_SET_PDEATHSIG), so a job keeps to one thread.
        while True:
            try:
                kernel = self._waiting.get_nowait()
            except queue.Empty:
                return
            kernel.run()

    def cancel(self) -> None:
        """Stop all guests; what was not done ends as lost. ``events`` goes on to give those."""
        self._shared.cancel.set()

    def events(self) -> Iterator[Event]:
        """What happens, as it happens, until every job is finished. May be taken up again after an interrupt."""
        while self._left:
            event = self._events.get()
            self._left -= isinstance(event, Finished)
            yield event


def group_by_machine(needs: Mapping[str, Machine]) -> tuple[tuple[Machine, tuple[str, ...]], ...]:
    """Ids by the machine they ask for, fewest processors first, otherwise in the order given.

    The compiler is a disk that hurts nobody, and another boot would cost more: if one test wants it, all have it.
    """
    compiler = any(machine.compiler for machine in needs.values())
    groups: dict[Machine, list[str]] = {}
    for nodeid, machine in needs.items():
        groups.setdefault(replace(machine, compiler=compiler), []).append(nodeid)
    ordered = sorted(groups.items(), key=lambda group: group[0].cpus)
    return tuple((machine, tuple(ids)) for machine, ids in ordered)
