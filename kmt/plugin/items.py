"""Test items that stand for one test on one kernel.

Laws: a test becomes one item a kernel where it is made, so that ``--lf`` and ``-k`` see ids with kernels in them;
an item of ours never runs on the host: no fixture of it is set up here.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kmt.backends.base import Machine
from kmt.results import with_kernel
from kmt.run.spread import Need

if TYPE_CHECKING:
    from kmt.plugin.collect import Found


FIXTURE = "kernel"
"""What a test takes that can do with a simulated kernel."""


class KernelItem(pytest.Item):
    """One test on one kernel. ``kmt_kernel`` is the row's name, ``kmt_id`` the id that the guest knows."""

    kmt_kernel: str
    kmt_id: str

    def __init__(
        self, *, name: str, parent: pytest.Collector, kernel: str, guest_id: str, inner: pytest.Item | None
    ) -> None:
        # Said as text, for pytest 9.2 compares parsed ids and would keep a name's brackets unparsed.
        super().__init__(name, parent, nodeid=f"{parent.nodeid}::{name}")
        self.kmt_kernel = kernel
        self.kmt_id = guest_id
        self._where: tuple[Any, int | None, str] = (self.path, None, self.name)
        self.is_property = False
        self._takes_kernel = False
        if inner is not None:
            self._take(inner)

    def _take(self, inner: pytest.Item) -> None:
        self.own_markers = inner.own_markers
        self.extra_keyword_matches = {*inner.extra_keyword_matches, inner.name}
        # By it pytest puts tests together that share a fixture's parameter, so that each is set up once.
        if hasattr(inner, "callspec"):
            self.callspec, self.cls = inner.callspec, getattr(inner, "cls", None)
        path, line, name = inner.reportinfo()
        self._where = (path, line, with_kernel(name, self.kmt_kernel))
        self._takes_kernel = FIXTURE in getattr(inner, "fixturenames", ())
        function = getattr(inner, "function", None)
        # pytest's -k looks at the names in the function's __dict__ too.
        if function is not None:
            self.function = function
            self.is_property = bool(getattr(getattr(inner, "obj", function), "is_hypothesis_test", False))

    def found_at(self, found: Found) -> None:
        """Take over what a guest said of the test."""
        self._where = (self.path, found.location[1], with_kernel(found.location[2], self.kmt_kernel))
        self.is_property = found.is_property

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Where the test is in the source."""
        return self._where

    @property
    def simulable(self) -> bool:
        """It takes the fixture ``kernel``, itself or by others, and is not marked ``real``."""
        return self._takes_kernel and self.get_closest_marker("real") is None

    def need(self, memory_mib: int) -> Need:
        """What the test's ``requires`` and ``pristine`` markers ask of its guest."""
        cpus, compiler = 1, False
        for marker in self.iter_markers("requires"):
            cpus = max(cpus, int(marker.kwargs.get("cpus", 1)))
            compiler = compiler or "clang" in marker.args
        machine = Machine(cpus=cpus, memory_mib=memory_mib, compiler=compiler)
        return Need(machine, pristine=self.get_closest_marker("pristine") is not None)

    def runtest(self) -> None:
        """Never called: the plugin's loop has guests run it."""
        raise AssertionError(f"{self.nodeid} would run on the host")


def expand(item: pytest.Item, kernels: Sequence[str]) -> list[pytest.Item]:
    """One item a kernel for an item that pytest made."""
    assert item.parent is not None
    return [
        KernelItem.from_parent(
            item.parent, name=with_kernel(item.name, kernel), kernel=kernel, guest_id=item.nodeid, inner=item
        )
        for kernel in kernels
    ]


def adopt(found: Found, parent: pytest.Collector, kernels: Sequence[str]) -> list[KernelItem]:
    """One item a kernel for a test that only a guest could collect."""
    made = []
    for kernel in kernels:
        name = with_kernel(found.id.split("::", 1)[1], kernel)
        item: KernelItem = KernelItem.from_parent(parent, name=name, kernel=kernel, guest_id=found.id, inner=None)
        for mark in found.marks:
            item.add_marker(mark)
        item.found_at(found)
        made.append(item)
    return made


def runs_in_guests(item: pytest.Item | pytest.Module, globs: Sequence[str], root: Path) -> bool:
    """False for ``host_only`` tests and for files that no glob of ``[tool.kmt] guest`` names."""
    if item.get_closest_marker("host_only") is not None:
        return False
    try:
        path = item.path.relative_to(root).as_posix()
    except ValueError:  # outside the project: it would not travel
        return False
    return any(fnmatchcase(path, glob) for glob in globs)
