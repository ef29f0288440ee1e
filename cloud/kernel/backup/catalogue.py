"""What there is to back up: asked of the database's catalogue, so that no list can be forgotten."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from psycopg import sql

from cloud.kernel.cursor import PlainCursor as Cursor
from cloud.kernel.errors import KarvonError, Kind
from cloud.kernel.rows import rows

BOUND: Final = re.compile(r"FOR VALUES FROM \('([^']+)'\) TO \('([^']+)'\)")


class Unprepared(KarvonError):
    """The database is not fit for this: not ours, too new, in use, or without the rights."""

    kind = Kind.CONFLICT
    code = "backup.unprepared"


@dataclass(frozen=True)
class Relation:
    """A table of ours: a plain one, a partitioned parent, or a hypertable."""

    id: int
    schema: str
    name: str
    columns: list[str]
    native: bool
    """Whether it is partitioned by PostgreSQL itself."""
    portable: bool
    """Whether every column has a type of PostgreSQL's own, whose binary form is fixed."""

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def encoding(self) -> Literal["binary", "text"]:
        return "binary" if self.portable else "text"


def identifier(full_name: str) -> sql.Identifier:
    return sql.Identifier(*full_name.split(".", 1))


async def demand_rights(cursor: Cursor) -> None:
    """Raises Unprepared unless this role sees every tenant's rows."""
    await cursor.execute(
        "SELECT rolsuper OR rolbypassrls, current_user FROM pg_roles WHERE rolname = current_user"
    )
    found = await cursor.fetchone()
    if found is None or not found[0]:
        raise Unprepared(
            f"the database's role {found[1] if found else '?'} is bound to one tenant's rows; use "
            "the role that owns the schema, with BYPASSRLS (docs/operations.md)"
        )


async def heads(cursor: Cursor) -> tuple[str, ...]:
    """The migrations that the database stands at; none when it is not ours yet."""
    await cursor.execute("SELECT to_regclass('public.karvon_migration') IS NOT NULL")
    found = await cursor.fetchone()
    if not found or not found[0]:
        return ()
    await cursor.execute("SELECT version_num FROM public.karvon_migration ORDER BY 1")
    return tuple(row[0] for row in await cursor.fetchall())


async def relations(cursor: Cursor, schemas: Sequence[str]) -> list[Relation]:
    """Every table of these schemas, each after those that its foreign keys name."""
    found = await rows(
        cursor,
        Relation,
        "SELECT c.oid::int8 AS id, n.nspname AS schema, c.relname AS name,"
        " c.relkind = 'p' AS native,"
        " array_agg(a.attname::text ORDER BY a.attnum) AS columns,"
        " bool_and(t.typnamespace = 'pg_catalog'::regnamespace) AS portable"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        " AND a.attgenerated = ''"
        " JOIN pg_type t ON t.oid = a.atttypid"
        " WHERE n.nspname = ANY(%(schemas)s) AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
        " GROUP BY c.oid, n.nspname, c.relname, c.relkind ORDER BY n.nspname, c.relname",
        {"schemas": list(schemas)},
    )
    return _ordered(found, await _references(cursor, schemas))


async def _references(cursor: Cursor, schemas: Sequence[str]) -> set[tuple[int, int]]:
    """Pairs of a table and another one that it refers to."""
    await cursor.execute(
        "SELECT k.conrelid::int8, k.confrelid::int8 FROM pg_constraint k"
        " JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE k.contype = 'f' AND k.conrelid <> k.confrelid"
        " AND n.nspname = ANY(%(schemas)s)",
        {"schemas": list(schemas)},
    )
    return {(row[0], row[1]) for row in await cursor.fetchall()}


def _ordered(found: list[Relation], references: set[tuple[int, int]]) -> list[Relation]:
    waiting, done, ordered = list(found), set[int](), list[Relation]()
    known = {relation.id for relation in found}
    needs = {
        relation.id: {to for of, to in references if of == relation.id and to in known}
        for relation in found
    }
    while waiting:
        free = [relation for relation in waiting if needs[relation.id] <= done]
        if not free:
            names = ", ".join(relation.full_name for relation in waiting)
            raise Unprepared(f"these tables refer to each other in a ring: {names}")
        ordered += free
        done |= {relation.id for relation in free}
        waiting = [relation for relation in waiting if relation.id not in done]
    return ordered


async def sequences(cursor: Cursor, schemas: Sequence[str]) -> list[tuple[str, int | None]]:
    """Name and last number of each sequence; they may run ahead of the rows, never behind."""
    await cursor.execute(
        "SELECT schemaname || '.' || sequencename, last_value FROM pg_sequences"
        " WHERE schemaname = ANY(%s) ORDER BY 1",
        (list(schemas),),
    )
    return [(row[0], row[1]) for row in await cursor.fetchall()]


async def partitions(cursor: Cursor, relation: Relation) -> tuple[tuple[str, str, str], ...]:
    """Name, first and last bound of each native partition by range; none when it has none."""
    await cursor.execute(
        "SELECT c.relname::text, pg_get_expr(c.relpartbound, c.oid) FROM pg_class c"
        " JOIN pg_inherits i ON i.inhrelid = c.oid JOIN pg_partitioned_table p"
        " ON p.partrelid = i.inhparent WHERE i.inhparent = %s AND p.partstrat = 'r'"
        " ORDER BY c.relname",
        (relation.id,),
    )
    found = [(row[0], BOUND.fullmatch(row[1])) for row in await cursor.fetchall()]
    return tuple((name, bound[1], bound[2]) for name, bound in found if bound is not None)


async def chunk_days(cursor: Cursor, relation: Relation) -> tuple[str, ...]:
    """The days that a hypertable's chunks cover; none for other tables."""
    await cursor.execute("SELECT to_regclass('timescaledb_information.chunks') IS NOT NULL")
    found = await cursor.fetchone()
    if not found or not found[0]:
        return ()
    await cursor.execute(
        "SELECT DISTINCT generate_series(range_start, range_end - interval '1 us',"
        " interval '1 day')::date::text AS day FROM timescaledb_information.chunks"
        " WHERE hypertable_schema = %s AND hypertable_name = %s"
        " AND range_start IS NOT NULL ORDER BY day",
        (relation.schema, relation.name),
    )
    return tuple(row[0] for row in await cursor.fetchall())


async def day_makers(cursor: Cursor, schemas: Sequence[str]) -> set[str]:
    """The schemas that make partitions of days themselves: `<schema>.ensure_days(date[])`."""
    await cursor.execute(
        "SELECT n.nspname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE p.proname = 'ensure_days' AND n.nspname = ANY(%(schemas)s)"
        " AND p.pronargs = 1 AND p.proargtypes[0] = 'date[]'::regtype",
        {"schemas": list(schemas)},
    )
    return {row[0] for row in await cursor.fetchall()}
