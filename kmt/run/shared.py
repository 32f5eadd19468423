"""What the kernels of a run have in common; what is made once is made by whoever needs it first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kmt.backends.base import Backend, HasKernels
from kmt.config import Config
from kmt.errors import KmtError
from kmt.kernel import Kernel
from kmt.matrix import Row
from kmt.run.bytecode import Bytecode
from kmt.run.events import Event
from kmt.run.examples import Examples
from kmt.run.expected import Expected
from kmt.run.guest import Plan
from kmt.run.spread import Unit
from kmt.run.tree import Tree, survey
from kmt.runs import Run

if TYPE_CHECKING:
    from kmt import archive
    from kmt.build import BuiltTree


@dataclass(frozen=True)
class Job:
    """What one kernel has to run. ``ids`` are all of its tests in the order in which they are to be shown.

    ``strict``: that its row is unavailable is an error, not a skip. ``simulable`` are those of the ids that can run on
    a simulated kernel; ``stands_for``: why this one is simulated, where that was not asked for; ``instead``: what runs
    them where the kernel turns out not to be had.
    """

    row: Row
    backend: Backend
    strict: bool
    ids: tuple[str, ...]
    units: tuple[Unit, ...]
    simulable: frozenset[str] = frozenset()
    stands_for: str = ""
    instead: Backend | None = None


class Shared:
    """Thread-safe."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        run: Run,
        examples: Examples,
        emit: Callable[[Event], None],
        is_property: Callable[[str], bool],
        expected: Expected,
    ) -> None:
        self.config, self.plan, self.run = config, plan, run
        self.examples, self.emit, self.is_property = examples, emit, is_property
        self.expected = expected
        self.cancel = threading.Event()
        self._once = threading.Lock()
        self._objects: list[BuiltTree | KmtError] = []
        self._tree: Tree | None = None
        self.bytecode = Bytecode(plan.root, plan.modules)

    def objects(self) -> BuiltTree | None:
        """The project's eBPF objects, built once; a failure is every kernel's. None without sources."""
        if not (self.config.sources or self.config.workloads):
            return None
        with self._once:
            if not self._objects:
                from kmt import build

                try:
                    self._objects.append(build.build(self.config))
                except KmtError as error:
                    self._objects.append(error)
        made = self._objects[0]
        if isinstance(made, KmtError):
            raise made
        return made

    def programs(self, kernel: Kernel) -> list[Path]:
        """What that kernel's guest gets as KMT_BPF_DIR: the common directory, and what is laid over it."""
        common = self.objects()
        if common is None:
            return []
        from kmt import build_kernel

        return build_kernel.directories(self.config, common, kernel)

    def tree(self) -> Tree:
        """The project's files that travel, surveyed once."""
        with self._once:
            self._tree = self._tree or survey(self.plan.root, self.config.file_limit)
        return self._tree


def fetch(row: Row, backend: Backend, config: Config, progress: archive.Progress) -> Kernel:
    """The row's kernel; where a kernel runs already there is nothing to fetch."""
    if isinstance(backend, HasKernels) and (found := backend.kernel(row)) is not None:
        return found
    from kmt import archive

    return archive.prepare(row, config=config, progress=progress)
