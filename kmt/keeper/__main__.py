"""``python -m kmt.keeper ROOT IDLE_SECONDS``: started by ``client.ensure``, in a session of its own."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from kmt import runs
from kmt.keeper.server import Keeper


def main() -> int:
    """Serve the project at ROOT until nothing is left to keep, or a signal comes."""
    root, idle = Path(sys.argv[1]), float(sys.argv[2])
    with runs.start([], ["kmt.keeper", str(root)]) as run:
        keeper = Keeper(run, idle)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: keeper.stopping.set())
        keeper.serve()
        run.finish(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
