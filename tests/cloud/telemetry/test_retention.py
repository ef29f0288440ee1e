"""What the keeper keeps, for how long, and how it is taken over."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest

from cloud.kernel.database import Database, TenantId
from cloud.kernel.facts import Delivery
from cloud.kernel.http import Caller, Role
from cloud.stations.api import StationRef, to_ms
from cloud.telemetry.service import Span
from cloud.telemetry.tiers import store as tiers
from cloud.telemetry.tiers.keeper import Keep
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


@asynccontextmanager
async def other(dsn: str) -> AsyncIterator[Database]:
    """Another process's connections."""
    async with Database.open(dsn, app_pool=1, commit_pool=4) as database:
        yield database


@pytest.fixture(scope="session")
def cloud_server(embedded_postgres_dsn: str) -> str:
    """One kind of server is enough here; the other suites of the tiers run on both."""
    return embedded_postgres_dsn


async def test_one_keeper_at_a_time(world: Any, cloud_dsn: str) -> None:
    async with other(cloud_dsn) as database:
        async with world.database.commit_unit() as mine:
            assert await tiers.begin(mine, 10)
            async with database.commit_unit() as theirs:
                assert not await tiers.begin(theirs, 10)
        async with database.commit_unit() as theirs:
            assert await tiers.begin(theirs, 10)


async def test_each_tier_is_kept_for_its_own_time(world: Any) -> None:
    station = await world.station()
    for day in range(4):
        await world.commit(delivery(station, START + day * DAY + timedelta(hours=1), 120))
    await world.telemetry.roll(NOON)
    keep = Keep(raw=DAY, minutes=2 * DAY, hours=3 * DAY, hot=DAY)
    await world.telemetry.tidy(NOON, keep)
    await world.telemetry.tidy(NOON, keep)
    span = Span(START, NOON, timedelta(seconds=30), None)
    answer = await world.telemetry.read(BOSS, "CP-1", span, None, 100)
    assert [(b.at - START, b.samples) for b in answer.buckets] == [
        (DAY + timedelta(hours=1), 120),
        (2 * DAY + timedelta(hours=1), 60),
        (2 * DAY + timedelta(hours=1, minutes=1), 60),
        *((3 * DAY + timedelta(hours=1, seconds=30 * n), 30) for n in range(4)),
    ]
    assert [(c.tier.value, c.start, c.end) for c in answer.coarse] == [
        ("hour", floor_day(START + DAY), floor_day(START + 2 * DAY)),
        ("minute", floor_day(START + 2 * DAY), floor_day(START + 3 * DAY)),
    ]
    assert await counted(world, timedelta(hours=1)) == 360
    await world.commit(delivery(station, START + timedelta(hours=2)))
    await world.telemetry.roll(NOON + timedelta(minutes=5))
    assert await counted(world, timedelta(hours=1)) == 360, "too late, even for its hour"


def floor_day(at: datetime) -> datetime:
    return at.replace(hour=0)


async def test_rare_measurands_age_too(world: Any) -> None:
    station = await world.station()
    one = delivery(station, START, 3)
    assert isinstance(one.batch, TelemetryBatch)
    (series,) = one.batch.series
    more = {"temperature_mdeg": (41_000, None, -(2**40)), "fan_rpm": (1, 1, 1)}
    batch = msgspec.structs.replace(one.batch, series=(msgspec.structs.replace(series, more=more),))
    await world.commit(
        Delivery(station.id, station.tenant_id, UUID(int=2), NOON, Stream.TELEMETRY, batch)
    )

    async def found() -> list[Any]:
        async with world.database.unit(1) as cursor:
            await cursor.execute(
                "SELECT name, time, value FROM telemetry.api_extra ORDER BY name, time"
            )
            return list(await cursor.fetchall())

    hot = await found()
    assert [value for _, _, value in hot] == [1, 2, 3, 41_000, 41_000 - 2**40]
    await world.telemetry.roll(NOON)
    await world.telemetry.tidy(NOON, KEEP)
    assert await found() == hot


async def test_compression_that_no_licence_offers_gives_way_to_blocks(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await world.commit(delivery(await world.station(), START))
    await world.telemetry.roll(NOON)
    await world.telemetry.tidy(NOON, dataclasses.replace(KEEP, compaction="timescale"))
    assert "no compression" in caplog.text
    async with world.database.commit_unit() as cursor:
        await cursor.execute("SELECT sum(samples) FROM telemetry.block")
        assert await cursor.fetchone() == (10,)
    assert await stored(world) == 10


async def test_a_cut_off_keeper_is_taken_over(world: Any) -> None:
    """Each step that was committed counts; none is done twice."""
    station = await world.station()
    for hour in range(0, 96, 7):
        await world.commit(delivery(station, START + hour * HOUR))
    for milliseconds in range(0, 60, 6):
        with suppress(TimeoutError):
            async with asyncio.timeout(milliseconds / 1000):
                await world.telemetry.roll(NOON)
                await world.telemetry.tidy(NOON, KEEP)
        assert await counted(world, HOUR) == await stored(world) == 140
    await world.telemetry.roll(NOON)
    await world.telemetry.tidy(NOON, KEEP)
    assert await counted(world, HOUR) == await stored(world) == 140
