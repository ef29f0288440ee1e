"""Fills a database from a backup: schema as it was, rows, numbers, then today's schema."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import date
from typing import Final

from psycopg import sql

from cloud.kernel.backup import archive, catalogue
from cloud.kernel.backup.archive import BadBackup
from cloud.kernel.backup.catalogue import Unprepared
from cloud.kernel.backup.dump import Told, owner
from cloud.kernel.cursor import PlainCursor as Cursor
from cloud.kernel.migrate import known_revisions, migrate, modules

Here = dict[str, catalogue.Relation]
EVENT_LEAP: Final = 1_000_000_000
"""More events than any partition gets between a backup and the loss that it repairs."""


async def load(dsn: str, reader: archive.Reader, told: Told, *, wipe: bool = False) -> list[str]:
    """Put the backup's rows into the database; returns what was wiped for it.

    Either all rows are in at the end, or the database holds none of ours. Without `wipe` it must
    be empty. Raises Unprepared before anything is changed, BadBackup, Unavailable.
    """
    demand_known(reader.manifest)
    wiped = await _prepare(dsn, wipe=wipe)
    try:
        await asyncio.to_thread(migrate, dsn, to=reader.manifest.heads)
        await _fill(dsn, reader, told)
    except BaseException:
        await _prepare(dsn, wipe=True)
        raise
    await asyncio.to_thread(migrate, dsn)
    return wiped


def demand_known(manifest: archive.Manifest) -> None:
    """Raises Unprepared when a newer Karvon made the backup."""
    if unknown := set(manifest.heads) - known_revisions():
        raise Unprepared(
            f"the backup stands at {', '.join(sorted(unknown))}, which this Karvon does not know; "
            "restore it with the Karvon that made it, or a newer one"
        )


async def _prepare(dsn: str, *, wipe: bool) -> list[str]:
    """Have nothing of ours in the database; returns the schemas that were dropped."""
    async with owner(dsn) as connection, connection.transaction(), connection.cursor() as cursor:
        await catalogue.demand_rights(cursor)
        await _demand_quiet(cursor)
        held = await _held(cursor)
        if held and not wipe:
            raise Unprepared(
                f"the database is not empty: it holds {', '.join(held)}; restore into a new "
                "one, or give --force, which wipes these"
            )
        for schema in held:
            await cursor.execute(
                sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema))
            )
        await cursor.execute("DROP TABLE IF EXISTS public.karvon_migration")
        return held


async def _held(cursor: Cursor) -> list[str]:
    await cursor.execute(
        "SELECT nspname::text FROM pg_namespace WHERE nspname = ANY(%s) ORDER BY 1", (modules(),)
    )
    return [row[0] for row in await cursor.fetchall()]


async def _demand_quiet(cursor: Cursor) -> None:
    """Raises Unprepared when a cloud uses this database."""
    await cursor.execute(
        "SELECT count(*), min(client_addr::text) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'karvon karvon%'"
    )
    found = await cursor.fetchone()
    if found and found[0]:
        raise Unprepared(
            f"a cloud is using this database ({found[0]} connections from "
            f"{found[1] or 'this machine'}); stop it first"
        )


async def _fill(dsn: str, reader: archive.Reader, told: Told) -> None:
    manifest = reader.manifest
    async with owner(dsn) as connection, connection.transaction(), connection.cursor() as cursor:
        await _ensure_partitions(cursor, manifest, await _same_tables(cursor, manifest))
        names = [catalogue.identifier(table.name) for table in manifest.tables]
        await cursor.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(names)))
        for table in manifest.tables:
            await _table(cursor, reader, table, told)
        for sequence in manifest.sequences:
            if sequence.last is not None:
                await cursor.execute(
                    "SELECT setval(%s::regclass, %s)",
                    (catalogue.identifier(sequence.name).as_string(cursor), sequence.last),
                )
        await _leap(cursor)


async def _ensure_partitions(cursor: Cursor, manifest: archive.Manifest, here: Here) -> None:
    """Where partitions were, the same ones; where chunks were, their days' partitions."""
    days: dict[str, set[date]] = {}
    for table in manifest.tables:
        if here[table.name].native:
            await _add_partitions(cursor, table)
        schema = here[table.name].schema
        days.setdefault(schema, set()).update(map(date.fromisoformat, table.days))
    for schema in sorted(await catalogue.day_makers(cursor, modules())):
        await cursor.execute(
            sql.SQL("SELECT {}(%s::date[])").format(sql.Identifier(schema, "ensure_days")),
            (sorted(days.get(schema, ())),),
        )


async def _add_partitions(cursor: Cursor, table: archive.Table) -> None:
    schema = table.name.partition(".")[0]
    for name, first, last in table.partitions:
        await cursor.execute(
            sql.SQL(
                "CREATE TABLE IF NOT EXISTS {} PARTITION OF {} FOR VALUES FROM ({}) TO ({})"
            ).format(
                sql.Identifier(schema, name),
                catalogue.identifier(table.name),
                sql.Literal(first),
                sql.Literal(last),
            )
        )


async def _same_tables(cursor: Cursor, manifest: archive.Manifest) -> Here:
    """Raises BadBackup when the migrations do not make the tables that the backup holds."""
    here = {one.full_name: one for one in await catalogue.relations(cursor, modules())}
    if differing := here.keys() ^ {table.name for table in manifest.tables}:
        raise BadBackup(
            f"the backup and its own migrations differ in {', '.join(sorted(differing))}; "
            "restore it with the Karvon that made it"
        )
    return here


async def _table(cursor: Cursor, reader: archive.Reader, table: archive.Table, told: Told) -> None:
    done = 0
    async with cursor.copy(_copy_in(table.name, table.columns, table.encoding)) as copy:
        for block in reader.blocks(table):
            await copy.write(block)
            done += len(block)
            told(table.name, done)
    if cursor.rowcount != table.rows:
        raise BadBackup(
            f"the table {table.name} got {cursor.rowcount} rows instead of {table.rows}; use "
            "another backup"
        )


def _copy_in(name: str, columns: Sequence[str], encoding: str) -> sql.Composed:
    return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT {})").format(
        catalogue.identifier(name),
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL("BINARY" if encoding == "binary" else "TEXT"),
    )


async def _leap(cursor: Cursor) -> None:
    """Give events numbers that were never given before.

    Readers outside kept cursors of events that the backup does not have; under the same numbers
    they would miss as many of those that come now.
    """
    await cursor.execute("UPDATE kernel.event_partition SET next = next + %s", (EVENT_LEAP,))
