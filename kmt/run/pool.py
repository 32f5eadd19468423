"""The run: several kernels at once, and several guests of one, under a budget; their events in one stream.

Laws: every job ends in exactly one ``Finished``; leaving the stream early ends all guests. Whose turn it is is
``budget.py``'s, which tests share a guest ``spread.py``'s, what happens within one kernel ``kernel.py``'s.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence

from kmt.config import Config
from kmt.results import KernelResult
from kmt.run.budget import Budget, Scheduler
from kmt.run.events import Event, Finished
from kmt.run.examples import Examples
from kmt.run.expected import Expected
from kmt.run.guest import Plan
from kmt.run.kernel import KernelRun
from kmt.run.shared import Job, Shared
from kmt.runs import Run


class Running:
    """Jobs that run from the moment of the ``with`` to its end, which stops all guests and waits for their threads.

    ``on_result`` is given each kernel's result before it is filled in by its thread; ``events`` is where threads
    put what happens, others' too.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        budget: Budget,
        config: Config,
        plan: Plan,
        run: Run,
        is_property: Callable[[str], bool],
        expected: Expected,
        on_result: Callable[[KernelResult], None],
        events: queue.Queue[Event],
    ) -> None:
        self._events = events
        self._shared = Shared(config, plan, run, Examples(plan.root, len(jobs)), events.put, is_property, expected)
        scheduler = Scheduler(budget)
        for number, job in enumerate(jobs):
            kernel = KernelRun(number, job, self._shared, scheduler)
            on_result(kernel.account.result)
            kernel.submit()
        self._left = len(jobs)
        # Daemons, so that a second Ctrl-C need not wait for them: their guests die with this process.
        count = min(budget.cpus, sum(max(1, len(job.units)) for job in jobs))
        self._threads = [threading.Thread(target=scheduler.work, daemon=True) for _ in range(count)]

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

    def cancel(self) -> None:
        """Stop all guests; ``events`` goes on to give each kernel's last words."""
        self._shared.cancel.set()

    def events(self) -> Iterator[Event]:
        """What happens, as it happens, until every job is finished. May be taken up again after an interrupt."""
        while self._left:
            event = self._events.get()
            self._left -= isinstance(event, Finished)
            yield event
