"""Ending a machine's process."""

from __future__ import annotations

import subprocess

PATIENCE = 3.0
"""Seconds between asking and killing."""


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it: asked first (SIGTERM, on which QEMU quits cleanly), killed when it does not listen."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
