"""The commit path, proven: exactly once under duplicates, races, poison, and a dying database."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cloud.kernel.database import Cursor, Database
from cloud.kernel.embedded import EmbeddedPostgres
from cloud.kernel.errors import Unavailable
from cloud.kernel.events import Event
from cloud.kernel.facts import Delivery, GroupCommitter, to_ranges
from cloud.kernel.migrate import migrate
from protocols.agent_link import BillingBatch, Ranges, Stream

Make = Callable[..., Delivery]


class Rows:
    """A FactWriter with a table of its own: one row per delivery, no unique key to hide behind."""

    name = "rows"

    def __init__(self) -> None:
        self.calls = 0

    async def make(self, dsn: str) -> None:
        connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        async with connection:
            await connection.execute(
                "CREATE TABLE public.got (station int, outbox uuid, stream text, seq bigint)"
            )
            await connection.execute("GRANT ALL ON public.got TO karvon_commit")

    async def write_batch(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Event]:
        self.calls += 1
        await cursor.executemany(
            "INSERT INTO public.got VALUES (%s, %s, %s, %s)",
            [(d.station_id, d.outbox, str(d.stream), d.batch.seq) for d in deliveries],
        )
        for delivery in deliveries:
            self.choke(delivery)
            if delivery.batch.seq == 13:
                await cursor.execute("SELECT 1 / 0")
        return [
            Event(d.tenant_id, "row.written", d.station_id, str(d.batch.seq), {})
            for d in deliveries
        ]

    def choke(self, delivery: Delivery) -> None:
        if isinstance(delivery.batch, BillingBatch):
            for fact in delivery.batch.facts:
                if getattr(fact, "text", "") == "poison":
                    raise ValueError("this cannot be stored\0")


@pytest.fixture
async def rows(kernel_dsn: str) -> Rows:
    writer = Rows()
    await writer.make(kernel_dsn)
    return writer


async def got(database: Database) -> Counter[tuple[int, str, int]]:
    async with database.commit_unit() as cursor:
        await cursor.execute("SELECT station, stream, seq FROM public.got")
        return Counter((row[0], row[1], row[2]) for row in await cursor.fetchall())


async def marks(database: Database, station: int, stream: Stream = Stream.BILLING) -> Ranges:
    async with database.commit_unit() as cursor:
        await cursor.execute(
            "SELECT committed FROM kernel.outbox_mark WHERE station_id = %s AND stream = %s",
            (station, str(stream)),
        )
        row = await cursor.fetchone()
    assert row
    return to_ranges(row[0])


async def dead_letters(database: Database) -> list[tuple[Any, ...]]:
    async with database.commit_unit() as cursor:
        await cursor.execute("SELECT station_id, reason FROM kernel.dead_letter ORDER BY id")
        return await cursor.fetchall()


async def events_logged(database: Database) -> int:
    async with database.commit_unit() as cursor:
        await cursor.execute("SELECT count(*) FROM kernel.event WHERE kind = 'row.written'")
        row = await cursor.fetchone()
    assert row
    return int(row[0])


# --------------------------------------------------------------------------- exactly once


async def test_many_stations_shuffled_and_doubled_are_stored_once(
    database: Database, rows: Rows, make_delivery: Make, greet: Any
) -> None:
    stations = range(1, 31)
    await greet(database, *stations)
    dice = random.Random(7)
    streams = (Stream.BILLING, Stream.TELEMETRY)
    wanted = [
        make_delivery(s, n, stream) for s in stations for n in (1, 2, 4) for stream in streams
    ]
    sent = wanted + dice.choices(wanted, k=120)
    dice.shuffle(sent)
    async with GroupCommitter(database, [rows], linger_s=0.005) as sink:
        answers = await asyncio.gather(*(sink.append([delivery]) for delivery in sent))
    assert all(len(answer) == 1 for answer in answers)
    expected = {(d.station_id, str(d.stream), d.batch.seq) for d in wanted}
    assert await got(database) == Counter(expected)
    assert await events_logged(database) == len(expected)
    assert await marks(database, 5) == ((1, 2), (4, 4))
    assert rows.calls < len(sent) / 4, "stations share commits"


class Gated(Rows):
    """Holds each commit until it is let go; remembers how many deliveries each took."""

    def __init__(self) -> None:
        super().__init__()
        self.groups: list[int] = []
        self.go = asyncio.Event()
        self._begun = asyncio.Condition()

    async def write_batch(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Event]:
        async with self._begun:
            self.groups.append(len(deliveries))
            self._begun.notify_all()
        await self.go.wait()
        return []

    async def begun(self, commits: int) -> None:
        async with asyncio.timeout(30), self._begun:
            await self._begun.wait_for(lambda: len(self.groups) >= commits)


@pytest.mark.parametrize(("waiting", "beside_the_first"), [(5, False), (6, True)])
async def test_a_second_commit_begins_only_for_company(
    database: Database, make_delivery: Make, greet: Any, waiting: int, beside_the_first: bool
) -> None:
    """Decision 0023: the one that it takes first, and `company` more."""
    gated = Gated()
    await greet(database, 1, 2)
    async with GroupCommitter(database, [gated], linger_s=0, company=5) as sink:
        tasks = [asyncio.create_task(sink.append([make_delivery(1, 1)]))]
        await gated.begun(1)
        for number in range(1, 1 + waiting):
            tasks.append(asyncio.create_task(sink.append([make_delivery(2, number)])))
            for _ in range(20):  # turns of the loop in which it could be taken alone
                await asyncio.sleep(0)
        if beside_the_first:
            await gated.begun(2)
        gated.go.set()
        await asyncio.gather(*tasks)
    assert gated.groups == [1, waiting]


async def test_a_batch_of_an_outbox_that_never_greeted_is_not_committed(
    database: Database, rows: Rows, make_delivery: Make, greet: Any
) -> None:
    await greet(database, 1)
    async with GroupCommitter(database, [rows], linger_s=0) as sink:
        known, unknown = make_delivery(1, 1), make_delivery(2, 1)
        assert await sink.append([known, unknown]) == [known]
    assert await got(database) == Counter([(1, "billing", 1)])


async def test_the_floor_settles_state_and_telemetry_but_never_billing(
    database: Database, rows: Rows, make_delivery: Make, greet: Any
) -> None:
    await greet(database, 1)
    async with GroupCommitter(database, [rows], linger_s=0) as sink:
        await sink.append([make_delivery(1, 9, stream, floor=6) for stream in Stream])
    assert await marks(database, 1, Stream.TELEMETRY) == ((1, 5), (9, 9))
    assert await marks(database, 1, Stream.STATE) == ((1, 5), (9, 9))
    assert await marks(database, 1, Stream.BILLING) == ((9, 9),)


async def test_two_committers_racing_on_one_outbox_store_each_number_once(
    database: Database, rows: Rows, make_delivery: Make, greet: Any
) -> None:
    await greet(database, 1, 2)
    deliveries = [make_delivery(station, seq) for seq in range(20, 60) for station in (1, 2)]
    async with (
        GroupCommitter(database, [rows], linger_s=0, max_deliveries=3) as one,
        GroupCommitter(database, [rows], linger_s=0, max_deliveries=5) as other,
    ):
        await asyncio.gather(
            *(sink.append([d]) for d in deliveries for sink in (one, other)),
            *(sink.append(deliveries[::-1]) for sink in (one, other)),
        )
    counted = await got(database)
    assert len(counted) == 80
    assert set(counted.values()) == {1}


# --------------------------------------------------------------------------- poison


@pytest.mark.parametrize("where", [0, 4, 8])
async def test_poison_is_found_by_halving_and_the_rest_goes_on(
    database: Database, rows: Rows, make_delivery: Make, greet: Any, where: int
) -> None:
    await greet(database, 1)
    texts = ["poison" if n == where else "" for n in range(9)]
    deliveries = [make_delivery(1, n + 1, text=text) for n, text in enumerate(texts)]
    async with GroupCommitter(database, [rows], linger_s=0) as sink:
        assert await sink.append(deliveries) == deliveries
        assert await sink.append(deliveries) == deliveries, "the poison's number is settled too"
    assert await got(database) == Counter((1, "billing", n + 1) for n in range(9) if n != where)
    letters = await dead_letters(database)
    assert [letter[0] for letter in letters] == [1]
    assert "cannot be stored" in letters[0][1]
    assert await marks(database, 1) == ((1, 9),)


async def test_poison_that_the_database_refuses_is_found_as_well(
    database: Database, rows: Rows, make_delivery: Make, greet: Any
) -> None:
    await greet(database, 1)
    async with GroupCommitter(database, [rows], linger_s=0) as sink:
        await sink.append([make_delivery(1, seq) for seq in (12, 13, 14)])
    assert sorted(seq for _, _, seq in await got(database)) == [12, 14]


@pytest.mark.parametrize("seq", [2**63 - 1, 2**63, 2**64 - 1, -5])
async def test_a_number_that_no_database_holds_harms_nobody_else(
    database: Database, rows: Rows, make_delivery: Make, greet: Any, seq: int
) -> None:
    await greet(database, 1, 2)
    bad, good = make_delivery(1, seq), make_delivery(2, 1)
    async with GroupCommitter(database, [rows], linger_s=0) as sink:
        assert good in await sink.append([bad, good])
    assert await got(database) == Counter([(2, "billing", 1)])
    assert [letter[0] for letter in await dead_letters(database)] == [1]


async def test_an_event_that_the_log_cannot_hold_harms_nobody_else(
    database: Database, rows: Rows, make_delivery: Make, greet: Any
) -> None:
    class Loud(Rows):
        async def write_batch(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Event]:
            return [
                Event(d.tenant_id, "row.written", d.station_id, "s", {"text": "\0"})
                for d in deliveries
                if d.station_id == 1
            ]

    await greet(database, 1, 2)
    async with GroupCommitter(database, [rows, Loud()], linger_s=0) as sink:
        await sink.append([make_delivery(1, 1), make_delivery(2, 1)])
    assert await got(database) == Counter([(2, "billing", 1)])
    assert [letter[0] for letter in await dead_letters(database)] == [1]


async def test_a_fault_of_our_own_dead_letters_nothing(
    database: Database, rows: Rows, make_delivery: Make, greet: Any
) -> None:
    """A missing table or grant is no fact's fault: nothing is acknowledged, nothing is lost."""

    class Broken(Rows):
        async def write_batch(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Event]:
            await cursor.execute("SELECT * FROM public.not_migrated_yet")
            return []

    await greet(database, 1)
    async with GroupCommitter(database, [rows, Broken()], linger_s=0) as sink:
        with pytest.raises(Unavailable, match="not_migrated_yet"):
            await sink.append([make_delivery(1, 1)])
    assert await dead_letters(database) == []
    assert await marks(database, 1) == ()


