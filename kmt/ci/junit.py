"""Many JUnit files written as one, in a stream: no file is ever held as a whole.

Laws: what comes out is well-formed whatever comes in; a file that is none, is cut off or declares a document type
(entities are how XML grows without end) is a ResultsError that names it, and leaves nothing of the merged file; the
names of suites begin with the directory that their file is from.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from kmt.errors import ResultsError
from kmt.paths import published
from kmt.text import visible

MOST_BYTES = 256 << 20
"""Of one file."""
MOST_DEPTH = 32
_CHUNK = 1 << 16
_LOST = (
    '<testcase classname="kmt" name={name} time="0"><error type="kmt.lost" message="it left no results"/></testcase>'
)


def merge(files: Iterable[Path], target: Path, missing: Iterable[str] = ()) -> int:
    """Write the suites of all files into ``target``, whole or not at all; how many cases. Raises ResultsError.

    ``missing`` are jobs that left nothing, in words: an error each, in a suite of their own.
    """
    cases = 0
    with published(target) as work, work.open("wb") as out:
        out.write(b"<?xml version='1.0' encoding='utf-8'?>\n<testsuites>")
        for path in files:
            cases += _Copy(out, path).run()
        if lost := [_LOST.format(name=quoteattr(name)) for name in missing]:
            suite = f'<testsuite name="jobs" tests="{len(lost)}" errors="{len(lost)}">{"".join(lost)}</testsuite>'
            out.write(suite.encode("utf-8", "replace"))
        out.write(b"</testsuites>\n")
    return cases


class _Copy:
    """Copies the test suites of one file."""

    def __init__(self, out: BinaryIO, path: Path) -> None:
        self._path = path
        self._out = out
        self._depth = self._inside = 0
        self._said: list[str] = []
        self.cases = 0
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._doctype
        parser.buffer_text = True
        self._parser = parser

    def run(self) -> int:
        """All of it; the number of its cases."""
        read = 0
        try:
            with self._path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    read += len(chunk)
                    if read > MOST_BYTES:
                        raise self._error(f"larger than {MOST_BYTES >> 20} MiB; that is not read")
                    self._parser.Parse(chunk, False)
                    self._flush()
            self._parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise self._error(f"{error}; it was cut off, or is no JUnit file") from None
        except OSError as error:
            raise self._error(str(error.strerror)) from None
        self._flush()
        return self.cases

    def _flush(self) -> None:
        self._out.write("".join(self._said).encode("utf-8", "replace"))
        self._said.clear()

    def _error(self, why: str) -> ResultsError:
        return ResultsError(f"{visible(str(self._path))}: {visible(why)}", hint="fetch the artefacts again")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._depth == 0 and tag not in ("testsuites", "testsuite"):
            raise self._error(f"its root is <{tag}>; it is no JUnit file")
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise self._error(f"more than {MOST_DEPTH} elements within each other")
        if tag == "testsuite" and not self._inside:
            self._inside = self._depth
            attributes["name"] = f"{visible(self._path.parent.name)}: {attributes.get('name', 'tests')}"
        if self._inside:
            self.cases += tag == "testcase"
            self._said.append(f"<{tag}{''.join(f' {k}={quoteattr(v)}' for k, v in attributes.items())}>")

    def _end(self, tag: str) -> None:
        if self._inside:
            self._said.append(f"</{tag}>")
        if self._inside == self._depth:
            self._inside = 0
        self._depth -= 1

    def _text(self, text: str) -> None:
        if self._inside:
            self._said.append(escape(text))

    def _doctype(self, *_: object) -> None:
        raise self._error("it declares a document type; that is not read")
