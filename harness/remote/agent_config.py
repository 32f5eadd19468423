"""(pure) The product AGENT_CONFIG: several files, each a layer of the agent's configuration, and the order they go in.

Files are ``datadog/<org>/AGENT_CONFIG/<id>/<file>``. The one with id ``configuration_order`` holds ``order`` and
``internal_order``, two lists of ids; every other is a layer, ``{"name": …, "config": {"log_level": …}}``. Laws:

- layers are laid down from the end of ``order`` to its start, then from the end of ``internal_order`` to its start,
  and each overwrites the one before, with an empty value too: the first layer named in ``internal_order`` that exists
  wins, else the first of ``order``;
- a layer that no list names, and a name without a layer, mean nothing;
- one file that cannot be used, and there is no configuration at all, and every such file has its error: by path;
- without an order there is no configuration, and no error;
- the outcome does not depend on the order of the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from harness.remote import paths
from harness.remote.errors import ConfigError, PathError, RemoteError
from harness.remote.state import ApplyState, ApplyStatus

PRODUCT = "AGENT_CONFIG"
ORDER_ID = "configuration_order"


class Merged(NamedTuple):
    """What the layers add up to. Empty where there is no configuration or something is wrong with it."""

    log_level: str = ""
    errors: Mapping[str, RemoteError] = {}
    """What is wrong, by path."""

    @property
    def statuses(self) -> dict[str, ApplyStatus]:
        """The apply status of each file that is wrong."""
        return {path: ApplyStatus(ApplyState.ERROR, str(error)) for path, error in self.errors.items()}


def merge(files: Mapping[str, bytes]) -> Merged:
    """Merge the files of the product, by path; never raises."""
    levels: dict[str, str] = {}
    order: list[str] = []
    seen: dict[str, str] = {}
    errors: dict[str, RemoteError] = {}
    for path, raw in sorted(files.items()):
        try:
            config_id = _config_id(path)
            if seen.setdefault(config_id, path) != path:
                raise ConfigError(f"{path}: {seen[config_id]} has the same id")
            if config_id == ORDER_ID:
                order = _order(path, raw)
            else:
                levels[config_id] = _log_level(path, raw)
        except RemoteError as error:
            errors[path] = error
    if errors:
        return Merged(errors=errors)
    return Merged(next((levels[name] for name in order if name in levels), ""))


def _config_id(path: str) -> str:
    place = paths.parse(path)
    if place.source != paths.DATADOG or place.product != PRODUCT:
        raise PathError(f"{path}: is no file of {PRODUCT}", hint=f"expected datadog/<org>/{PRODUCT}/<id>/<file>")
    return place.config_id


def _order(path: str, raw: bytes) -> list[str]:
    """Ids of layers, the strongest first."""
    whole = _object(path, raw)
    lists = [whole.get(name) or [] for name in ("internal_order", "order")]
    if not all(isinstance(ids, list) and all(isinstance(id, str) for id in ids) for ids in lists):
        raise ConfigError(f"{path}: 'order' and 'internal_order' must be lists of config ids")
    return [id for ids in lists for id in ids]


def _log_level(path: str, raw: bytes) -> str:
    config = _object(path, raw).get("config")
    level = config.get("log_level") if isinstance(config, dict) else config
    if level is None:
        return ""
    if not isinstance(level, str):
        raise ConfigError(f"{path}: 'config.log_level' must be a string")
    return level


def _object(path: str, raw: bytes) -> dict[str, Any]:
    try:
        whole = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is no JSON: {str(error)[:200]}") from None
    if not isinstance(whole, dict):
        raise ConfigError(f"{path}: is no JSON object")
    return whole
