"""The debug endpoints: what a running watcher traces, blocks and counts, over HTTP.

``endpoints`` answers requests (values in, values out), ``server`` carries them over a socket within its limits,
``address`` says which socket. Why so: docs/decisions/debug-endpoints.md.
"""

from harness.debugger.endpoints import Debugger
from harness.debugger.server import DebugServer, Limits

__all__ = ["DebugServer", "Debugger", "Limits"]
