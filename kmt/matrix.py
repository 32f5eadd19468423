"""(pure but for ``load``) The catalogue of kernels as rows, and what people may say to choose among them.

Laws: an unknown key or a value of the wrong type is an error that names file, line and the nearest key; what is
chosen keeps the order in which it was asked for, each row once; a word that chooses nothing is an error that names
the nearest rows. Where a row's kernel comes from is ``kmt/archive``'s to find out.
"""

from __future__ import annotations

import difflib
import re
import shlex
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_type_hints

from kmt.errors import ConfigError
from kmt.kernel import Version

CATALOGUE = Path(__file__).with_name("vms") / "kernels.toml"
"""The catalogue that travels with the package (in a checkout ``kmt/vms`` is a link to ``vms``)."""

WORDS = ("default", "all", "newest")
"""Names that no row may have, for they choose rows themselves."""

SIMULATED = "-simulated"
"""How the name of a row ends that is never booted, and the word that asks for one: ``5.15-simulated``."""

_ADDRESS = re.compile(r"(\w[\w.+-]*@)?(\[[0-9A-Fa-f:.%\w]+\]|\w[\w.-]*)(:\d{1,5})?", re.ASCII)
_BOX = re.compile(r"[A-Za-z0-9][\w.+~-]*(/[A-Za-z0-9][\w.+~-]*)?", re.ASCII)
_OUR_BOX = re.compile(r"kmt-[0-9a-f]{16}", re.ASCII)
"""What ``kmt/vagrant/box.py`` calls those that it makes, and removes."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*", re.ASCII)


@dataclass(frozen=True)
class Source:
    """An archive that is not the machine's own: its URI, the keyring that its signatures are checked with."""

    uri: str
    keyring: Path
    components: tuple[str, ...] = ("main",)


@dataclass(frozen=True)
class Row:
    """One kernel of the matrix: ``suites`` to fetch it from, an ``image`` file, a machine with ``ssh``, or a ``box``.

    With none of them it is unavailable.
    """

    name: str
    series: str = ""
    flavour: str = "cloud-amd64"
    """How the release's name ends: ``cloud-amd64``, ``amd64``; in Ubuntu's archives ``generic``."""
    arch: str = "amd64"
    suites: tuple[str, ...] = ()
    archive: Source | None = None
    image: Path | None = None
    modules: Path | None = None
    btf: Path | None = None
    ssh: str = ""
    """``user@host:port``: a machine that runs already, reached over SSH; user and port may be left to ssh."""
    ssh_config: Path | None = None
    """The file that ssh is to read for it instead of the user's own."""
    box: str = ""
    """A box of Vagrant's that brings its own kernel."""
    python: str = ""
    """(ssh) The words that start a Python there; empty: ``python3``."""
    default: bool = False
    note: str = ""

    @property
    def runs_at(self) -> str:
        """Where its kernel is, in words, for a row whose kernel is not fetched; empty for all others."""
        return f"it runs at {self.ssh}" if self.ssh else f"it is in the box {self.box}" if self.box else ""

    @property
    def simulated(self) -> bool:
        """No machine: a simulated kernel of its series."""
        return self.name.endswith(SIMULATED)


