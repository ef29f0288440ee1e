"""A database and what a backup makes of it again, on both kinds of server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import msgspec
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cloud.kernel.backup import BadBackup, Manifest, Reader, Unprepared, Writer, dump, load
from cloud.kernel.backup.load import EVENT_LEAP
from cloud.kernel.database import Database
from cloud.kernel.migrate import migrate, modules

AT = datetime(2026, 5, 1, 12, tzinfo=UTC)
Rows = dict[str, list[str]]
LEAPING = "kernel.event_partition"


def ignore(table: str, done: int) -> None:
    """No progress to be told."""


async def back_up(dsn: str, path: Path) -> Manifest:
    with Writer.to(path) as writer:
        return await dump(dsn, writer, AT, ignore, {})


async def restore(dsn: str, path: Path, *, wipe: bool = False) -> list[str]:
    with Reader.of(path) as reader:
        return await load(dsn, reader, ignore, wipe=wipe)


def leapt(rows: Rows, times: int = 1) -> Rows:
    """The rows as restores make them: event numbers go on far behind those that were given."""
    numbers = [row[1:-1].split(",") for row in rows[LEAPING]]
    after = sorted(f"({part},{int(next_) + times * EVENT_LEAP})" for part, next_ in numbers)
    return {**rows, LEAPING: after}


# --------------------------------------------------------------------------- there and back


async def test_every_row_survives_the_way_to_timescale_and_back(
    filled: str,
    embedded_postgres_dsn: str,
    timescale_dsn: str,
    new_database: Callable[[str], str],
    all_rows: Callable[[str], Rows],
    tmp_path: Path,
) -> None:
    truth = all_rows(filled)
    assert [table for table, rows in truth.items() if not rows] == []
    here = filled
    for number, server in enumerate((timescale_dsn, embedded_postgres_dsn)):
        path = tmp_path / f"{number}.tar"
        manifest = await back_up(here, path)
        assert manifest.rows == sum(map(len, truth.values()))
        here = new_database(server)
        assert await restore(here, path) == []
        assert all_rows(here) == leapt(truth, number + 1)


async def test_the_restored_database_goes_on_with_new_numbers(
    filled: str, empty: str, tmp_path: Path
) -> None:
    with psycopg.connect(filled, autocommit=True) as connection:
        key = "INSERT INTO users.tenant (name) VALUES (%s) RETURNING id"
        used = [connection.execute(key, (name,)).fetchone()[0] for name in "ab"]
        connection.execute("DELETE FROM users.tenant WHERE id = ANY(%s)", (used,))
    await back_up(filled, tmp_path / "one.tar")
    await restore(empty, tmp_path / "one.tar")
    with psycopg.connect(empty, autocommit=True) as connection:
        assert connection.execute(key, ("c",)).fetchone() == (used[-1] + 1,)


async def test_a_backup_of_an_older_karvon_is_brought_up_to_date(
    embedded_postgres_dsn: str,
    new_database: Callable[[str], str],
    fill_rows: Callable[[str], None],
    all_rows: Callable[[str], Rows],
    tmp_path: Path,
) -> None:
    """From each module's first migration to its last, with rows in every table."""
    old, new = new_database(embedded_postgres_dsn), new_database(embedded_postgres_dsn)
    migrate(old, to=[f"{module}_0001" for module in modules()])
    fill_rows(old)
    manifest = await back_up(old, tmp_path / "old.tar")
    assert all(head.endswith("_0001") for head in manifest.heads)
    await restore(new, tmp_path / "old.tar")
    before, after = all_rows(old), all_rows(new)
    assert before.keys() < after.keys()
    assert {table: len(rows) for table, rows in before.items()} == {
        table: len(after[table]) for table in before
    }
    with psycopg.connect(new) as connection:
        heads = connection.execute("SELECT version_num FROM public.karvon_migration").fetchall()
    assert {head for (head,) in heads} & {"kernel_0001", "telemetry_0001"} == set()


async def test_event_numbers_are_never_given_twice(filled: str, empty: str, tmp_path: Path) -> None:
    """A reader that saw events after the backup must not miss those after the restore."""
    await back_up(filled, tmp_path / "one.tar")
    numbers = "SELECT min(next) FROM kernel.event_partition"
    with psycopg.connect(filled) as before:
        old = before.execute(numbers).fetchone()
    await restore(empty, tmp_path / "one.tar")
    with psycopg.connect(empty) as after:
        new = after.execute(numbers).fetchone()
    assert old is not None
    assert new == (old[0] + EVENT_LEAP,)


# --------------------------------------------------------------------------- one instant


