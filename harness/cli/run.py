"""``python -m harness run --config FILE``: the whole agent, until SIGTERM or Ctrl-C.

Loads the tracer, watches libraries, polls for configurations and applies them, and shows itself at the debug endpoints
(``/metrics`` among them). The file is TOML: ``session/settings.py`` says what may stand in it. With ``--json`` every
connection that closes is a line.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from harness.cli import common, trace
from harness.ebpf.live import running_kernel
from harness.errors import SettingsError
from harness.session import Session
from harness.session.settings import parse
from harness.until_told import until_told

_STEP = 0.1


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the session's settings, TOML")
    parser.add_argument("--json", action="store_true", help="connections that close as JSON lines")


def run(options: argparse.Namespace) -> int:
    """Run a session until it is told to stop."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    try:
        text = options.config.read_text()
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"{options.config}: {error}") from None
    named = os.environ.get("KMT_BPF_DIR")
    settings = parse(text, options.config, bpf_dir=Path(named) if named else None)
    told = until_told()
    with Session(running_kernel(), settings) as session:
        common.line(
            event="started",
            tracer=str(session.tracer) if session.tracer else None,
            watcher=str(session.watcher.program) if session.watcher else None,
            debug=session.debug.address if session.debug else None,
        )
        while not told(_STEP):
            _tell(session, options)
        session.close(wait=False)
    _tell(session, options)
    common.line(event="stopped")
    return 0


def _tell(session: Session, options: argparse.Namespace) -> None:
    """Take what has closed, in any case: what nobody takes would be counted as dropped."""
    for conn in session.take_closed():
        if options.json:
            common.line(event="closed", **trace.fields(conn.tuple, conn.stats))
