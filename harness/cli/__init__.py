"""The faces for people: ``python -m harness COMMAND``, one module a command.

A command is a module of this package with ``add_options(parser)`` and ``run(options) -> int`` (the exit status), and
a line in ``COMMANDS``. Laws: an error of the harness is one line on standard error and status 1, wrong words are
status 2, Ctrl-C ends a command as if it had come to its end; nothing but the asked-for goes to standard output.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from harness.errors import HarnessError

COMMANDS = {
    "run": "the whole agent: tracer, watcher, remote configurations, debug endpoints",
    "trace": "the TCP connections of this machine, as they come and go",
    "watch": "the shared libraries that processes use, and the plaintext through those for TLS",
}
"""Name of a command, which is that of its module, and what its help says."""


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    whole = argparse.ArgumentParser(prog="python -m harness", description="The systems under test, by hand.")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, words in COMMANDS.items():
        own = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
        importlib.import_module(f"harness.cli.{name}").add_options(own)
    return whole


def main(words: Sequence[str] | None = None) -> int:
    """Run the command that ``words`` name (None: those of this process); returns the exit status."""
    options = parser().parse_args(words)
    try:
        return int(importlib.import_module(f"harness.cli.{options.command}").run(options))
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # Who read us has gone; the interpreter flushes once more at its end, to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
