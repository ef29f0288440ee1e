"""Reads every table of ours in one snapshot, beside a cloud that goes on writing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final

import psycopg
from psycopg import sql

from cloud.kernel.backup import archive, catalogue
from cloud.kernel.backup.catalogue import Relation, Unprepared
from cloud.kernel.cursor import PlainCursor as Cursor
from cloud.kernel.errors import Unavailable
from cloud.kernel.migrate import known_revisions, modules

Told = Callable[[str, int], None]
"""Called with a table's name and the bytes of it that are done, often."""

LOCK_TIMEOUT: Final = "30s"
OPTIONS: Final = (
    "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c row_security=off"
    f" -c lock_timeout={LOCK_TIMEOUT} -c timezone=UTC -c datestyle=ISO"
)


async def dump(
    dsn: str, writer: archive.Writer, taken_at: datetime, told: Told, files: Mapping[str, bytes]
) -> archive.Manifest:
    """Write the database and `files` into the archive and seal it.

    All tables show the same instant. They are locked against being dropped or changed in shape
    until the end, not against being read and written. Raises Unprepared, Unavailable, OSError.
    """
    for name, content in sorted(files.items()):
        writer.file(name, content)
    async with owner(dsn) as connection, connection.cursor() as cursor:
        await cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        await catalogue.demand_rights(cursor)
        heads = await _heads(cursor)
        relations = await catalogue.relations(cursor, modules())
        await cursor.execute(
            sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(
                sql.SQL(", ").join(catalogue.identifier(one.full_name) for one in relations)
            )
        )
        tables = [await _table(cursor, one, writer.table(one.full_name), told) for one in relations]
        sequences = await catalogue.sequences(cursor, modules())
        manifest = archive.Manifest(
            taken_at=taken_at,
            heads=heads,
            tables=tuple(tables),
            sequences=tuple(archive.Sequence(*one) for one in sequences),
        )
        sealed = writer.seal(manifest)
        await cursor.execute("COMMIT")
        return sealed


@asynccontextmanager
async def owner(dsn: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """The owner's connection, without deadlines of the server's. Raises Unavailable."""
    try:
        connection = await psycopg.AsyncConnection.connect(
            dsn, autocommit=True, options=OPTIONS, application_name="karvon-backup"
        )
        async with connection:
            yield connection
    except psycopg.OperationalError as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unavailable(f"the database is out of reach or gave up: {why}") from error


async def _heads(cursor: Cursor) -> tuple[str, ...]:
    heads = await catalogue.heads(cursor)
    if not heads:
        raise Unprepared("the database holds no cloud: there is nothing to back up")
    if unknown := set(heads) - known_revisions():
        raise Unprepared(
            f"the database was brought to {', '.join(sorted(unknown))} by a newer Karvon; back it "
            "up with that one"
        )
    return heads


async def _table(
    cursor: Cursor, relation: Relation, into: archive.TableWriter, told: Told
) -> archive.Table:
    name, columns = relation.full_name, relation.columns
    async with cursor.copy(copy_out(name, columns, relation.encoding)) as copy:
        async for block in copy:
            into.write(block)
            told(name, into.bytes)
    rows = cursor.rowcount
    digest = into.close()
    told(name, into.bytes)
    return archive.Table(
        name=name,
        columns=tuple(columns),
        encoding=relation.encoding,
        rows=rows,
        bytes=into.bytes,
        sha256=digest,
        partitions=await catalogue.partitions(cursor, relation),
        days=await catalogue.chunk_days(cursor, relation),
    )


def copy_out(name: str, columns: Sequence[str], encoding: str) -> sql.Composed:
    """COPY of a SELECT: a partitioned table's or hypertable's own rows are none."""
    return sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT {})").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        catalogue.identifier(name),
        sql.SQL("BINARY" if encoding == "binary" else "TEXT"),
    )