@dataclass(frozen=True)
class Matrix:
    """All rows of a catalogue, in its order."""

    rows: tuple[Row, ...]
    path: Path

    def select(self, patterns: Sequence[str]) -> list[Row]:
        """The rows meant by ``5.10``, ``v6.1``, ``6.*``, ``all``, ``default``, ``newest``, ``a,b``, or an image's path.

        A word with a slash in it is a path; its row is named after the file. With ``SIMULATED`` at its end a word means
        the same rows simulated, and any version besides. Raises ConfigError.
        """
        chosen: dict[str, Row] = {}
        for word in filter(None, (w.strip() for pattern in patterns for w in pattern.split(","))):
            for row in self._meant(word, chosen):
                chosen.setdefault(row.name, row)
        return list(chosen.values())

    def _meant(self, word: str, taken: dict[str, Row]) -> list[Row]:
        if word.endswith(SIMULATED):
            return self._simulated(word.removesuffix(SIMULATED), taken)
        if word == "all":
            return list(self.rows)
        if word == "default":
            return [row for row in self.rows if row.default]
        if word == "newest":
            real = [row for row in self.rows if row.series and (row.suites or row.image)]
            return [max(real, key=lambda row: Version.parse(row.series))] if real else []
        if "/" in word:
            return [_image_row(Path(word), {row.name: row for row in self.rows} | taken)]
        plain = word[1:] if re.match(r"v\d", word) else word
        found = [row for row in self.rows if fnmatchcase(row.name, plain)]
        if not found:
            raise ConfigError(f"no kernel {word!r} in {self.path}", hint=_nearest(plain, (r.name for r in self.rows)))
        return found

    def _simulated(self, word: str, taken: dict[str, Row]) -> list[Row]:
        if "/" in word:
            raise ConfigError(f"{word} is an image, and only versions can be simulated", hint=f"5.15{SIMULATED}, say")
        plain = word.removeprefix("v")
        if re.fullmatch(r"\d+\.\d+", plain, re.ASCII) and plain not in {row.name for row in self.rows}:
            return [simulated(Row(plain, plain, note="not in the catalogue"))]
        found = [row for row in self._meant(word, taken) if row.series]
        if not found:
            raise ConfigError(f"{word!r} means no kernel of a series", hint="only versions can be simulated")
        return [simulated(row) for row in found]


def simulated(row: Row) -> Row:
    """The row without its kernel: the same series, simulated."""
    return Row(row.name + SIMULATED, row.series, default=row.default, note=row.note)


def load(path: Path | None = None) -> Matrix:
    """Read a catalogue; None: the packaged one. Paths in rows become relative to it. Raises ConfigError."""
    path = path or CATALOGUE
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Matrix:
    """The rows of a catalogue's text; ``path`` is where it came from, for messages and relative paths."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        raise ConfigError(f"{path}:{found[1] if found else len(text.splitlines())}: {error}") from None
    where = _Where(path, text)
    for key in document:
        if key != "kernel":
            raise where.error(None, key, f"unknown key {key!r}", near=["kernel"])
    tables = document.get("kernel", [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise where.error(None, "kernel", "kernel must be an array of tables: [[kernel]]")
    rows: dict[str, Row] = {}
    for number, table in enumerate(tables):
        row = _row(where, number, table)
        if row.name in rows:
            raise where.error(number, "name", f"a second row is named {row.name!r}")
        rows[row.name] = row
    return Matrix(tuple(rows.values()), path)


@dataclass(frozen=True)
class _Where:
    """Finds the line of a key in the text, for tomllib does not tell."""

    path: Path
    text: str

    def error(
        self, number: int | None, key: str, message: str, *, near: Iterable[str] = (), outer: str = ""
    ) -> ConfigError:
        close = difflib.get_close_matches(key, list(near), 1)
        hint = f"did you mean {close[0]!r}?" if close else ""
        return ConfigError(f"{self.path}:{self.line(number, key, outer)}: {message}", hint=hint)

    def line(self, number: int | None, key: str, outer: str = "") -> int:
        """The line of the key in the table of that number (None: at the top), else of ``outer``, else of the table."""
        lines = self.text.splitlines()
        heads = [i for i, text in enumerate(lines) if re.match(r"\s*\[\[\s*kernel\s*\]\]", text)]
        first, last = 0, len(lines)
        if number is not None and number < len(heads):
            first = heads[number]
            last = heads[number + 1] if number + 1 < len(heads) else last
        for name in filter(None, (key, outer)):
            spelled = rf"\s*\[*\s*(kernel\s*\.\s*)?[\"']?{re.escape(name)}[\"']?\s*[=.\]]"
            for i in range(first, last):
                if re.match(spelled, lines[i]) and i != (first if number is not None else None):
                    return i + 1
        return first + 1


def _row(where: _Where, number: int, table: dict[str, Any]) -> Row:
    row: Row = _typed_table(where, number, table, Row)
    if not _NAME.fullmatch(row.name) or row.name in (*WORDS, "host") or row.simulated:
        raise where.error(number, "name", f"{row.name!r} cannot be a row's name")
    if row.series:
        try:
            plain = Version.parse(row.series).series == row.series
        except ValueError:
            plain = False
        if not plain:
            raise where.error(number, "series", f"series must be like '6.1', not {row.series!r}")
    elif row.suites:
        raise where.error(number, "suites", "a row with suites needs a series")
    if row.image and row.suites:
        raise where.error(number, "image", "a row has suites or an image, not both")
    _check_ssh(where, number, row)
    _check_box(where, number, row)
    base = where.path.parent
    keys = ("image", "modules", "btf", "ssh_config")
    paths = {key: base / value for key in keys if (value := getattr(row, key)) is not None}
    archive = row.archive and replace(row.archive, keyring=base / row.archive.keyring)
    return replace(row, archive=archive, **paths)


def _check_ssh(where: _Where, number: int, row: Row) -> None:
    """What belongs to a machine over SSH, and what does not."""
    if not row.ssh:
        for key in ("ssh_config", "python"):
            if getattr(row, key):
                raise where.error(number, key, f"{key} is for rows with ssh")
        return
    for key in ("suites", "archive", "image", "modules", "btf"):
        if getattr(row, key):
            raise where.error(number, key, f"a row with ssh has the kernel that runs there, and no {key}")
    address = _ADDRESS.fullmatch(row.ssh)
    if address is None:
        raise where.error(number, "ssh", f"ssh must be like 'user@host' or 'user@host:22', not {row.ssh!r}")
    if address[3] and not 1 <= int(address[3][1:]) <= 65535:
        raise where.error(number, "ssh", f"ssh must end in a port from 1 to 65535, not in {address[3]}")
    try:
        shlex.split(row.python)
    except ValueError as error:
        raise where.error(number, "python", f"python must be words as a shell takes them: {error}") from None


def _check_box(where: _Where, number: int, row: Row) -> None:
    """A box brings all that a machine needs."""
    if not row.box:
        return
    for key in ("ssh", "suites", "archive", "image", "modules", "btf"):
        if getattr(row, key):
            raise where.error(number, key, f"a row with box has the kernel of its box, and no {key}")
    if not _BOX.fullmatch(row.box):
        raise where.error(number, "box", f"box must be a box's name, like 'debian/trixie64', not {row.box!r}")
    if _OUR_BOX.fullmatch(row.box):
        raise where.error(
            number, "box", f"{row.box} is what boxes that kmt makes are called, so yours needs another name"
        )


def _typed_table(where: _Where, number: int, table: dict[str, Any], kind: type[Any], outer: str = "") -> Any:
    """``table`` as a dataclass, each key checked against its field's type."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in hints:
            raise where.error(number, key, f"unknown key {key!r}", near=hints, outer=outer)
        values[key] = _typed(where, number, key, value, hints[key], outer)
    for field in fields(kind):
        if field.default is MISSING and field.name not in values:
            raise where.error(number, "", f"{field.name} is missing", outer=outer)
    return kind(**values)


