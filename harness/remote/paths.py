"""(pure) The grammar of configuration paths.

Two shapes, matched whole: ``datadog/<org>/<product>/<config id>/<file>`` and ``employee/<product>/<config id>/<file>``.
Laws: ``org`` is ASCII digits and fits a signed 64-bit integer; the other components are non-empty and hold no
slash, and may hold any other Unicode text; ``str(parse(p))`` is ``p`` but for leading zeros of the organisation;
parsing takes time linear in the path's length, whatever is in it.
"""

from __future__ import annotations

from typing import NamedTuple

from harness.remote.errors import PathError

DATADOG = "datadog"
EMPLOYEE = "employee"
_SHAPES = {DATADOG: "datadog/<org>/<product>/<id>/<file>", EMPLOYEE: "employee/<product>/<id>/<file>"}
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
    """Parse ``path``, or raise ``PathError`` that says what is wrong with it."""
    if not path.isascii():
        _check_text(path)
    parts = path.split("/")
    if "" not in parts:
        if parts[0] == DATADOG and len(parts) == 5:
            _, digits, product, config_id, file = parts
            if digits.isascii() and digits.isdigit():
                org = int(digits) if len(digits) < _ORG_DIGITS else _long_org(digits, path)
                return ConfigPath(DATADOG, org, product, config_id, file)
        elif parts[0] == EMPLOYEE and len(parts) == 4:
            _, product, config_id, file = parts
            return ConfigPath(EMPLOYEE, None, product, config_id, file)
    raise _refusal(path, parts)


def _refusal(path: str, parts: list[str]) -> PathError:
    """What is wrong with the shape of a path."""
    if len(parts) == 1 or parts[0] not in _SHAPES:
        return PathError(f"config path {path[:80]!r} has an unknown source", hint="expected datadog/… or employee/…")
    return PathError(f"config path {path[:80]!r} has a wrong format", hint=f"expected {_SHAPES[parts[0]]}")


def _long_org(digits: str, path: str) -> int:
    """An organisation of many digits: counted first, for int() of a very long string is slow, then refused."""
    significant = digits.lstrip("0") or "0"
    if len(significant) > _ORG_DIGITS or (org := int(significant)) > _ORG_MAX:
        raise PathError(f"config path {path[:80]!r} has an organisation that does not fit 64 bits")
    return org


def _check_text(path: str) -> None:
    """Half a surrogate pair can come out of JSON, and into no message."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise PathError(f"config path {path[:80]!r} is no Unicode text") from None
