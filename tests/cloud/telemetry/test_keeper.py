"""The keeper beside writers and readers: each sample exactly once, at every instant."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from cloud.kernel.database import Database, TenantId
from cloud.kernel.errors import Contended, Unavailable
from cloud.kernel.facts import Delivery
from cloud.kernel.http import Caller, Role
from cloud.stations.api import StationRef, to_ms
from cloud.telemetry.service import Span
from cloud.telemetry.tiers import store as tiers
from cloud.telemetry.tiers.keeper import Keep, Keeper
from cloud.telemetry.writer import TelemetryWriter
from protocols.agent_link import ClockQuality, Sample, Stamp, Stream, TelemetryBatch
from protocols.quantities import Milliseconds, WattHours, Watts
from protocols.series import to_series

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
START = NOON - timedelta(days=4)
BOSS = Caller(TenantId(1), "test", Role.ADMIN)
KEEP = Keep(hot=timedelta(days=1))
DAY, HOUR, SECOND = timedelta(days=1), timedelta(hours=1), timedelta(seconds=1)


def delivery(station: StationRef, at: datetime, count: int = 10) -> Delivery:
    """Samples one a second."""

    def stamp(one: datetime) -> Stamp:
        wall = Milliseconds(to_ms(one))
        return Stamp(wall, Milliseconds(wall - 10**9), UUID(int=1), ClockQuality.SYNCED)

    told = [
        Sample(
            evse=1, at=stamp(at + timedelta(seconds=n)), energy_wh=WattHours(n), power_w=Watts(n)
        )
        for n in range(count)
    ]
    batch = TelemetryBatch(UUID(int=2), 1, 1, stamp(NOON), to_series(told))
    return Delivery(station.id, station.tenant_id, UUID(int=2), NOON, Stream.TELEMETRY, batch)


async def counted(world: Any, every: timedelta = DAY) -> int:
    """All samples of the station, as a query tells."""
    span = Span(START - DAY, NOON, every, None)
    answer = await world.telemetry.read(BOSS, "CP-1", span, None, 10_000)
    return sum(bucket.samples for bucket in answer.buckets)


async def stored(world: Any) -> int:
    async with world.database.unit(1) as cursor:
        await cursor.execute("SELECT count(*) FROM telemetry.api_sample")
        return int((await cursor.fetchone())[0])


class Beside:
    """What goes on at the same time over one station: writing, keeping, looking."""

    def __init__(self, world: Any, station: StationRef, batches: int) -> None:
        self.world = world
        self.station = station
        self.batches = batches
        self.now = START
        self.begun = self.committed = 0

    async def write(self, seed: int) -> None:
        """Live samples and, four times in ten, late ones."""
        dice, writer = random.Random(seed), TelemetryWriter()
        for number in range(self.batches):
            self.now = max(self.now, START + number * (NOON - START) / self.batches)
            late = dice.random() if dice.random() < 0.4 else 1
            told = delivery(self.station, START + (self.now - START) * late - 10 * SECOND)
            self.begun += 10
            async with self.world.database.commit_unit() as cursor:
                await writer.write_batch(cursor, [told])
                await asyncio.sleep(dice.random() * 0.01)
            self.committed += 10

    async def keep(self, database: Database, seed: int) -> None:
        """For ever; but for seed 0 cut off after some milliseconds, again and again."""
        keeper, dice = Keeper(database), random.Random(seed)
        while True:
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(dice.choice((0.02, 0.1, 5)) if seed else 5):
                    await keeper.roll(self.now)
                    await keeper.tidy(self.now, KEEP)
            await asyncio.sleep(0)

    async def look(self) -> None:
        while True:
            for count in (counted, stored):
                before = self.committed
                found = await count(self.world)
                assert before <= found <= self.begun, "each sample once"


async def test_writers_readers_and_keepers_side_by_side(
    world: Any, cloud_dsn: str, sample_size: Callable[[int, int], int]
) -> None:
    station = await world.station()
    async with other(cloud_dsn) as database, world_pool(cloud_dsn, world):
        beside = Beside(world, station, sample_size(60, 2000))
        background = [
            asyncio.create_task(work)
            for work in (beside.keep(world.database, 0), beside.keep(database, 1), beside.look())
        ]
        await asyncio.gather(beside.write(1), beside.write(2))
        for task in background:
            task.cancel()
        ended = await asyncio.gather(*background, return_exceptions=True)
        assert [one for one in ended if not isinstance(one, asyncio.CancelledError)] == []
        for _ in range(2):
            await Keeper(world.database).roll(NOON + HOUR)
            await Keeper(world.database).tidy(NOON, KEEP)
        for every in (HOUR, timedelta(minutes=1), 7 * SECOND):
            assert await pages(world, every) == beside.committed


async def pages(world: Any, every: timedelta) -> int:
    after, total = None, 0
    while True:
        answer = await world.telemetry.read(
            BOSS, "CP-1", Span(START - DAY, NOON, every, 1), after, 5000
        )
        total += sum(bucket.samples for bucket in answer.buckets)
        if len(answer.buckets) < 5000:
            return total
        after = (answer.buckets[-1].evse, answer.buckets[-1].at)


@asynccontextmanager
async def other(dsn: str) -> AsyncIterator[Database]:
    """Another process's connections."""
    async with Database.open(dsn, app_pool=1, commit_pool=4) as database:
        yield database


@asynccontextmanager
async def world_pool(dsn: str, world: Any) -> AsyncIterator[None]:
    """More connections than a test usually needs."""
    async with Database.open(dsn, app_pool=4, commit_pool=8) as database:
        world.database, world.telemetry._database = database, database
        yield


async def test_a_writer_that_read_the_old_fence_is_waited_for(world: Any, cloud_dsn: str) -> None:
    """It noted nothing, since nothing was late when it looked; the roll-up must hold them."""
    station = await world.station()
    async with other(cloud_dsn) as database:
        keeper = Keeper(database)
        async with world.database.commit_unit() as cursor:
            await TelemetryWriter().write_batch(cursor, [delivery(station, START, 60)])
            rolling = asyncio.create_task(keeper.roll(START + timedelta(hours=2)))
            while (await marks(database)).fence == (await marks(database)).until:
                await asyncio.sleep(0.01)
            assert not rolling.done()
        await rolling
    assert (await marks(world.database)).until > START + timedelta(hours=1)
    assert await counted(world, timedelta(hours=1)) == 60


async def marks(database: Database) -> Any:
    async with database.commit_unit() as cursor:
        return await tiers.marks(cursor)


async def test_a_late_writer_keeps_its_day_from_being_dropped(world: Any, cloud_dsn: str) -> None:
    station = await world.station()
    await world.commit(delivery(station, START))
    await world.telemetry.roll(NOON)
    async with other(cloud_dsn) as database:
        async with world.database.commit_unit() as cursor:
            await TelemetryWriter().write_batch(cursor, [delivery(station, START + HOUR)])
            with suppress(Contended):
                await Keeper(database).tidy(NOON, KEEP)
        assert await stored(world) == 20
        await Keeper(database).tidy(NOON, KEEP)
    assert await stored(world) == 20
    async with world.database.commit_unit() as cursor:
        assert START.date() not in {hot.day for hot in await tiers.hot_days(cursor)}
