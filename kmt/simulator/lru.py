"""(pure) Which entry an LRU hash gives up: the kernel's approximation of least recently used, list for list.

Free places are taken in batches by the processor that needs one, so a small map drops many entries at once, long
before anybody would call them the least recently used. Laws: a place is in one list at a time; of ``size`` places no
more than ``size`` are in use; the same calls give the same evictions. Rules: kernel/bpf/bpf_lru_list.c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

BATCH = 128
"""Places that a processor takes at a time (LOCAL_FREE_TARGET), and nodes that are looked at (LOCAL_NR_SCANS)."""

_CARRIED_BACK = {(6, 12): 117}
"""By series: the first release that was seen to take fewer at a time."""


def batch(version: tuple[int, int, int], size: int, cpus: int) -> int:
    """Places that a processor of that kernel takes at a time: from 6.16 on no more than half of its share."""
    # commit d4adf1c9ee77: one processor emptied a small map at once.
    few = version >= (6, 16, 0) or version[2] >= _CARRIED_BACK.get(version[:2], version[2] + 1)
    return max(1, min(BATCH, size // cpus // 2)) if few else BATCH


@dataclass(eq=False)
class Node:
    """A place for an entry: the list that it is in, and whether it was used since it was last looked at."""

    key: bytes | None = None
    used: bool = False
    home: list[Node] = field(default_factory=list)
    cpu: int = 0

    def move(self, target: list[Node]) -> None:
        """To the head of another list."""
        if self in self.home:
            self.home.remove(self)
        self.home = target
        target.insert(0, self)


class Lru:
    """Places of a map. ``drop(key)`` is called for an entry that goes; ``batch``: places taken at a time."""

    def __init__(self, size: int, cpus: int, drop: Callable[[bytes], None], batch: int = BATCH) -> None:
        self._drop, self._batch = drop, batch
        self._free: list[Node] = []
        self._active: list[Node] = []
        self._inactive: list[Node] = []
        self._rotation: Node | None = None
        """Where rotating the inactive list goes on; None: at its end."""
        self._local: list[list[Node]] = [[] for _ in range(cpus)]
        self._pending: list[list[Node]] = [[] for _ in range(cpus)]
        self._steal = list(range(cpus))
        for _ in range(size):
            Node().move(self._free)

    def take(self, key: bytes, cpu: int) -> Node | None:
        """A place for that key, if need be another entry's; None where there is none."""
        if not self._local[cpu]:
            self._refill(cpu)
        node = self._local[cpu][0] if self._local[cpu] else self._stolen(cpu)
        if node is None:
            return None
        node.move(self._pending[cpu])
        node.key, node.used, node.cpu = key, False, cpu
        return node

    def give(self, node: Node) -> None:
        """The place of an entry that was deleted."""
        node.key, node.used = None, False
        if node.home is self._pending[node.cpu]:
            node.move(self._local[node.cpu])
        else:
            self._leave(node, self._free)

    def _leave(self, node: Node, target: list[Node]) -> None:
        """Out of the active or inactive list, minding where the rotation goes on."""
        if node is self._rotation:
            at = self._inactive.index(node)
            self._rotation = self._inactive[at - 1] if at else None
        node.used = False
        node.move(target)

    def _refill(self, cpu: int) -> None:
        for node in reversed(list(self._pending[cpu])):
            target = self._active if node.used else self._inactive
            node.used = False
            node.move(target)
        self._rotate()
        taken = 0
        for node in self._free[: self._batch]:
            node.move(self._local[cpu])
            taken += 1
        if taken < self._batch:
            self._shrink(self._batch - taken, self._local[cpu])

    def _rotate(self) -> None:
        if len(self._inactive) < len(self._active):
            for node in list(reversed(self._active))[:BATCH]:
                self._leave(node, self._active if node.used else self._inactive)
        order = list(self._inactive)
        if not order:
            return
        at = order.index(self._rotation) if self._rotation is not None else len(order) - 1
        following: Node | None = None
        for step in range(min(BATCH, len(order))):
            node = order[(at - step) % len(order)]
            before = order.index(node) - 1
            following = order[before] if before >= 0 else None
            if node.used:
                self._leave(node, self._active)
        self._rotation = following if following in self._inactive else None

    def _shrink(self, wanted: int, target: list[Node]) -> None:
        freed = 0
        for node in list(reversed(self._inactive))[:BATCH]:
            if node.used:
                self._leave(node, self._active)
            else:
                self._evict(node, target)
                freed += 1
                if freed == wanted:
                    return
        if not freed and (last := self._inactive or self._active):
            self._evict(last[-1], target)

    def _evict(self, node: Node, target: list[Node]) -> None:
        assert node.key is not None
        self._drop(node.key)
        node.key = None
        self._leave(node, target)

    def _stolen(self, cpu: int) -> Node | None:
        """From the processors in turn: a free place, else their oldest new entry."""
        first = at = self._steal[cpu]
        while True:
            node = self._local[at][0] if self._local[at] else self._oldest(at)
            at = (at + 1) % len(self._local)
            if node is not None or at == first:
                self._steal[cpu] = at
                return node

    def _oldest(self, cpu: int) -> Node | None:
        order = list(reversed(self._pending[cpu]))
        node = next((node for node in order if not node.used), order[0] if order else None)
        if node is not None:
            assert node.key is not None
            self._drop(node.key)
        return node
