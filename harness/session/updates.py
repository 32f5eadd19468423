"""(pure) What remote configurations may change of a running session, and what they say.

Products ``TRACER`` and ``WATCHER``, one file each, a JSON object whose members replace those of the session's own
configuration; without a file those hold again. ``AGENT_CONFIG`` sets the log level (``remote.agent_config``). Laws:
a file that is wrong in any part means an error and no change at all; what cannot change while the programs are in the
kernel is refused by name; the outcome depends on the files and the session's own configuration, not on what was
before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from harness.errors import HarnessError
from harness.remote.errors import ConfigError
from harness.remote.state import PRODUCTS as _PRODUCTS
from harness.remote.state import Config
from harness.session import settings
from harness.session.settings import LEVELS, Live
from harness.tracer.settings import TracerSettings

TRACER, WATCHER = "TRACER", "WATCHER"
PRODUCTS = _PRODUCTS | {TRACER, WATCHER}
"""Products that a session can receive."""
COLLECT = tuple(field.name for field in fields(TracerSettings) if field.name.startswith("collect_"))
_FIXED = tuple(field.name for field in fields(TracerSettings) if field.name not in COLLECT)


def tracer(base: Live, configs: Mapping[str, Config]) -> Live:
    """The session's live settings with what ``TRACER`` says; ConfigError, or SettingsError of a value."""
    wanted = _only(configs)
    for name in _FIXED:
        if name in wanted:
            raise ConfigError(f"{name} is fixed when the programs are loaded", hint="set it in the file, and restart")
    _check_known(wanted, (*COLLECT, "max_closed_connections_buffered"))
    collect = {name: wanted.pop(name) for name in COLLECT if name in wanted}
    return replace(base, tracer=replace(base.tracer, **collect), **wanted)


def watcher(base: Live, configs: Mapping[str, Config]) -> Live:
    """The same for ``WATCHER``."""
    wanted = _only(configs)
    _check_known(wanted, ("rules",))
    return replace(base, rules=settings.rules(wanted["rules"])) if wanted else base


def log_level(base: Live, level: str) -> Live:
    """The same for the merged ``AGENT_CONFIG``; empty: the session's own."""
    if level and level.lower() not in LEVELS:
        raise ConfigError(f"log_level {level[:40]!r} is not known", hint=f"one of {', '.join(LEVELS)}")
    return replace(base, log_level=level.lower()) if level else base


def _only(configs: Mapping[str, Config]) -> dict[str, Any]:
    """The object in the product's only file; empty if there is none."""
    if len(configs) > 1:
        raise ConfigError(f"there are {len(configs)} files of one product, and no order among them", hint="send one")
    for config in configs.values():
        try:
            whole = json.loads(config.raw)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{config.path}: is no JSON: {str(error)[:200]}") from None
        if not isinstance(whole, dict):
            raise ConfigError(f"{config.path}: is no JSON object")
        return whole
    return {}


def _check_known(wanted: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in sorted(wanted.keys() - set(known)):
        raise ConfigError(f"{name[:80]!r} is not known", hint=f"one of {', '.join(known)}")


def reason(error: HarnessError) -> str:
    """What the server is told."""
    return str(error)[:1000]