async def test_all_tables_show_the_same_instant(filled: str, empty: str, tmp_path: Path) -> None:
    """Beside a writer that puts one row into two tables in each transaction."""
    running = asyncio.Event()
    writing = asyncio.create_task(_pairs(filled, running))
    await asyncio.wait_for(running.wait(), 10)
    for number in range(3):
        await back_up(filled, tmp_path / f"{number}.tar")
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await restore(empty, tmp_path / "2.tar")
    with psycopg.connect(empty) as connection:
        first = connection.execute(
            "SELECT topic FROM kernel.dead_letter WHERE reason = 'pair' ORDER BY 1"
        ).fetchall()
        second = connection.execute(
            "SELECT value FROM \"authorization\".token_ref WHERE type = 'pair' ORDER BY 1"
        ).fetchall()
    assert first == second
    assert first


async def _pairs(dsn: str, running: asyncio.Event) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        while True:
            name = str(uuid4())
            async with connection.transaction():
                await connection.execute(
                    'INSERT INTO "authorization".token_ref (tenant_id, value, type)'
                    " VALUES (1, %s, 'pair')",
                    (name,),
                )
                await connection.execute(
                    "INSERT INTO kernel.dead_letter (topic, reason, payload)"
                    " VALUES (%s, 'pair', '')",
                    (name,),
                )
            running.set()


# --------------------------------------------------------------------------- what is refused


async def test_a_database_that_holds_a_cloud_is_wiped_only_when_told(
    filled: str, all_rows: Callable[[str], Rows], tmp_path: Path
) -> None:
    before = all_rows(filled)
    await back_up(filled, tmp_path / "one.tar")
    with psycopg.connect(filled, autocommit=True) as connection:
        connection.execute("DELETE FROM kernel.dead_letter")
    with pytest.raises(Unprepared, match=r"not empty: .*kernel.*--force"):
        await restore(filled, tmp_path / "one.tar")
    assert "kernel" in await restore(filled, tmp_path / "one.tar", wipe=True)
    assert all_rows(filled) == leapt(before)


async def test_a_database_that_a_cloud_uses_is_left_alone(filled: str, tmp_path: Path) -> None:
    await back_up(filled, tmp_path / "one.tar")
    async with Database.open(filled, app_pool=1, commit_pool=1) as cloud:
        assert await cloud.healthy()
        with pytest.raises(Unprepared, match="stop it first"):
            await restore(filled, tmp_path / "one.tar", wipe=True)


async def test_nothing_stays_of_a_restore_that_failed(
    filled: str, empty: str, all_rows: Callable[[str], Rows], tmp_path: Path
) -> None:
    with Writer.to(tmp_path / "bad.tar") as writer:
        await dump(filled, Miscounting(writer), AT, ignore, {})  # type: ignore[arg-type]  # in its shape
    with pytest.raises(BadBackup, match="rows instead of"):
        await restore(empty, tmp_path / "bad.tar")
    assert all_rows(empty) == {}


class Miscounting:
    """An archive's writer that says one table has a row more."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.table = writer.table

    def seal(self, manifest: Manifest) -> Manifest:
        *tables, last = manifest.tables
        wrong = msgspec.structs.replace(last, rows=last.rows + 1)
        return self._writer.seal(msgspec.structs.replace(manifest, tables=(*tables, wrong)))


async def test_a_backup_of_a_newer_karvon_is_refused(
    filled: str, empty: str, all_rows: Callable[[str], Rows], tmp_path: Path
) -> None:
    with psycopg.connect(filled, autocommit=True) as connection:
        connection.execute("INSERT INTO public.karvon_migration VALUES ('kernel_9999')")
    with pytest.raises(Unprepared, match="kernel_9999 by a newer Karvon"):
        await back_up(filled, tmp_path / "one.tar")
    manifest = Manifest(AT, ("kernel_9999",), (), ())
    with Writer.to(tmp_path / "two.tar") as writer:
        writer.seal(manifest)
    with pytest.raises(Unprepared, match="kernel_9999"):
        await restore(empty, tmp_path / "two.tar")
    assert all_rows(empty) == {}


async def test_what_is_no_cloud_is_told(empty: str, tmp_path: Path) -> None:
    with pytest.raises(Unprepared, match="nothing to back up"):
        await back_up(empty, tmp_path / "one.tar")
    assert list(tmp_path.iterdir()) == []


async def test_a_role_that_sees_one_tenant_only_is_refused(filled: str, tmp_path: Path) -> None:
    role = f"half_{random.SystemRandom().randrange(10**9)}"
    with psycopg.connect(filled, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN IN ROLE karvon_app")
        try:
            with pytest.raises(Unprepared, match="BYPASSRLS"):
                await back_up(make_conninfo(filled, user=role), tmp_path / "one.tar")
        finally:
            connection.execute(f"DROP ROLE {role}")
