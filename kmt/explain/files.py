"""Files of results where people have them: files, directories and zip archives of CI artefacts.

Laws: only regular files are read, and of an archive only its members' bytes, so nothing in an artefact leads outside
of it; what is read is bounded; a file that cannot be used costs itself only, with a ResultsError that names it.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from kmt.errors import ForeignFileError, ResultsError
from kmt.explain.read import Results, parse
from kmt.text import visible

MOST_BYTES = 64 << 20
"""Of one file; 40,000 tests take about 8 MiB."""
MOST_FILES = 1000
"""Looked at in one call, whatever is in them."""
MOST_TOTAL = 512 << 20
"""Bytes of all of them."""
PATTERN = "*results*.json"
"""What is looked for in directories and archives; a file that is named is read whatever its name."""


@dataclass
class Loaded:
    """What could be read, and what could not."""

    results: list[Results] = field(default_factory=list)
    errors: list[ResultsError] = field(default_factory=list)


def load(paths: Sequence[Path]) -> Loaded:
    """Read all of them. ResultsError only where a path is nothing at all, or holds no results."""
    loaded = Loaded()
    seen = total = 0
    for path in paths:
        before = len(loaded.results) + len(loaded.errors)
        for name, data in _found(path):
            seen += 1
            total += len(data) if isinstance(data, bytes) else 0
            if seen > MOST_FILES or total > MOST_TOTAL:
                what = f"more than {MOST_FILES} files, or {MOST_TOTAL >> 20} MiB, named {PATTERN}"
                raise ResultsError(f"{visible(str(path))}: {what}", hint="name fewer at once")
            try:
                loaded.results.append(parse(_checked(data, name), name))
            except ResultsError as error:
                # What tests leave may have such a name too; a file that somebody named is meant to be read.
                if not isinstance(error, ForeignFileError) or name == str(path):
                    loaded.errors.append(error)
        if len(loaded.results) + len(loaded.errors) == before:
            said = f"{visible(str(path))}: no {PATTERN} in it that holds results"
            raise ResultsError(said, hint="name the file that --kernel-json wrote")
    return loaded


def _checked(data: bytes | ResultsError, name: str) -> bytes:
    if isinstance(data, ResultsError):
        raise data
    if len(data) > MOST_BYTES:
        raise ResultsError(f"{visible(name)}: larger than {MOST_BYTES >> 20} MiB; that is not read")
    return data


def _found(path: Path) -> Iterator[tuple[str, bytes | ResultsError]]:
    """Name and content of each file of results; of a file that is too large a byte more than may be."""
    if path.is_dir():
        for directory, folders, files in os.walk(path):
            folders.sort()
            for name in sorted(files):
                file = Path(directory, name)
                if fnmatchcase(name, PATTERN) and file.is_file() and not file.is_symlink():
                    yield str(file), _bytes(file)
    elif path.suffix == ".zip":
        yield from _members(path)
    else:
        yield str(path), _bytes(path)


def _bytes(path: Path) -> bytes | ResultsError:
    try:
        # O_NONBLOCK: a named pipe without a writer would have us wait for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return ResultsError(f"{visible(str(path))} is no file")
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        return ResultsError(f"{visible(str(path))}: {error.strerror}", hint="name the file that --kernel-json wrote")
    return data


def _members(path: Path) -> Iterator[tuple[str, bytes | ResultsError]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = f"{path}:{member.filename}"
                if fnmatchcase(Path(member.filename).name, PATTERN) and not member.is_dir():
                    yield name, _unpacked(archive, member, name)
    except (OSError, zipfile.BadZipFile) as error:
        yield str(path), ResultsError(f"{visible(str(path))}: {error}", hint="fetch the artefacts again")


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> bytes | ResultsError:
    try:
        with archive.open(member) as file:
            data = file.read(MOST_BYTES + 1)
    # RuntimeError: it is encrypted; NotImplementedError: compressed in a way that Python does not know.
    except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        return ResultsError(f"{visible(name)}: {visible(str(error), 200)}", hint="fetch the artefacts again")
    return data
