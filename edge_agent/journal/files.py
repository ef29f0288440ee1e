"""SQLite files that are bound to a station, checked when opened, and set aside when damaged."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

MIB: Final = 1024 * 1024
CHECK_UP_TO: Final = 32 * MIB
"""Larger files are checked on start only after an error: the safe limit must not wait for it."""
KEPT_COPIES: Final = 3
WORTH_FREEING: Final = 128
"""Pages: moving fewer wears the storage for nothing."""
SIDE_FILES: Final = ("-wal", "-shm")

Schema = Sequence[Sequence[str]]
"""Statements per schema version, applied in order; versions only ever add."""


class JournalBudget(msgspec.Struct, frozen=True):
    """How much the journal may keep, and how often telemetry is written."""

    telemetry_bytes: int = 64 * MIB
    keep_days: int = 30
    """Acknowledged billing facts are kept so long, for a cloud restored from a backup."""
    keep_answers_days: int = 7
    keep_sessions_days: int = 365
    flush_ms: int = 62_000
    """Just over the uplink's minute: while all is well samples leave before they need the disk."""
    reserve_bytes: int = MIB
    """Set apart on disk, so that a full disk still takes the end of running transactions."""


class JournalError(Exception):
    """The journal cannot be opened or written; the text has what happened, why, what to do."""

    def __init__(self, what: str, why: str, remedy: str) -> None:
        super().__init__(f"{what}: {why}. {remedy}")
        self.what = what
        self.why = why
        self.remedy = remedy


def code_of(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 where the module itself complained."""
    code: int = getattr(error, "sqlite_errorcode", 0) or 0
    return code & 0xFF


def is_damage(error: sqlite3.Error) -> bool:
    return code_of(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_full(error: sqlite3.Error) -> bool:
    return code_of(error) == sqlite3.SQLITE_FULL


_REMEDIES: Final = {
    sqlite3.SQLITE_FULL: "Free space on that file system; the agent goes on by itself then",
    sqlite3.SQLITE_READONLY: "Make it writable; a storage card that turned read-only is worn out",
    sqlite3.SQLITE_IOERR: "Look for storage errors in `dmesg`; replace the card if there are any",
    sqlite3.SQLITE_CANTOPEN: "Check that the folder exists and that the agent's user may write it",
    sqlite3.SQLITE_PERM: "Give the agent's user the right to write it",
    sqlite3.SQLITE_CORRUPT: "Restart the agent: it keeps a copy and rebuilds what can be read",
    sqlite3.SQLITE_NOTADB: "Restart the agent: it keeps a copy and rebuilds what can be read",
    sqlite3.SQLITE_BUSY: "End the program that holds the file open for writing",
}


def explain(what: str, path: Path, error: sqlite3.Error | OSError) -> JournalError:
    why = f"{path}: {error}"
    if isinstance(error, OSError):
        return JournalError(what, why, "Check the folder's rights and the storage behind it")
    remedy = _REMEDIES.get(code_of(error), "Keep a copy of the folder and report this")
    return JournalError(what, why, remedy)


@contextmanager
def writing(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """One transaction: all of it is committed, or none."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            with suppress(sqlite3.Error):  # the first error is the one to tell
                db.execute("ROLLBACK")
        raise


def connect(path: Path, *, synchronous: str, page_size: int) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, timeout=2.0, check_same_thread=False)
    try:
        for pragma in (
            f"page_size = {page_size}",
            "auto_vacuum = INCREMENTAL",
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            "cache_size = -512",
            "temp_store = MEMORY",
            f"journal_size_limit = {MIB}",
            "wal_autocheckpoint = 1000",
        ):
            db.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        db.close()
        raise
    return db


def migrate(db: sqlite3.Connection, schema: Schema) -> None:
    """Bring the file to this release's version; a later one's file is used as it is."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    for number, statements in enumerate(schema[version:], start=version + 1):
        with writing(db):
            for statement in statements:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {number}")


def check(db: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError when SQLite finds the file damaged."""
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        error = sqlite3.DatabaseError(verdict)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def suspicion(path: Path) -> Path:
    """A mark beside a file in which damage was found while running."""
    return path.with_name(path.name + ".suspect")


def suspect(path: Path) -> None:
    with suppress(OSError):  # without the mark the next start checks small files anyway
        suspicion(path).touch()


def open_checked(
    path: Path, schema: Schema, *, synchronous: str, page_size: int
) -> sqlite3.Connection:
    """The file, created where missing; raises sqlite3.DatabaseError when it is damaged."""
    new = not path.exists()
    db = connect(path, synchronous=synchronous, page_size=page_size)
    try:
        if suspicion(path).exists() or path.stat().st_size <= CHECK_UP_TO:
            check(db)
        migrate(db, schema)
        if new:
            sync_folder(path.parent)
    except BaseException:
        db.close()
        raise
    return db


def give_back(db: sqlite3.Connection) -> None:
    """Hand unused pages back to the file system once they are worth the writes."""
    (free,) = db.execute("PRAGMA freelist_count").fetchone()
    if free > WORTH_FREEING:
        db.execute("PRAGMA incremental_vacuum").fetchall()
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def sync_folder(folder: Path) -> None:
    """Make created and renamed names survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def set_aside(path: Path, why: str) -> Path:
    """Rename a file, with its side files, to the next free name; keeps the newest few copies."""
    taken = sorted(
        int(old.name.rsplit("-", 1)[1])
        for old in path.parent.glob(f"{path.name}.{why}-*")
        if old.name.rsplit("-", 1)[1].isdigit()
    )
    target = path.with_name(f"{path.name}.{why}-{taken[-1] + 1 if taken else 1}")
    for side in (*SIDE_FILES, ""):
        source = path.with_name(path.name + side)
        if source.exists():
            source.rename(target.with_name(target.name + side))
    for number in taken[: max(0, len(taken) + 1 - KEPT_COPIES)]:
        remove(path.with_name(f"{path.name}.{why}-{number}"))
    suspicion(path).unlink(missing_ok=True)
    sync_folder(path.parent)
    return target


def remove(path: Path) -> None:
    for side in ("", *SIDE_FILES):
        path.with_name(path.name + side).unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes on disk with its side files."""
    total = 0
    for side in ("", *SIDE_FILES):
        with suppress(FileNotFoundError):
            total += path.with_name(path.name + side).stat().st_size
    return total


def salvage(damaged: Path, table: str, columns: Sequence[str]) -> list[tuple[object, ...]]:
    """Every row of a damaged file's table that can still be read, from both ends inwards."""
    found: dict[object, tuple[object, ...]] = {}
    names = ", ".join(columns)
    for direction in ("ASC", "DESC"):
        query = f"SELECT rowid, {names} FROM {table} ORDER BY rowid {direction}"
        with suppress(sqlite3.Error):
            db = sqlite3.connect(f"file:{damaged}?mode=ro", uri=True)
            try:
                for key, *row in db.execute(query):
                    found.setdefault(key, tuple(row))
            finally:
                db.close()
    return [found[key] for key in sorted(found)]  # type: ignore[type-var]  # rowids are integers
