"""(pure) The grammar of configuration paths.

Two shapes, matched whole: ``datadog/<org>/<product>/<config id>/<file>`` and ``employee/<product>/<config id>/<file>``.
Laws: ``org`` is ASCII digits and fits a signed 64-bit integer; the other components are non-empty and hold no
slash, and may hold anything else; ``str(parse(p))`` is ``p`` but for leading zeros of the organisation;
parsing takes time linear in the path's length, whatever is in it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from harness.remote.errors import PathError

DATADOG = "datadog"
EMPLOYEE = "employee"
_SHAPES = {
    DATADOG: re.compile(r"datadog/([0-9]+)/([^/]+)/([^/]+)/([^/]+)"),
    EMPLOYEE: re.compile(r"employee()/([^/]+)/([^/]+)/([^/]+)"),
}
_ORG_MAX = 2**63 - 1
_ORG_DIGITS = len(str(_ORG_MAX))


class ConfigPath(NamedTuple):
    """A parsed path. ``org`` is None for the ``employee`` source."""

    source: str
    org: int | None
    product: str
    config_id: str
    file: str

    def __str__(self) -> str:
        org = () if self.org is None else (str(self.org),)
        return "/".join((self.source, *org, self.product, self.config_id, self.file))


def parse(path: str) -> ConfigPath:
    """Parse ``path``, or raise ``PathError`` that says which of the three things is wrong."""
    source = path.partition("/")[0]
    shape = _SHAPES.get(source) if "/" in path else None
    if shape is None:
        raise PathError(f"config path {path!r} has an unknown source", hint="expected datadog/… or employee/…")
    match = shape.fullmatch(path)
    if match is None:
        wanted = "datadog/<org>/" if source == DATADOG else "employee/"
        raise PathError(f"config path {path!r} has a wrong format", hint=f"expected {wanted}<product>/<id>/<file>")
    digits, product, config_id, file = match.groups()
    return ConfigPath(source, _org(digits, path) if digits else None, product, config_id, file)


def _org(digits: str, path: str) -> int:
    """The organisation's number; its length is checked first, for int() of a very long string is slow, then refused."""
    significant = digits.lstrip("0") or "0"
    if len(significant) > _ORG_DIGITS or (org := int(significant)) > _ORG_MAX:
        raise PathError(f"config path {path[:80]!r} has an organisation that does not fit 64 bits")
    return org
