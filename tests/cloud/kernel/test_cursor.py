"""Statements that wait for the COMMIT: in their order, all of them or none."""

from __future__ import annotations

import psycopg
import pytest

from cloud.kernel.database import Database
from cloud.kernel.errors import Unavailable

_PUT = "INSERT INTO public.said VALUES (%s, %s)"


@pytest.fixture
async def said(kernel_dsn: str) -> None:
    connection = await psycopg.AsyncConnection.connect(kernel_dsn, autocommit=True)
    async with connection:
        await connection.execute("CREATE TABLE public.said (n int PRIMARY KEY, text text)")
        await connection.execute("GRANT ALL ON public.said TO karvon_commit")


async def rows(database: Database) -> list[tuple[int, str]]:
    async with database.glance() as cursor:
        await cursor.execute("SELECT n, text FROM public.said ORDER BY n")
        return [(n, text) for n, text in await cursor.fetchall()]


@pytest.mark.usefixtures("said")
async def test_what_waits_is_written_in_order_with_the_commit(database: Database) -> None:
    async with database.commit_unit() as cursor:
        cursor.hold_back()
        await cursor.at_last(_PUT, (1, "first"))
        await cursor.at_last("UPDATE public.said SET text = text || %s", (" second",))
        await cursor.execute("SELECT count(*) FROM public.said")
        assert await cursor.fetchone() == (0,)
        await cursor.commit()
        assert not cursor.holds_back
    assert await rows(database) == [(1, "first second")]


@pytest.mark.usefixtures("said")
async def test_without_holding_back_it_is_written_at_once(database: Database) -> None:
    async with database.commit_unit() as cursor:
        await cursor.at_last(_PUT, (1, "now"))
        await cursor.execute("SELECT count(*) FROM public.said")
        assert await cursor.fetchone() == (1,)
    assert await rows(database) == [(1, "now")]


@pytest.mark.usefixtures("said")
async def test_catching_up_makes_it_readable_and_goes_on_holding_back(database: Database) -> None:
    async with database.commit_unit() as cursor:
        cursor.hold_back()
        await cursor.at_last(_PUT, (1, "read"))
        await cursor.catch_up()
        await cursor.execute("SELECT text FROM public.said")
        assert await cursor.fetchone() == ("read",)
        await cursor.at_last(_PUT, (2, "later"))
        await cursor.commit()
    assert await rows(database) == [(1, "read"), (2, "later")]


@pytest.mark.usefixtures("said")
async def test_one_failure_leaves_nothing_and_the_connection_is_sound(database: Database) -> None:
    async with database.commit_unit() as cursor:
        cursor.hold_back()
        await cursor.at_last(_PUT, (1, "good"))
        await cursor.at_last(_PUT, (1, "twice"))
        await cursor.at_last(_PUT, (2, "behind it"))
        with pytest.raises(psycopg.errors.UniqueViolation):
            await cursor.commit()
        await cursor.execute("ROLLBACK")
        await cursor.execute("BEGIN")
        await cursor.at_last(_PUT, (3, "again"))
    assert await rows(database) == [(3, "again")]


@pytest.mark.usefixtures("said")
async def test_forgotten_statements_are_not_written(database: Database) -> None:
    async with database.commit_unit() as cursor:
        cursor.hold_back()
        await cursor.at_last(_PUT, (1, "no"))
        cursor.let_go()
        await cursor.at_last(_PUT, (2, "yes"))
    assert await rows(database) == [(2, "yes")]


@pytest.mark.usefixtures("said")
async def test_a_server_that_ends_it_is_unavailable(database: Database, kernel_dsn: str) -> None:
    async def ended() -> None:
        async with database.commit_unit() as cursor:
            cursor.hold_back()
            await cursor.at_last(_PUT, (1, "lost"))
            pid = cursor.connection.info.backend_pid
            with psycopg.connect(kernel_dsn, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            await cursor.commit()

    with pytest.raises(Unavailable):
        await ended()
    assert await rows(database) == []
