"""(pure) Words from outside, made safe to print: what guests, tests and files of others say arrives as text.

Laws: what comes out has no control character, no line break and nothing that changes the direction of text, so a
terminal shows it and obeys nothing; printable text is unchanged; it is never longer than ``limit``.
"""

from __future__ import annotations

import unicodedata

LONGEST = 2000
"""Characters of a line that people are shown."""


def visible(text: str, limit: int = LONGEST) -> str:
    r"""The text on one line, control and format characters written as ``\x1b``, ``\u202e``; cut off at ``limit``."""
    cut = text if len(text) <= limit else text[: max(0, limit - 1)] + "…"
    if cut.isprintable():
        return cut
    shown = "".join(c if c.isprintable() else _escaped(c) for c in cut)
    return shown if len(shown) <= limit else shown[: max(0, limit - 1)] + "…"


def _escaped(character: str) -> str:
    code = ord(character)
    if character in "\n\r":
        return {"\n": r"\n", "\r": r"\r"}[character]
    if character == "\t" or unicodedata.category(character) == "Zs":
        return " "
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
