"""(pure) What may be wrong with a simulated kernel, or come in between."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Faults:
    """``no_btf``: it shows no types; ``no_headers``: its headers are not installed; ``denied``: the caller has no right
    to load programs, nor have others without rights (EPERM); ``no_memory``: no map can be made any more (ENOMEM);
    ``interrupted``: how often loading is answered EAGAIN, because of a signal, before it is done (libbpf gives up after
    five)."""

    no_btf: bool = False
    no_headers: bool = False
    denied: bool = False
    no_memory: bool = False
    interrupted: int = 0


NONE = Faults()
