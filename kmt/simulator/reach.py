"""(pure) What of a program is reached on a kernel, in the functions that it calls too, its relocations resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import FormatError
from kmt.errors import CannotTellError
from kmt.simulator import relocate, walk
from kmt.simulator.objects import Code, EbpfObject
from kmt.simulator.types import Types


@dataclass(frozen=True)
class Unmet:
    """A relocation that the program meets and the kernel does not. ``ambiguous``: it has several that differ."""

    words: str
    ambiguous: bool = False


def follow(
    code: Code, whole: EbpfObject, kernel: Types | None, data: Mapping[str, bytes] | None = None
) -> tuple[walk.Seen, list[Unmet]]:
    """What is reached, and the missing types and fields that it meets. ``data``: as in ``walk``; ``kernel``: None where
    its types are not at hand: then relocations are a CannotTellError."""
    reached, missing = _one(code, whole, kernel, data)
    open_, done = set(reached.functions), set()
    while open_:
        place = open_.pop()
        done.add(place)
        if place == walk.OUTSIDE:
            raise CannotTellError("a call of a function that is in the section of a program")
        if place not in whole.functions:
            raise CannotTellError(f"a call of something at instruction {place} of .text, and no function is there")
        seen, more = _one(whole.functions[place], whole, kernel, data)
        reached.helpers |= seen.helpers
        reached.calls |= seen.calls
        reached.accesses |= seen.accesses
        reached.kfuncs |= seen.kfuncs
        missing += more
        open_ |= seen.functions - done
    return reached, missing


def _one(
    code: Code, whole: EbpfObject, kernel: Types | None, data: Mapping[str, bytes] | None
) -> tuple[walk.Seen, list[Unmet]]:
    constants: dict[int, int | None] = {}
    missing: dict[int, Unmet] = {}
    local = whole.types
    if local is None:
        return walk.walk(code, constants, data=data), []
    for at, relocation in code.relocations.items():
        if kernel is None:
            raise CannotTellError(
                f"whether the kernel has {relocate.wanted(local, relocation)}: its types are not at hand",
                hint="kmt.fetch gets the kernel that has them; if the archive has another, kmt.profile records that",
            )
        try:
            answer = relocate.resolve(local, relocation, kernel)
            constants[at] = answer.value
            if not answer.found:
                missing[at] = Unmet(f"it has no {relocate.wanted(local, relocation)}")
        except FormatError as error:
            raise CannotTellError(f"its types cannot be read: {error.message}") from None
        except relocate.AmbiguousError as error:
            missing[at] = Unmet(f"it has several of that name: {error}", ambiguous=True)
    seen = walk.walk(code, constants, frozenset(missing), data)
    return seen, list(dict.fromkeys(missing[at] for at in sorted(missing) if at in seen.instructions))
