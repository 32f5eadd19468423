"""``python -m harness trace``: connections as they open, move and close; a table, or a JSON object a line.

The JSON lines are ``started`` (which tracer, how it got in), ``closed`` (a connection at its end; counts in bytes and
segments, durations in seconds) and ``stopped`` (what the programs counted, losses among it).
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.cli import common
from harness.ebpf import core, events
from harness.ebpf.live import running_kernel
from harness.tracer import fentry

_MOST_ROWS = 30
_STEP = 0.25
"""Seconds between two looks."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    common.add_bpf_options(parser)
    common.add_output_options(parser)


def run(options: argparse.Namespace) -> int:
    """Load the tracer, show what it sees until it is to stop, take it out again."""
    settings = common.bpf_settings(options)
    with fentry.load_tracer(running_kernel(), settings, fargate=lambda: True) as tracer:
        (_lines if options.json else _table)(tracer, options)
    return 0


def _lines(tracer: fentry.Tracer, options: argparse.Namespace) -> None:
    common.line(event="started", tracer=tracer.kind, probes=list(tracer.programs), how=_how(tracer))
    for _ in common.until_done(options):
        for conn in tracer.closed(_STEP):
            common.line(event="closed", **fields(conn.tuple, conn.stats), retransmits=conn.retransmits,
                        rtt_us=conn.tcp.rtt, seconds=conn.stats.duration / 1e9)  # fmt: skip
    common.line(event="stopped", **tracer.counters()._asdict())


def _table(tracer: fentry.Tracer, options: argparse.Namespace) -> None:
    console = Console()
    gone: deque[events.Conn] = deque(maxlen=_MOST_ROWS)
    with Live(console=console, auto_refresh=False, screen=False) as live:
        for _ in common.until_done(options):
            gone.extend(tracer.closed(_STEP))
            live.update(_drawn(tracer, gone), refresh=True)
    if not console.is_terminal:
        sys.stdout.flush()


def _drawn(tracer: fentry.Tracer, gone: deque[events.Conn]) -> RenderableType:
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
    return Group(Text(_how(tracer), style="bold"), table, Text(f"{counted}{more}", style="dim"))


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


def _how(tracer: fentry.Tracer) -> str:
    code = core.result_codes().get(fentry.ASSET.removesuffix(".o"))
    return f"{tracer} (CO-RE, BTF: {code.name.removesuffix('_BTF').lower() if code is not None else 'none'})"