def _typed(where: _Where, number: int, key: str, value: Any, kind: Any, outer: str) -> Any:
    text = isinstance(value, str) and "\0" not in value
    if kind == Source | None and isinstance(value, dict):
        return _typed_table(where, number, value, Source, outer=key)
    if kind in (Path, Path | None) and text:
        return Path(value)
    if (kind is str and text) or (kind is bool and isinstance(value, bool)):
        return value
    if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return tuple(value)
    wanted = {str: "a string", bool: "true or false", tuple[str, ...]: "a list of strings", Source | None: "a table"}
    message = f"{key} must be {wanted.get(kind, 'a path')}, not {value!r}"
    raise where.error(number, key, message, outer=outer)


def _nearest(word: str, names: Iterable[str]) -> str:
    known = list(names)
    near = difflib.get_close_matches(word, known, 3, 0.5)
    if near:
        return f"did you mean {' or '.join(near)}? a path to an image needs a slash"
    return f"there are {', '.join(known)}; a path to an image needs a slash"


def _image_row(image: Path, taken: dict[str, Row]) -> Row:
    """A row for an image file: ``vmlinuz-6.6.9`` is named ``6.6.9``, ``arch/x86/boot/bzImage`` is ``boot-bzImage``."""
    stem = re.sub(r"^(vmlinuz|bzImage)-(?=\d)", "", image.name)
    name = stem if stem[:1].isdigit() else f"{image.parent.name}-{stem}"
    name = re.sub(r"[^A-Za-z0-9._+~-]+", "-", name).strip("-._+~") or "image"
    unique, count = name, 2
    while unique in taken and taken[unique].image != image:
        unique, count = f"{name}-{count}", count + 1
    return Row(name=unique, image=image)
