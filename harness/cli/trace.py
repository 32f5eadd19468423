"""``python -m harness trace``: connections as they open, move and close; a table, or a JSON object a line.

Which tracer, and how it got into the kernel, is said first, and why the others did not. The JSON lines are
``started`` (``tracer``, ``stage``, ``btf`` and ``tried``, a line for everything that was or could have been tried),
``closed`` (a connection at its end; counts in bytes and segments, durations in seconds) and ``stopped`` (what the
programs counted, losses among it; ``missed``, how often one could not run; what each map and helper refused).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections import deque
from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.cli import common
from harness.ebpf import core, events
from harness.ebpf.fallback import Attempt, Stage
from harness.ebpf.live import running_kernel
from harness.tracer import fentry, kprobe
from harness.tracer.fargate import on_fargate
from harness.tracer.select import new_tracer
from harness.tracer.tracer import Tracer

_MOST_ROWS = 30
_STEP = 0.25
"""Seconds between two looks."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    common.add_bpf_options(parser)
    common.add_output_options(parser)
    choices = ("auto", "fentry", "kprobe")
    parser.add_argument("--tracer", choices=choices, default="auto", help="auto: fentry on Fargate, else kprobe")


def run(options: argparse.Namespace) -> int:
    """Load the tracer, show what it sees until it is to stop, take it out again."""
    settings = common.bpf_settings(options)
    kernel = running_kernel()
    with contextlib.ExitStack() as stack:
        if options.tracer == "kprobe":
            tracer: Tracer = stack.enter_context(kprobe.load_tracer(kernel, settings))
        else:
            fargate = (lambda: True) if options.tracer == "fentry" else (lambda: on_fargate(os.environ))
            tracer = stack.enter_context(new_tracer(kernel, settings, fargate=fargate))
        stack.callback(tracer.stop, wait=False)
        (_lines if options.json else _table)(tracer, options)
    return 0


def _lines(tracer: Tracer, options: argparse.Namespace) -> None:
    common.line(event="started", **_how(tracer), programs=list(tracer.programs))
    with contextlib.suppress(KeyboardInterrupt):
        for _ in common.until_done(options):
            _tell(tracer.closed(_STEP))
    tracer.stop(wait=False)
    _tell(tracer.closed(0))
    refused = {"map_errors": tracer.errors.maps(), "helper_errors": tracer.errors.helpers()}
    common.line(event="stopped", **tracer.counters()._asdict(), missed=tracer.missed(), **refused)


def _tell(closed: Iterable[events.Conn]) -> None:
    for conn in closed:
        common.line(event="closed", **fields(conn.tuple, conn.stats), retransmits=conn.retransmits,
                    rtt_us=conn.tcp.rtt, seconds=conn.stats.duration / 1e9)  # fmt: skip


def _table(tracer: Tracer, options: argparse.Namespace) -> None:
    console = Console()
    gone: deque[events.Conn] = deque(maxlen=_MOST_ROWS)
    with Live(console=console, auto_refresh=False, screen=False) as live, contextlib.suppress(KeyboardInterrupt):
        for _ in common.until_done(options):
            gone.extend(tracer.closed(_STEP))
            live.update(_drawn(tracer, gone), refresh=True)
    if not console.is_terminal:
        sys.stdout.flush()


def _drawn(tracer: Tracer, gone: deque[events.Conn]) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in ("pid", "from", "to", "way", "sent", "received", "state"):
        table.add_column(head, no_wrap=True, justify="right" if head in ("pid", "sent", "received") else "left")
    rows = [(t, s, "open") for t, s in tracer.connections().items()]
    rows += [(c.tuple, c.stats, f"closed after {c.stats.duration / 1e9:.3f} s") for c in reversed(gone)]
    for key, stats, state in rows[:_MOST_ROWS]:
        shown = fields(key, stats)
        words = [str(shown[name]) for name in ("pid", "source", "destination", "direction", "sent", "received")]
        table.add_row(*words, Text(state, style="dim" if state != "open" else "green"))
    more = f", {len(rows) - _MOST_ROWS} more rows" if len(rows) > _MOST_ROWS else ""
    counted = ", ".join(f"{name} {value}" for name, value in tracer.counters()._asdict().items())
    refused = {**tracer.errors.maps(), **tracer.errors.helpers()}
    errors = [f"{name} refused: {', '.join(f'{n} {e}' for e, n in of.items())}" for name, of in refused.items()]
    how = _how(tracer)
    btf = f", {how['btf']} BTF" if how["btf"] else ""
    title = f"{how['tracer']} tracer ({how['stage']}{btf}, {'ring' if tracer.ringbuf else 'perf'} buffer)"
    others = [Text(line, style="dim") for line in how["tried"] if not line.endswith(": won")]
    notes = [f"{counted}, missed {tracer.missed()}{more}", *errors]
    return Group(Text(title, style="bold"), *others, table, *(Text(note, style="dim") for note in notes))


def fields(key: events.ConnTuple, stats: events.ConnStats) -> dict[str, Any]:
    """A connection as the members of a JSON line."""
    return {
        "pid": key.pid,
        "source": _end(key.source, key.sport),
        "destination": _end(key.destination, key.dport),
        "netns": key.netns,
        "protocol": "tcp" if key.metadata & events.TCP else "udp",
        "direction": events.Direction(stats.direction).name.lower(),
        "sent": stats.sent_bytes,
        "received": stats.recv_bytes,
    }


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _how(tracer: Tracer) -> dict[str, Any]:
    """Which tracer and stage won, whose BTF it used, and what became of the others."""
    attempts: tuple[Attempt, ...] = getattr(tracer, "attempts", ())
    stage = getattr(tracer, "stage", Stage.CORE)
    asset = kprobe.MODULE if tracer.kind == "kprobe" else fentry.MODULE
    code = core.result_codes().get(asset) if stage is Stage.CORE else None
    tried = (
        [] if tracer.kind == "fentry" else ["fentry: not tried: it is for ECS and EKS Fargate only, or not asked for"]
    )
    return {
        "tracer": tracer.kind,
        "stage": stage,
        "btf": code.words if code is not None else None,
        "ring_buffer": tracer.ringbuf,
        "tried": [*tried, *map(str, attempts or [f"{stage}: won"])],
    }
