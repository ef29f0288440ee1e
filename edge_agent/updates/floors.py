"""What this controller has seen and never goes below: versions, counters, time. On disk, synced.

The metadata that the updater keeps is a cache: a power cut may empty it. These floors survive it.
A role's version is kept by the keys that sign it, so that new keys begin anew: a stolen key that
signed version a billion blocks nothing once it was rotated away.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from edge_agent.journal.files import (
    JournalError,
    Schema,
    explain,
    is_damage,
    open_checked,
    set_aside,
    writing,
)

NAME: Final = "floors.db"
COPY: Final = "floors.copy"
_SCHEMA: Final[Schema] = (
    (
        """CREATE TABLE versions (repository TEXT, role TEXT, keys TEXT, version INTEGER NOT NULL,
            PRIMARY KEY (repository, role, keys)) WITHOUT ROWID""",
        "CREATE TABLE counters (component TEXT PRIMARY KEY, counter INTEGER NOT NULL)",
        "CREATE TABLE times (name TEXT PRIMARY KEY, at_ms INTEGER NOT NULL) WITHOUT ROWID",
        "CREATE TABLE notes (name TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID",
    ),
)


class Floors:
    """Raises JournalError wherever the disk refuses; nothing was accepted then."""

    def __init__(self, folder: Path) -> None:
        """`reports` says what had to be set aside."""
        self.folder = folder
        self.reports: list[str] = []
        self._raised = False
        path = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = self._open(path)
        except (sqlite3.Error, OSError) as error:
            raise explain("the floors of updates cannot be opened", path, error) from error

    def _open(self, path: Path) -> sqlite3.Connection:
        """A damaged file is replaced by the copy of its last good state."""
        copy = self.folder / COPY
        if not path.exists() and copy.exists():
            self.reports.append(f"{NAME} was missing; its copy is used")
            path.write_bytes(copy.read_bytes())
        try:
            return open_checked(path, _SCHEMA, synchronous="FULL", page_size=4096)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            aside = set_aside(path, "damaged")
            self.reports.append(f"{NAME} was damaged ({error}), kept as {aside.name}")
            if copy.exists():
                path.write_bytes(copy.read_bytes())
            return open_checked(path, _SCHEMA, synchronous="FULL", page_size=4096)

    def close(self) -> None:
        """Raises JournalError when the copy could not be renewed; the file itself is whole then."""
        try:
            if self._raised:
                self._copy()
        finally:
            self._db.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._db
        except (sqlite3.Error, OSError) as error:
            path = self.folder / NAME
            raise explain("the floors of updates cannot be kept", path, error) from error

    # ------------------------------------------------------------------ versions

    def version(self, repository: str, role: str, keys: str) -> int:
        """The highest version seen, signed by these keys; 0: none."""
        query = "SELECT version FROM versions WHERE repository = ? AND role = ? AND keys = ?"
        with self._explained() as db:
            row = db.execute(query, (repository, role, keys)).fetchone()
        return int(row[0]) if row else 0

    def raise_versions(self, repository: str, seen: Sequence[tuple[str, str, int]]) -> None:
        """Keep the versions (role, keys, version) of a repository; none ever sinks."""
        with self._explained() as db, writing(db):
            db.executemany(
                "INSERT INTO versions (repository, role, keys, version) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (repository, role, keys)"
                " DO UPDATE SET version = max(version, excluded.version)",
                [(repository, *each) for each in seen],
            )
        self._raised = True

    # ------------------------------------------------------------------ counters, time, notes

    def counter(self, component: str) -> int:
        """The highest release counter that was ever installed; 0: none."""
        with self._explained() as db:
            row = db.execute(
                "SELECT counter FROM counters WHERE component = ?", (component,)
            ).fetchone()
        return int(row[0]) if row else 0

    def raise_counter(self, component: str, counter: int) -> None:
        with self._explained() as db, writing(db):
            db.execute(
                "INSERT INTO counters (component, counter) VALUES (?, ?) ON CONFLICT (component)"
                " DO UPDATE SET counter = max(counter, excluded.counter)",
                (component, counter),
            )
        self._raised = True

    def time_ms(self) -> int:
        """The newest time that was ever trusted, Unix ms; 0: none."""
        with self._explained() as db:
            row = db.execute("SELECT at_ms FROM times WHERE name = 'newest'").fetchone()
        return int(row[0]) if row else 0

    def raise_time(self, at_ms: int) -> None:
        with self._explained() as db, writing(db):
            db.execute(
                "INSERT INTO times (name, at_ms) VALUES ('newest', ?) ON CONFLICT (name)"
                " DO UPDATE SET at_ms = max(at_ms, excluded.at_ms)",
                (at_ms,),
            )
        self._raised = True

    def note(self, name: str) -> bytes | None:
        with self._explained() as db:
            row = db.execute("SELECT content FROM notes WHERE name = ?", (name,)).fetchone()
        return bytes(row[0]) if row else None

    def keep_note(self, name: str, content: bytes) -> None:
        with self._explained() as db, writing(db):
            db.execute(
                "INSERT OR REPLACE INTO notes (name, content) VALUES (?, ?)", (name, content)
            )

    def _copy(self) -> None:
        """A second file with the same content: damage to one loses no floor."""
        draft = self.folder / f"{COPY}.new"
        with self._explained() as db:
            draft.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(draft)) as other:
                db.backup(other)
            draft.replace(self.folder / COPY)


def keys_of(keyids: Sequence[str], threshold: int) -> str:
    """A name for who must sign a role."""
    named = ",".join(sorted(keyids))
    return hashlib.sha256(f"{threshold}:{named}".encode()).hexdigest()


__all__ = ["Floors", "JournalError", "keys_of"]
