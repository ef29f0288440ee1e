"""Databases of every kind, filled with rows of every shape that their columns allow."""

from __future__ import annotations

import contextlib
import random
import re
import secrets
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import Jsonb
from psycopg.types.multirange import Multirange
from psycopg.types.range import Range

from cloud.kernel.migrate import migrate, modules

DAY: Final = date(2026, 5, 1)
DAYS: Final = [DAY + timedelta(days=n) for n in range(3)]
LETTERS: Final = string.ascii_letters + "ÄöüßЎқғҳ \t\n\\'\"\u2028🔌"
NOTHING: Final = 0.3
"""How often a column that may be empty is; some tables refuse rows in which all are filled."""


@dataclass
class Column:
    name: str
    type: str
    nullable: bool = False
    choices: list[str] = field(default_factory=list)


@contextmanager
def database_on(server: str, template: str = "template0") -> Iterator[str]:
    """A database of its own on that server."""
    name = f"backup_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield make_conninfo(server, dbname=name)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def new_database() -> Iterator[Callable[[str], str]]:
    """`new_database(server)`: an empty one of its own."""
    with contextlib.ExitStack() as stack:
        yield lambda server: stack.enter_context(database_on(server))


@pytest.fixture
def empty(embedded_postgres_dsn: str) -> Iterator[str]:
    with database_on(embedded_postgres_dsn) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def filled_template(embedded_postgres_dsn: str) -> Iterator[str]:
    with database_on(embedded_postgres_dsn) as dsn:
        migrate(dsn)
        fill(dsn, random.Random(4))
        yield str(conninfo_to_dict(dsn)["dbname"])


@pytest.fixture
def filled(embedded_postgres_dsn: str, filled_template: str) -> Iterator[str]:
    """An embedded cloud's database with rows in every table."""
    with database_on(embedded_postgres_dsn, filled_template) as dsn:
        yield dsn


@pytest.fixture
def fill_rows() -> Callable[[str], None]:
    return lambda dsn: fill(dsn, random.Random(5))


@pytest.fixture
def all_rows() -> Callable[[str], dict[str, list[str]]]:
    return everything


def tables(connection: psycopg.Connection) -> list[str]:
    found = connection.execute(
        "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')"
        " AND NOT c.relispartition AND n.nspname = ANY(%s) ORDER BY c.oid",
        (modules(),),
    )
    return [row[0] for row in found]


def everything(dsn: str) -> dict[str, list[str]]:
    """Every row of every table as text, sorted."""
    with psycopg.connect(dsn, options="-c timezone=UTC") as connection:
        return {
            table: sorted(row[0] for row in connection.execute(f"SELECT t::text FROM {table} t"))
            for table in tables(connection)
        }


def fill(dsn: str, chance: random.Random, count: int = 12) -> None:
    """Rows in every table, in the order of their making, so that foreign keys find theirs."""
    with psycopg.connect(dsn, autocommit=True, options="-c timezone=UTC") as connection:
        for maker in _partition_makers(connection):
            connection.execute(f"SELECT {maker}(%s::date[])", (DAYS,))
        for table in tables(connection):
            columns = _columns(connection, table)
            for _ in range(count):
                with contextlib.suppress(psycopg.IntegrityError):
                    _insert(connection, table, columns, chance)


def _partition_makers(connection: psycopg.Connection) -> list[str]:
    found = connection.execute(
        "SELECT p.oid::regproc::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
        " WHERE n.nspname = ANY(%s) AND p.proname LIKE 'ensure%%' AND p.pronargs = 1"
        " AND p.proargtypes[0] = 'date[]'::regtype",
        (modules(),),
    )
    return [row[0] for row in found]