# --------------------------------------------------------------------------- a dying database


async def until_committed(sink: GroupCommitter, delivery: Delivery) -> int:
    """Append again and again as the link does; returns how often it was refused."""
    for refused in range(200):
        try:
            assert await sink.append([delivery]) == [delivery]
        except Unavailable:
            await asyncio.sleep(0.05)
        else:
            return refused
    raise AssertionError("never committed")


async def test_a_killed_database_neither_loses_nor_doubles(
    tmp_path: Path, make_delivery: Make, greet: Any
) -> None:
    async with EmbeddedPostgres(tmp_path / "pg") as server:
        migrate(server.dsn)
        rows = Rows()
        await rows.make(server.dsn)
        async with (
            Database.open(server.dsn, app_pool=1, commit_pool=2) as database,
            GroupCommitter(database, [rows], linger_s=0.002) as sink,
        ):
            await greet(database, *range(1, 11))
            sent = [make_delivery(s, n) for n in range(20, 50) for s in range(1, 11)]
            work = [asyncio.create_task(until_committed(sink, delivery)) for delivery in sent]
            for _ in range(2):
                while sum(task.done() for task in work) < 20:
                    await asyncio.sleep(0.005)
                os.kill(server.pid, signal.SIGKILL)
                await asyncio.sleep(0.5)
            await asyncio.gather(*work)
            while not await database.healthy():
                await asyncio.sleep(0.05)
            counted = await got(database)
    assert len(counted) == 300
    assert set(counted.values()) == {1}


