"""(pure) The messages as JSON: names in snake case, bytes as base64, numbers as numbers.

protobuf's own JSON writes 64-bit numbers as strings, which the other implementations of this form do not read; ours
reads both. Laws: ``load(dump(m)) == m`` for every message; no input raises anything but ``AnswerError``; members
that are not known are skipped.
"""

from __future__ import annotations

import base64
import json
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from harness.remote.fetch import AnswerError

_M = TypeVar("_M", bound=Message)


def dump(message: Message) -> bytes:
    """The message as JSON text."""
    return json.dumps(_value(message), separators=(",", ":")).encode()


def load(raw: bytes, kind: type[_M]) -> _M:
    """The message that JSON text stands for."""
    try:
        value = json.loads(raw)
        if not isinstance(value, dict):
            raise ValueError("no object")
        return json_format.ParseDict(value, kind(), ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise AnswerError(f"{len(raw)} bytes are no {kind.__name__} as JSON: {str(error)[:200]}") from None


def _value(value: Any) -> Any:
    if isinstance(value, Message):
        return {
            field.name: [_value(item) for item in item_or_items] if field.is_repeated else _value(item_or_items)
            for field, item_or_items in value.ListFields()
        }
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
