"""Several statements in one turn: in their order, up to the first failure, with their rows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest

from cloud.kernel import turns
from cloud.kernel.cursor import Cursor
from cloud.kernel.turns import Ask, Connection

_PUT = "INSERT INTO told VALUES (%s, %s)"
_ALL = "SELECT n, text FROM told ORDER BY n"


@pytest.fixture
async def connection(kernel_dsn: str) -> AsyncIterator[Connection]:
    opened = await Connection.connect(kernel_dsn, autocommit=True, cursor_factory=Cursor)
    async with opened:
        await opened.execute("CREATE TEMP TABLE told (n int PRIMARY KEY, text text)")
        yield opened


async def test_each_gives_its_rows(connection: Connection) -> None:
    at, key = datetime(2026, 5, 1, tzinfo=UTC), UUID(int=7)
    found = await connection.turn(
        [
            Ask(_PUT, (1, "one")),
            Ask(
                "SELECT %(at)s, %(key)s, %(at)s, %(none)s::int",
                {"at": at, "key": key, "none": None},
            ),
            Ask("SELECT 7 %% 4, %s::int[]", ([1, 2],)),
            Ask("SELECT '%'"),
            Ask(_ALL),
        ]
    )
    assert found == [[], [(at, key, at, None)], [(3, [1, 2])], [("%",)], [(1, "one")]]
    assert await connection.turn([]) == []


async def test_the_first_failure_ends_it_and_the_connection_is_sound(
    connection: Connection,
) -> None:
    begun = [Ask("BEGIN"), Ask(_PUT, (1, "one"))]
    with pytest.raises(psycopg.errors.UniqueViolation, match="told_pkey"):
        await connection.turn([*begun, Ask(_PUT, (1, "again")), Ask(_PUT, (2, "behind it"))])
    assert await connection.turn([Ask("ROLLBACK"), Ask(_ALL)]) == [[], []]
    with pytest.raises(psycopg.errors.UndefinedTable):
        await connection.turn([Ask("SELECT 1"), Ask("SELECT * FROM nothing"), Ask(_ALL)])
    assert await connection.turn([Ask(_ALL), Ask(_PUT, (3, "three")), Ask(_ALL)]) == [
        [],
        [],
        [(3, "three")],
    ]


async def test_what_is_prepared_outlives_none_of_the_drivers_clearing(
    connection: Connection,
) -> None:
    for n in range(10):  # the driver prepares after some, and clears all after a rollback
        await connection.execute("SELECT %s::int", (n,))
    await connection.turn([Ask(_PUT, (1, "one"))])
    async with connection.transaction() as transaction:
        await connection.execute("SELECT %s::int", (1,))
        raise psycopg.Rollback(transaction)
    await connection.execute("SELECT %s::int", (1,))
    await connection.turn([Ask(_PUT, (2, "two")), Ask(_PUT, (3, "three"))])
    assert len((await connection.turn([Ask(_ALL)]))[0]) == 3


async def test_more_statements_than_are_prepared(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "MOST_PREPARED", 3)
    asks = [Ask(_PUT, (1, "one")), *(Ask(_ALL) for _ in range(2)), Ask("SELECT %s", ("text",))]
    asks += [Ask("SELECT %s", (1,)), Ask("SELECT %s::text", ("other",))]
    for _ in range(2):
        *_, last, least = await connection.turn([Ask("DELETE FROM told"), *asks])
        assert (last, least) == ([(1,)], [("other",)])
    named = await connection.execute("SELECT count(*) FROM pg_prepared_statements")
    assert await named.fetchone() == (3,)


async def test_more_than_any_buffer_holds_both_ways(connection: Connection) -> None:
    long = "x" * 4_000_000
    found = await connection.turn([Ask("SELECT %s::text", (long,)) for _ in range(6)])
    assert all(rows == [(long,)] for rows in found)


async def test_what_was_foreseen_is_given_out_once_and_only_for_the_same_question(
    connection: Connection,
) -> None:
    async with connection.cursor() as cursor:
        assert isinstance(cursor, Cursor)
        await connection.turn([Ask(_PUT, (1, "one"))])
        one = "SELECT text FROM told WHERE n = %s"
        await cursor.begin([Ask(one, (1,)), Ask(_ALL)])
        await cursor.execute("UPDATE told SET text = 'later'")
        assert await cursor.ask(one, (1,)) == [("one",)]
        assert await cursor.ask(one, (1,)) == [("later",)]
        assert await cursor.ask(_ALL) == [(1, "one")]
        await cursor.execute("ROLLBACK")
        await cursor.begin([Ask(one, (1,)), Ask(_ALL)])
        assert await cursor.ask(one, (2,)) == []
        await cursor.execute("DELETE FROM told")
        cursor.let_go()
        assert await cursor.ask(_ALL) == []
        await cursor.execute("COMMIT")