async def test_a_frozen_database_is_given_up_at_the_deadline_and_used_again_at_once(
    tmp_path: Path, make_delivery: Make, greet: Any
) -> None:
    """A stopped primary accepts and never answers; its clients must not hang beside a successor."""
    async with EmbeddedPostgres(tmp_path / "pg") as server:
        migrate(server.dsn)
        rows = Rows()
        await rows.make(server.dsn)
        async with Database.open(server.dsn, app_pool=1, commit_pool=1) as database:
            await greet(database, 1)
            clock = asyncio.get_running_loop().time
            children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
            frozen = [server.pid, *map(int, children)]
            for pid in frozen:
                os.kill(pid, signal.SIGSTOP)
            began = clock()
            try:
                with pytest.raises(Unavailable):
                    async with database.commit_unit(1) as cursor:
                        await cursor.execute("SELECT 1")
                took = clock() - began
            finally:
                for pid in frozen:
                    os.kill(pid, signal.SIGCONT)
            assert took < 2.5
            async with GroupCommitter(database, [rows], linger_s=0) as sink:
                await until_committed(sink, make_delivery(1, 1))
            assert clock() - began < took + 3


async def test_after_many_failed_attempts_the_database_is_found_at_once(tmp_path: Path) -> None:
    """No growing pause between attempts: each use tries anew."""
    async with EmbeddedPostgres(tmp_path / "pg") as server:
        migrate(server.dsn)
        dsn = server.dsn
    async with Database.open(dsn, app_pool=1, commit_pool=1) as database:
        for _ in range(8):
            assert not await database.healthy()
        async with EmbeddedPostgres(tmp_path / "pg"):
            assert await database.healthy()
        assert not await database.healthy()
        async with EmbeddedPostgres(tmp_path / "pg"):
            assert await database.healthy(), "connections of the earlier life are put away"


async def test_closing_the_committer_leaves_nobody_waiting(
    database: Database, rows: Rows, make_delivery: Make, greet: Any
) -> None:
    await greet(database, 1)
    sink = GroupCommitter(database, [rows], linger_s=60)
    await sink.__aenter__()
    waiting = asyncio.create_task(sink.append([make_delivery(1, 1)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await sink.__aexit__(None, None, None)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await got(database) == Counter()


def test_ranges_are_written_as_inclusive_pairs() -> None:
    multirange = psycopg.types.multirange.Multirange
    span = psycopg.types.range.Range
    assert to_ranges(multirange([span(1, 3), span(7, 8)])) == ((1, 2), (7, 7))
