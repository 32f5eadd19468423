"""(pure) What a register of a program may point to, as far as it is followed."""

from __future__ import annotations

from dataclasses import dataclass

CONTEXT, STACK, MAP, VALUE = "context", "stack", "map", "value"


@dataclass(frozen=True)
class Pointer:
    """``offset`` bytes into what the program is given (``CONTEXT``), its stack (from its top), a map itself, or a value
    of that map (``map``: its name, or a data section's)."""

    region: str
    offset: int = 0
    map: str = ""
