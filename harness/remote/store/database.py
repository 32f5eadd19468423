"""Where an agent's store is kept: one SQLite database. Whatever goes wrong in ``transaction``, nothing has changed.

Tables: ``metadata`` (every root, and the newest of each other role, by repository), ``file`` (content by path) and
``organisation`` (by the version of the config root that was in force when it was asked for).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.remote.errors import StoreError, TamperedError
from harness.remote.ownership import check_owner
from harness.remote.store.repository import Metadata

_FORMAT = 1
_SCHEMA = (
    "CREATE TABLE metadata (repository TEXT, role TEXT, number INTEGER, raw BLOB NOT NULL,"
    " PRIMARY KEY (repository, role, number)) WITHOUT ROWID",
    "CREATE TABLE file (path TEXT PRIMARY KEY, raw BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE organisation (root_version INTEGER PRIMARY KEY, uuid TEXT NOT NULL)",
)
_TOP = ("timestamp", "snapshot", "targets")
_DELEGATED = "delegated/"


class Database:
    """One connection; the caller sees to it that one thread at a time uses it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
            check_owner(path.stat(), path)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path} cannot be opened: {error}") from None
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; twice is once."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is done inside, or nothing; on disk when it ends."""
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._run("ROLLBACK")
            raise

    def metadata(self, repository: str) -> Metadata:
        """What is kept of a repository; nothing of one that is not known."""
        rows = self._run(
            "SELECT role, CAST(raw AS BLOB) FROM metadata WHERE repository = ? ORDER BY role, number", repository
        )
        found = [(str(role), bytes(raw)) for role, raw in rows]
        single = {role: raw for role, raw in found if role in _TOP}
        return Metadata(
            roots=tuple(raw for role, raw in found if role == "root"),
            delegated={role.removeprefix(_DELEGATED): raw for role, raw in found if role.startswith(_DELEGATED)},
            **single,
        )

    def keep_metadata(self, repository: str, kept: Metadata) -> None:
        """Replace what is kept of a repository."""
        rows = [("root", number, raw) for number, raw in enumerate(kept.roots)]
        rows += [(role, 0, getattr(kept, role)) for role in _TOP if getattr(kept, role)]
        rows += [(f"{_DELEGATED}{role}", 0, raw) for role, raw in kept.delegated.items()]
        self._run("DELETE FROM metadata WHERE repository = ?", repository)
        self._many("INSERT INTO metadata VALUES (?, ?, ?, ?)", ((repository, *row) for row in rows))

    def file(self, path: str) -> bytes | None:
        """The content kept of a path; None if there is none."""
        rows = self._run("SELECT CAST(raw AS BLOB) FROM file WHERE path = ?", path)
        return bytes(rows[0][0]) if rows else None

    def keep_files(self, files: Mapping[str, bytes]) -> None:
        """Keep these files beside the others, or in their place."""
        self._many("INSERT OR REPLACE INTO file VALUES (?, ?)", files.items())

    def prune_files(self, wanted: Iterable[str]) -> None:
        """Forget every file but these."""
        keep = set(wanted)
        paths = [str(row[0]) for row in self._run("SELECT path FROM file")]
        self._many("DELETE FROM file WHERE path = ?", ((path,) for path in paths if path not in keep))

    def organisation(self, root_version: int) -> str | None:
        """The organisation that was known at that version of the config root."""
        rows = self._run("SELECT uuid FROM organisation WHERE root_version = ?", root_version)
        return str(rows[0][0]) if rows else None

    def keep_organisation(self, root_version: int, uuid: str) -> None:
        """Remember the organisation for that version of the config root."""
        self._run("INSERT OR REPLACE INTO organisation VALUES (?, ?)", root_version, uuid)

    def _prepare(self) -> None:
        """Make the tables of a new database, and refuse those of another format."""
        self._run("PRAGMA synchronous = FULL")
        ((format,),) = self._run("PRAGMA user_version")
        if format not in (0, _FORMAT):
            raise StoreError(f"{self._path} has format {format}, not {_FORMAT}", hint="a newer version wrote it")
        if format == 0:
            with self.transaction():
                for statement in _SCHEMA:
                    self._run(statement)
                self._run(f"PRAGMA user_version = {_FORMAT}")

    def _run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._guarded(lambda: self._connection.execute(statement, values).fetchall())

    def _many(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        self._guarded(lambda: self._connection.executemany(statement, rows).fetchall())

    def _guarded(self, work: Callable[[], list[tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
        """Run it, with SQLite's errors made ours. UnicodeEncodeError: half a surrogate pair in a path."""
        try:
            return work()
        except (sqlite3.OperationalError, sqlite3.ProgrammingError, UnicodeEncodeError) as error:
            raise StoreError(f"{self._path}: {error}") from None
        except sqlite3.Error as error:
            raise TamperedError(f"{self._path} is damaged: {error}", hint="remove it to begin again") from None
