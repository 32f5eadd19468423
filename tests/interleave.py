"""Threads that may lose the interpreter at every line of the code under test, and not only where they would wait.

CPython hands over between threads every few milliseconds of running code, so a race in a few lines without a system
call shows once in a million calls. Inside ``at_every_line`` a thread gives way at lines chosen at random.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def at_every_line(package: str, chance: float = 0.3) -> Iterator[None]:
    """Within this, threads *started here* give way at a line of ``package``'s code with probability ``chance``."""
    dice = random.Random(0)

    def trace(frame: FrameType, _: str, __: Any) -> Callable[..., Any] | None:
        if not frame.f_globals.get("__name__", "").startswith(package):
            return None
        if dice.random() < chance:
            time.sleep(0)
        return trace

    before = threading.gettrace()
    threading.settrace(trace)
    try:
        yield
    finally:
        threading.settrace(before)
