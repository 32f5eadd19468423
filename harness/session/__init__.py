"""The whole flow in one object: load the tracer, start the watcher, poll for configurations, apply them live.

``settings`` is what a configuration file says, ``updates`` what a remote configuration may change, ``session`` the
object. ``python -m harness run --config FILE`` runs it.
"""

from harness.session.session import Session
from harness.session.settings import Settings

__all__ = ["Session", "Settings"]
