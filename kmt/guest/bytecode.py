"""Compiles a project's modules before anything of the project has run, so that later guests need not.

Laws: nothing of the project is imported or run here; the files are those that Python and pytest look for and check
against the source's own bytes, so a stale one is passed over; what cannot be compiled is left to fail where it is
imported.
"""

from __future__ import annotations

import importlib.util
import io
import py_compile
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

_CHECKED_HASH = b"\x03\0\0\0"
"""The flags of such a file (PEP 552)."""


def tails() -> dict[str, str]:
    """How the names of compiled files end: of ``plain`` modules, and of those that pytest ``rewritten``.

    Empty where pytest is not loaded: it is not worth loading it for this.
    """
    rewrite = sys.modules.get("_pytest.assertion.rewrite")
    if rewrite is None:
        return {}
    return {"plain": f".{sys.implementation.cache_tag}.pyc", "rewritten": str(rewrite.PYC_TAIL)}


def compiled(root: str, files: Iterable[tuple[str, bool]], rest: Callable[[], None]) -> Iterator[tuple[str, bytes]]:
    """Name (relative to ``root``) and content of each compiled file; they are written as well.

    ``files`` are sources and whether pytest rewrites their assertions; ``rest`` is called between two of them.
    """
    ends = tails()
    for name, rewritten in files:
        rest()
        source = Path(root) / name
        target = source.parent / "__pycache__" / (source.stem + ends["rewritten" if rewritten else "plain"])
        try:
            content = _rewritten(source) if rewritten else _plain(source, target)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
        except (OSError, SyntaxError, ValueError, RecursionError, py_compile.PyCompileError):
            continue
        yield str(target.relative_to(root)), content


def _plain(source: Path, target: Path) -> bytes:
    checked = py_compile.PycInvalidationMode.CHECKED_HASH
    py_compile.compile(str(source), cfile=str(target), doraise=True, invalidation_mode=checked)
    return target.read_bytes()


def _rewritten(source: Path) -> bytes:
    # pytest has no public name for this; another shape of it than 8.0 to 9.2 have is a ValueError, and no byte code.
    try:
        from _pytest.assertion import rewrite

        stamp, code = rewrite._rewrite_test(source, None)  # type: ignore[arg-type]
        target = io.BytesIO()
        write: Any = rewrite._write_pyc_fp
        write(target, stamp, code)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(str(error)) from None
    content = target.getvalue()
    # Older ones (8.4) check a source's time and size, which another source may have: nothing of theirs is kept.
    if not content.startswith(importlib.util.MAGIC_NUMBER + _CHECKED_HASH):
        raise ValueError("no compiled module that is checked by its source's bytes")
    return content
