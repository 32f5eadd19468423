"""The host's Hypothesis example database, served to all guests of a run.

Laws: what one kernel saves is there at once for every other; a value is forgotten only when a kernel says that it no
longer fails there, none says that it does, and every other has said so too or is finished; a project without
Hypothesis gets empty answers.
"""

from __future__ import annotations

import base64
import binascii
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypothesis.database import ExampleDatabase


class Examples:
    """Thread-safe: each kernel's thread calls ``answer`` with its guest's questions."""

    def __init__(self, root: Path, kernels: int) -> None:
        self._database = _open(root)
        self._kernels = kernels
        self._passed: dict[tuple[bytes, bytes], set[str]] = {}
        self._failed: dict[tuple[bytes, bytes], set[str]] = {}
        self._finished: set[str] = set()
        self._mutex = threading.Lock()

    def answer(self, kernel: str, question: dict[str, Any]) -> dict[str, Any]:
        """Do what a DATABASE frame asks; the body of the EXAMPLES frame that answers it. ValueError: no question."""
        try:
            key = base64.b64decode(question["key"], validate=True)
            value = base64.b64decode(question.get("value", ""), validate=True)
        except (KeyError, TypeError, binascii.Error):
            raise ValueError(f"no question to the example database: {question!r}") from None
        with self._mutex:
            values = self._act(kernel, str(question.get("call")), key, value)
        return {"values": [base64.b64encode(v).decode() for v in values]}

    def _act(self, kernel: str, call: str, key: bytes, value: bytes) -> list[bytes]:
        if self._database is None:
            return []
        if call == "fetch":
            return sorted(self._database.fetch(key))
        if call == "save":
            self._failed.setdefault((key, value), set()).add(kernel)
            self._database.save(key, value)
        elif call == "delete":
            self._failed.get((key, value), set()).discard(kernel)
            self._passed.setdefault((key, value), set()).add(kernel)
            self._forget()
        return []

    def finished(self, kernel: str) -> None:
        """The kernel is done, or was never there: what it has not said it will not say."""
        with self._mutex:
            self._finished.add(kernel)
            self._forget()

    def _forget(self) -> None:
        if self._database is None:
            return
        for (key, value), passed in list(self._passed.items()):
            if len(passed | self._finished) >= self._kernels and not self._failed.get((key, value)):
                self._database.delete(key, value)
                del self._passed[key, value]


def _open(root: Path) -> ExampleDatabase | None:
    try:
        from hypothesis.database import DirectoryBasedExampleDatabase
    except ImportError:
        return None
    return DirectoryBasedExampleDatabase(root / ".hypothesis" / "examples")
