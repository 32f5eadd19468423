"""``python -m harness watch``: shared libraries as processes come and go with them; tables, or a JSON object a line.

Without ``--rule`` TLS libraries are watched, and hooked where the kernel lets us, so that the plaintext bytes of each
process are shown too. With ``--debug`` the debug endpoints are served meanwhile. The JSON lines are ``started`` (which
stage won), ``library``, ``blocked``, ``traffic`` and ``rule`` (what has changed, as ``watcher/snapshot.py`` says)
and ``stopped`` (what was counted, losses among it).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness.cli import common
from harness.debugger import Debugger, DebugServer
from harness.ebpf.live import running_kernel
from harness.ebpf.settings import BpfSettings
from harness.errors import HarnessError, SettingsError
from harness.kernel_api import KernelApi
from harness.telemetry import DEFAULT
from harness.watcher.identity import FilePath, PathIdentifier
from harness.watcher.rules import Rule
from harness.watcher.snapshot import Snapshot, Tally, changes
from harness.watcher.tls import TlsProbes
from harness.watcher.watcher import Watcher

_MOST_ROWS = 20
_MOST_PIDS = 8
_STEP = 0.25
"""Seconds between two looks."""
_COUNTED = ("usm.so_watcher.", "usm.file_registry.", "usm.process.monitor.")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    common.add_bpf_options(parser)
    common.add_output_options(parser)
    parser.add_argument(
        "--rule", action="append", default=[], metavar="REGEX", help="watch libraries of such a path instead (often)"
    )
    parser.add_argument("--debug", metavar="ADDRESS", help="debug endpoints at 127.0.0.1:PORT or unix:/PATH")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="the token that writes to them take")


def run(options: argparse.Namespace) -> int:
    """Watch, show what is seen until it is to stop, and take everything off again."""
    settings = common.bpf_settings(options)
    token = _token(options)
    with ExitStack() as stack:
        view = _watched(stack, running_kernel(), settings, options.rule)
        if options.debug:
            debugger = Debugger(token=token)
            debugger.add_registry(view.watcher.registry)
            debugger.add_attacher("native", view.watcher.attach_pid, view.watcher.detach_pid)
            view.debug = stack.enter_context(DebugServer(debugger, options.debug)).address
        (_lines if options.json else _tables)(view, options)
    return 0


def _token(options: argparse.Namespace) -> str | None:
    if options.token_file is None:
        return None
    if not options.debug:
        raise SettingsError("a token is for debug endpoints, and there are none", hint="add --debug ADDRESS")
    try:
        return str(options.token_file.read_text().strip())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"no token in {options.token_file}: {error}") from None


@dataclass
class View:
    """What is watched, and what was last seen of it."""

    watcher: Watcher
    tally: Tally
    probes: TlsProbes | None
    proc_root: Path = Path("/proc")
    notes: list[str] = field(default_factory=list)
    debug: str = ""

    def snapshot(self) -> Snapshot:
        """Now; processes that have ended are shown once more, then forgotten."""
        now = Snapshot.of(self.watcher.registry, self.tally, self.probes)
        if self.probes is not None:
            for pid in now.traffic:
                if not (self.proc_root / str(pid)).exists():
                    self.probes.forget(pid)
        return now

    def how(self) -> str:
        """Which stage won, or that none did."""
        return str(self.watcher.program or "no program: running processes only")


def _watched(stack: ExitStack, kernel: KernelApi, settings: BpfSettings, patterns: list[str]) -> View:
    """A watcher that has started, with rules of these patterns, or for TLS."""
    tally, probes, notes = Tally(), None, []
    if patterns:
        rules = tuple(Rule.of(pattern, _nothing, _nothing) for pattern in patterns)
    else:
        try:
            probes = stack.enter_context(TlsProbes(kernel, settings))
            rules = probes.rules()
        except HarnessError as error:
            notes.append(f"TLS libraries are not hooked: {error}")
            rules = tuple(Rule.of(pattern, _nothing, _nothing) for pattern in (r"libssl\.so", r"libgnutls\.so"))
    watcher = stack.enter_context(Watcher(kernel, settings, tally.counting(rules)))
    return View(watcher, tally, probes, kernel.proc_root, notes)


def _nothing(_: FilePath) -> None:
    """What is only to be shown needs nothing done."""


def _counters() -> dict[str, int]:
    return {m.name: m.value for m in DEFAULT.metrics() if m.name.startswith(_COUNTED)}


def _lines(view: View, options: argparse.Namespace) -> None:
    hooked = str(view.probes.stage) if view.probes else None
    common.line(event="started", how=view.how(), tls=hooked, debug=view.debug or None, notes=view.notes)
    before = Snapshot()
    with suppress(KeyboardInterrupt):
        for _ in common.until_done(options):
            after = view.snapshot()
            for change in changes(before, after):
                common.line(**change)
            before = after
            time.sleep(_STEP)
    losses = view.probes.counters()._asdict() if view.probes else {}
    common.line(event="stopped", **_counters(), **{f"tls.{name}": value for name, value in losses.items()})


def _tables(view: View, options: argparse.Namespace) -> None:
    with Live(console=Console(), auto_refresh=False) as live:

        def draw() -> None:
            live.update(drawn(view.snapshot(), view.how(), _notes(view), view.proc_root), refresh=True)

        with suppress(KeyboardInterrupt):
            for _ in common.until_done(options):
                draw()
                time.sleep(_STEP)
        draw()  # off a terminal the last one is the only one that is printed


def _notes(view: View) -> list[str]:
    counted = [f"{name.rpartition('.')[2]} {value}" for name, value in _counters().items() if value]
    return [*view.notes, *([f"debug endpoints at {view.debug}"] if view.debug else []), ", ".join(counted)]


def drawn(now: Snapshot, how: str, notes: list[str], proc_root: Path = Path("/proc")) -> RenderableType:
    """A snapshot as tables; those with nothing in them are left out."""
    files = sorted(now.files.values(), key=lambda file: (-len(file.pids), file.path))
    traffic = sorted(now.traffic.items(), key=lambda item: -sum(item[1]))
    return Group(
        Text(how, style="bold"),
        *_table(
            ("library", "device:inode", "#processes", "pids"),
            [(_path(f.path), _id(f.id), len(f.pids), _pids(f.pids)) for f in files],
        ),
        *_table(
            ("process", "#pid", "#received", "#sent"), [(_name(proc_root, pid), pid, *moved) for pid, moved in traffic]
        ),
        *_table(
            ("rule", "#hooked", "#failed", "#unhooked"),
            [(name, hits.activated, hits.failed, hits.deactivated) for name, hits in now.rules.items()],
        ),
        *_table(("blocked", "device:inode"), [(_path(path), _id(id)) for id, path in now.blocked.items()]),
        *(Text(note, style="dim") for note in notes if note),
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[RenderableType]:
    """A table of the first rows, numbers (``#``) to the right, and how many more there are; nothing for none."""
    if not rows:
        return []
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in heads:
        table.add_column(head.removeprefix("#"), no_wrap=True, justify="right" if head[0] == "#" else "left")
    for row in rows[:_MOST_ROWS]:
        table.add_row(*(Text(str(value)) for value in row))
    more = len(rows) - _MOST_ROWS
    return [table, *([Text(f"{more} more", style="dim")] if more > 0 else []), Text()]


def _pids(pids: Sequence[int]) -> str:
    return " ".join(map(str, pids[:_MOST_PIDS])) + (" …" if len(pids) > _MOST_PIDS else "")


def _path(path: str) -> str:
    """Line ends and bytes that are no UTF-8 as escapes."""
    return repr(path)[1:-1]


def _id(id: PathIdentifier) -> str:
    return f"{id.dev:#x}:{id.inode}"


def _name(proc_root: Path, pid: int) -> str:
    try:
        return repr((proc_root / str(pid) / "comm").read_bytes().rstrip(b"\n"))[2:-1]
    except OSError:
        return "(ended)"
