"""Threads that run other people's callbacks, so that one which hangs holds up neither the giver nor the others.

Laws: ``submit`` never blocks: it takes a job, or says no (no room, no thread to be had, or stopped); every job taken
runs once, those still queued at ``stop`` included; what a job raises is logged and ends nothing; ``stop`` may come from
a job.
The threads are daemons: a callback that hangs for ever does not keep the process from ending.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

Job = Callable[[], None]

_log = logging.getLogger(__name__)


class Workers:
    """At most ``threads`` threads, started as needed, and room for ``room`` waiting jobs (0: no limit)."""

    def __init__(self, name: str, threads: int, room: int = 0) -> None:
        self.name = name
        self._most = threads
        self._room = room
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._stopped = False

    def submit(self, job: Job) -> bool:
        """Have it run by a thread, soon; False if it was not taken."""
        with self._changed:
            if self._stopped or (self._room and len(self._jobs) >= self._room):
                return False
            if self._idle <= len(self._jobs) and len(self._threads) < self._most:
                self._start_another()
            if not self._threads:
                return False
            self._jobs.append(job)
            self._changed.notify()
            return True

    def _start_another(self) -> None:
        """Start one more thread; where the system has no more, those that there are have to do."""
        thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # "can't start new thread"
            self._threads.discard(thread)
            _log.warning("%s: %s", self.name, error)

    def stop(self, seconds: float) -> bool:
        """Take no more, and wait for the threads (but not for the one that calls). False: some are still at it."""
        me = {threading.current_thread()}
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._threads - me, seconds)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            except BaseException:
                _log.exception("%s: a callback failed", self.name)

    def _next(self) -> Job | None:
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._jobs or self._stopped)
            self._idle -= 1
            if self._jobs:
                return self._jobs.popleft()
            self._threads.discard(threading.current_thread())
            self._changed.notify_all()
            return None