def _insert(
    connection: psycopg.Connection, table: str, columns: list[Column], chance: random.Random
) -> None:
    row = {column.name: _value(column, chance) for column in columns}
    for names, parent, keys in _references(connection, table):
        found = connection.execute(
            f"SELECT {', '.join(keys)} FROM {parent} ORDER BY random() LIMIT 1"
        ).fetchone()
        row |= dict(zip(names, found or [None] * len(names), strict=True))
    statement = sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})").format(
        sql.SQL(table),
        sql.SQL(", ").join(map(sql.Identifier, row)),
        sql.SQL(", ").join([sql.Placeholder()] * len(row)),
    )
    connection.execute(statement, list(row.values()))


def _columns(connection: psycopg.Connection, table: str) -> list[Column]:
    """The columns that take a value, and the words that a check allows them."""
    checks = " ".join(
        row[0]
        for row in connection.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE contype = 'c' AND conrelid = %s::regclass",
            (table,),
        )
    )
    found = connection.execute(
        "SELECT attname::text, atttypid::regtype::text, NOT attnotnull FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''",
        (table,),
    )
    return [Column(name, kind, nullable, _words(checks, name)) for name, kind, nullable in found]


def _words(checks: str, column: str) -> list[str]:
    found = re.search(rf"\(\(?{column} = ANY \(ARRAY\[(.*?)\]", checks)
    return re.findall(r"'([^']*)'", found.group(1)) if found else []


def _references(
    connection: psycopg.Connection, table: str
) -> list[tuple[list[str], str, list[str]]]:
    def names(of: str, numbers: str) -> str:
        return (
            "(SELECT array_agg(attname::text ORDER BY o) FROM unnest(k."
            f"{numbers}) WITH ORDINALITY u(n, o) JOIN pg_attribute ON attrelid = k.{of}"
            " AND attnum = u.n)"
        )

    return connection.execute(
        f"SELECT {names('conrelid', 'conkey')}, confrelid::regclass::text,"
        f" {names('confrelid', 'confkey')} FROM pg_constraint k"
        " WHERE contype = 'f' AND conrelid = %s::regclass AND conparentid = 0",
        (table,),
    ).fetchall()


def _value(column: Column, chance: random.Random) -> Any:
    if column.nullable and chance.random() < NOTHING:
        return None
    if column.choices:
        return chance.choice(column.choices)
    if column.type == "text":
        return "".join(chance.choices(LETTERS, k=chance.randrange(20)))
    if column.type.endswith("[]"):
        inner = Column(column.name, column.type.removesuffix("[]"))
        return [_value(inner, chance) for _ in range(chance.randrange(1, 5))]
    return MAKERS[column.type](chance)


MAKERS: Final[dict[str, Callable[[random.Random], Any]]] = {
    "smallint": lambda chance: chance.choice([-32768, 0, 1, 2, 32767]),
    "integer": lambda chance: chance.choice([1000, 2**31 - 1, chance.randrange(1000, 2**31 - 1)]),
    "bigint": lambda chance: chance.choice([1000, chance.randrange(1000, 2**62)]),
    "numeric": lambda chance: chance.randrange(10**30),
    "double precision": lambda chance: chance.uniform(-90, 90),
    "real": lambda chance: chance.uniform(-90, 90),
    "boolean": lambda chance: chance.random() < 0.5,
    "uuid": lambda chance: UUID(int=chance.getrandbits(128)),
    "bytea": lambda chance: chance.randbytes(chance.randrange(40)),
    "jsonb": lambda chance: Jsonb({"ключ": [1, None, 'quo"te', {"a": 1.5}]}),
    "date": lambda chance: chance.choice(DAYS),
    "timestamp with time zone": lambda chance: (
        datetime(2026, 5, 1, tzinfo=UTC)
        + timedelta(microseconds=chance.randrange(3 * 86_400_000_000))
    ),
    "interval": lambda chance: timedelta(seconds=chance.randrange(10**6)),
    "int8multirange": lambda chance: Multirange(
        [Range(1, chance.randrange(2, 50)), Range(100, chance.randrange(101, 200))]
    ),
}
