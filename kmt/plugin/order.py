"""(pure) A stable order for what comes in as it happens: kernel by kernel, and in each the order of its tests.

Laws: everything that was put in comes out exactly once, in the same order whatever the timing; nothing waits for a
test that its kernel, being finished, will never speak of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Kernel(Generic[T]):
    due: Sequence[str]
    come: dict[str, T] = field(default_factory=dict)
    next: int = 0
    finished: bool = False


class InOrder(Generic[T]):
    """``tests`` maps each kernel to the ids that are due there; both orders count."""

    def __init__(self, tests: Mapping[str, Sequence[str]]) -> None:
        self._kernels: dict[str, _Kernel[T]] = {name: _Kernel(ids) for name, ids in tests.items()}

    def put(self, kernel: str, nodeid: str, what: T) -> None:
        """Something about a test has come. An id that was not due goes behind those that were."""
        self._kernels.setdefault(kernel, _Kernel(())).come[nodeid] = what

    def finished(self, kernel: str) -> None:
        """Nothing more will come from there."""
        self._kernels.setdefault(kernel, _Kernel(())).finished = True

    def take(self) -> Iterator[T]:
        """What is now in its turn."""
        for kernel in self._kernels.values():
            while kernel.next < len(kernel.due):
                nodeid = kernel.due[kernel.next]
                if nodeid not in kernel.come and not kernel.finished:
                    return
                if nodeid in kernel.come:
                    yield kernel.come.pop(nodeid)
                kernel.next += 1
            if not kernel.finished:
                return
            for nodeid in sorted(kernel.come):
                yield kernel.come.pop(nodeid)
