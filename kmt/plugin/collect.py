"""Collecting in a guest what the host cannot import (a module that needs bcc, say).

Laws: the guest is started by the first such module, serves all of them, and has ended when collection has; it has
what the tests will have, the built programs too; a kernel that cannot be had, or dies, leaves it to the next.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kmt.backends.base import Backend, Machine
from kmt.config import Config
from kmt.deadline import Deadline
from kmt.errors import AgentError, ArchiveError, ImageError, KmtError, VmError
from kmt.guest.wire import Kind
from kmt.kernel import Kernel
from kmt.matrix import Row
from kmt.run.guest import ARTIFACTS_DIR, Plan, request, send_files
from kmt.run.link import Link
from kmt.run.shared import fetch
from kmt.run.tree import survey
from kmt.runs import Run


@dataclass(frozen=True)
class Found:
    """A test that a guest collected."""

    id: str
    location: tuple[str, int | None, str]
    marks: tuple[pytest.MarkDecorator, ...]
    is_property: bool

    @property
    def is_host_only(self) -> bool:
        """It was collected in a guest and is marked never to run in one."""
        return any(mark.name == "host_only" for mark in self.marks)


NEXT = (ArchiveError, ImageError, VmError)
"""What happens to a kernel, and says nothing of the module."""


class FirstThatCan:
    """The rows' guests in their order: one that did not come up is not tried again. ``close()`` ends them."""

    def __init__(self, collectors: Sequence[GuestCollector]) -> None:
        self._left = list(collectors)
        self._gone: list[str] = []

    def collect(self, path: str) -> list[Found]:
        """The tests of one file, by its root-relative path. Raises AgentError, which names the rows."""
        died = []
        for one in list(self._left):
            try:
                return one.collect(path)
            except NEXT as error:
                why = f"{one.row.name}: {error}"
                if one.came_up:
                    died.append(why)
                else:
                    self._gone.append(why)
                    self._left.remove(one)
            except KmtError as error:
                raise AgentError(f"{one.row.name}: {error.message}", hint=error.hint) from None
        raise AgentError("\n".join([*self._gone, *died]))

    def close(self) -> None:
        """End the guests that there are."""
        for one in self._left:
            one.close()


@dataclass
class GuestCollector:
    """Starts one guest of ``row`` when first asked; ``close()`` ends it. ``came_up``: one has, at least once."""

    row: Row
    backend: Backend
    config: Config
    plan: Plan
    run: Run
    came_up: bool = False
    _stack: ExitStack = field(default_factory=ExitStack)
    _bpf: str = ""
    _link: Link | None = None

    def collect(self, path: str) -> list[Found]:
        """The tests of one file, by its root-relative path. Raises KmtError."""
        try:
            self._link = self._link or self._start()
            return self._collect(self._link, path)
        except NEXT:
            self.close()  # the next module gets a guest of its own
            raise

    def _collect(self, link: Link, path: str) -> list[Found]:
        body = request(
            self.plan,
            files=[path],
            ids=[],
            kernel={"name": self.row.name, "accelerator": "none", "simulated": self.backend.simulated},
            env={"KMT_ARTIFACTS": link.inside(ARTIFACTS_DIR), **({"KMT_BPF_DIR": self._bpf} if self._bpf else {})},
            collect_only=True,
            room=link.inside(""),
        )
        link.send(Kind.PYTEST, body)
        found: list[Found] = []
        errors: list[str] = []
        while True:
            frame = link.receive(Kind.COLLECTED, Kind.OUTPUT, Kind.EXIT)
            if frame.kind is Kind.COLLECTED:
                found = [_found(item) for item in frame.body.get("items", [])]
                errors = [str(e.get("text")) for e in frame.body.get("errors", [])]
            elif frame.kind is Kind.EXIT:
                break
        if errors:
            raise AgentError("the guest cannot collect it either:\n" + "\n".join(errors))
        return found

    def _start(self) -> Link:
        kernel = fetch(self.row, self.backend, self.config, lambda label, done, total: None)
        machine = Machine(memory_mib=self.config.memory)
        self.backend.prepare(kernel, machine)
        factor = self.backend.deadline_factor
        deadline = Deadline(self.config.timeout * factor)
        directory = self.run.kernel_dir(f"{self.row.name}-collecting")
        vm = self._stack.enter_context(self.backend.launch(kernel, machine, directory, deadline))
        link = Link(vm, deadline, factor=factor, cancel=threading.Event())
        link.hello()
        tree = None if self.backend.shares_files else survey(self.plan.root, self.config.file_limit)
        self._bpf = send_files(link, tree, self._programs(kernel))
        self.came_up = True
        return link

    def _programs(self, kernel: Kernel) -> list[Path]:
        """Built for that kernel; what cannot be built is said when the tests are to run."""
        if not (self.config.sources or self.config.workloads):
            return []
        from kmt import build, build_kernel  # only where there is something to build

        try:
            return build_kernel.directories(self.config, build.build(self.config), kernel)
        except KmtError:
            return []

    def close(self) -> None:
        """End the guest, if there is one."""
        link, self._link = self._link, None
        try:
            if link is not None:
                with suppress(KmtError):  # it may be dead already
                    link.goodbye()
        finally:
            self._stack.close()


def _found(item: dict[str, Any]) -> Found:
    path, line, name = item["location"]
    marks = tuple(getattr(pytest.mark, m["name"])(*m["args"], **m["kwargs"]) for m in item["markers"])
    return Found(str(item["id"]), (str(path), line, str(name)), marks, bool(item["property"]))
