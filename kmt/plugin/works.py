"""Which guests run what: the tests of a session as units of work and jobs, kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from kmt.backends.base import Backend, Machine
from kmt.config import Config
from kmt.matrix import Row, simulated
from kmt.plugin.items import KernelItem
from kmt.plugin.rows import Rows
from kmt.run import durations
from kmt.run.budget import Budget
from kmt.run.shared import Job
from kmt.run.spread import Need, Unit, guests_each, units


def works(
    items: Sequence[KernelItem], rows: Sequence[Row], settings: Config, ours: Budget
) -> Iterator[tuple[Row, tuple[str, ...], tuple[Unit, ...]]]:
    """For each row that has tests: their ids in order, and the units that its guests run."""
    needs: dict[str, dict[str, Need]] = {}
    for item in items:
        needs.setdefault(item.kmt_kernel, {})[item.kmt_id] = item.need(settings.memory)
    wanted = [row for row in rows if row.name in needs]
    seconds = durations.load(settings.root)
    slots = ours.guests(Machine(memory_mib=settings.memory))
    for row, guests in zip(wanted, guests_each(len(wanted), slots), strict=True):
        asked = needs[row.name]
        if row.ssh:  # one machine, as it is: tests of two guests would meet in its kernel
            guests = 1
            asked = {i: replace(need, machine=Machine(memory_mib=settings.memory)) for i, need in asked.items()}
        work = units(asked, fresh=settings.fresh, by=settings.spread, guests=guests, seconds=seconds)
        yield row, tuple(asked), work


def jobs_of(
    items: Sequence[KernelItem], chosen: Rows, backend: Callable[[Row], Backend], settings: Config, ours: Budget
) -> list[Job]:
    """A job a row that has tests. ``backend`` says what runs a row."""
    made = []
    for row, ids, work in works(items, chosen.rows, settings, ours):
        fit = frozenset(item.kmt_id for item in items if item.kmt_kernel == row.name and item.simulable)
        instead = backend(simulated(row)) if chosen.may_be_simulated(row) else None
        why = chosen.instead.get(row.name, "")
        made.append(Job(row, backend(row), row.name in chosen.strict, ids, work, fit, why, instead))
    return made
