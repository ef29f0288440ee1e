"""Samples on their way into the table and out again in buckets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest

from cloud.kernel.facts import Delivery
from cloud.stations.api import StationRef, to_ms
from cloud.telemetry.tiers.keeper import Keep
from protocols.agent_link import (
    BillingBatch,
    BillingFact,
    ClockCorrected,
    ClockQuality,
    Sample,
    SeriesGap,
    Stamp,
    Stream,
    TelemetryBatch,
)
from protocols.quantities import MilliAmperes, Milliseconds, WattHours, Watts
from protocols.series import to_series

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
BOOT, OUTBOX = UUID(int=1), UUID(int=2)
URL = "/api/v1/stations/CP-1/telemetry"


def stamp(at: datetime, quality: ClockQuality = ClockQuality.SYNCED, boot: UUID = BOOT) -> Stamp:
    mono = 10_000_000 + (at - NOON) // timedelta(milliseconds=1)
    wall = mono if quality is ClockQuality.UNSET else to_ms(at)
    return Stamp(Milliseconds(wall), Milliseconds(mono), boot, quality)


def samples(
    start: datetime,
    count: int,
    *,
    evse: int = 1,
    energy: int = 0,
    quality: ClockQuality = ClockQuality.SYNCED,
    boot: UUID = BOOT,
) -> list[Sample]:
    """One a second: 1 Wh each, 3600 W, every third current missing."""
    return [
        Sample(
            evse=evse,
            at=stamp(start + timedelta(seconds=n), quality, boot),
            energy_wh=WattHours(energy + n),
            power_w=Watts(3600),
            current_l1_ma=None if n % 3 == 2 else MilliAmperes(16_000),
        )
        for n in range(count)
    ]


def delivery(station: StationRef, told: list[Sample], sent: Stamp | None = None) -> Delivery:
    batch = TelemetryBatch(OUTBOX, 1, 1, sent or stamp(NOON), to_series(told))
    return Delivery(station.id, station.tenant_id, OUTBOX, NOON, Stream.TELEMETRY, batch)


def billing(station: StationRef, fact: BillingFact) -> Delivery:
    batch = BillingBatch(OUTBOX, 1, 1, stamp(NOON), (fact,))
    return Delivery(station.id, station.tenant_id, OUTBOX, NOON, Stream.BILLING, batch)


async def read(client: httpx.AsyncClient, **params: Any) -> dict[str, Any]:
    answer = await client.get(URL, params={"to": "2026-05-01T13:00:00Z", **params})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_buckets_hold_last_energy_and_mean_power(
    world: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    await world.commit(delivery(station, samples(NOON - timedelta(minutes=3), 180)))
    told = await read(admin, every="60s", **{"from": "2026-05-01T11:00:00Z"})
    assert [item["energy_wh"] for item in told["items"]] == [59, 119, 179]
    first = told["items"][0]
    assert first["at"] == "2026-05-01T11:57:00Z"
    assert (first["power_w"], first["power_max_w"], first["samples"]) == (3600, 3600, 60)
    assert (first["current_l1_ma"], first["voltage_l1_mv"]) == (16_000, None)


async def test_a_mean_weighs_samples_by_what_they_stand_for(
    world: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    short = Sample(evse=1, at=stamp(NOON), every_ms=Milliseconds(1000), power_w=Watts(0))
    long = Sample(
        evse=1,
        at=stamp(NOON + timedelta(seconds=9)),
        every_ms=Milliseconds(9000),
        power_w=Watts(1000),
    )
    await world.commit(delivery(station, [short, long]))
    (bucket,) = (await read(admin, every="60s"))["items"]
    assert bucket["power_w"] == 900


async def test_days_get_their_tables_late_ones_too(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    for days in (0, 1, 45, 1):
        start = NOON - timedelta(days=days, seconds=5)
        await world.commit(delivery(station, samples(start, 2, energy=1000 - days)))
    midnight = datetime(2026, 5, 1, tzinfo=UTC)
    await world.commit(delivery(station, samples(midnight - timedelta(seconds=1), 2)))
    told = await read(admin, every="1d", **{"from": "2026-03-01T00:00:00Z"})
    assert [item["at"][:10] for item in told["items"]] == ["2026-03-17", "2026-04-30", "2026-05-01"]
    assert [item["samples"] for item in told["items"]] == [2, 5, 3]


async def test_pages_cut_between_buckets(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    both = [*samples(NOON, 120), *samples(NOON, 120, evse=2)]
    await world.commit(delivery(station, both))
    first = await read(admin, every="60s", limit=3)
    rest = await read(admin, every="60s", limit=3, cursor=first["next"])
    seen = [(item["evse"], item["at"]) for item in [*first["items"], *rest["items"]]]
    assert len(set(seen)) == 4
    assert seen == sorted(seen)
    assert rest["next"] is None
    only = await read(admin, every="60s", evse=2)
    assert {item["evse"] for item in only["items"]} == {2}


async def test_an_undated_boot_waits_for_its_clock(world: Any, admin: httpx.AsyncClient) -> None:
    station, boot = await world.station(), UUID(int=9)
    unset = samples(NOON, 5, quality=ClockQuality.UNSET, boot=boot)
    await world.commit(delivery(station, unset))
    assert (await read(admin))["items"] == []
    offset = Milliseconds(to_ms(NOON) - 10_000_000)
    fact = ClockCorrected(uuid4(), boot, offset, ClockQuality.SYNCED)
    await world.commit(billing(station, fact))
    assert [item["samples"] for item in (await read(admin))["items"]] == [5]
    await world.commit(billing(station, fact))
    assert [item["samples"] for item in (await read(admin))["items"]] == [5]


async def test_an_untrusted_clock_of_this_boot_is_dated_by_the_receipt(
    world: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    unset = samples(NOON - timedelta(seconds=5), 5, quality=ClockQuality.UNSET)
    await world.commit(delivery(station, unset, stamp(NOON, ClockQuality.UNSET)))
    (bucket,) = (await read(admin))["items"]
    assert bucket["at"] == "2026-05-01T11:59:00Z"


async def test_gaps_are_shown_beside_the_samples(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    first, last = to_ms(NOON - timedelta(hours=1)), to_ms(NOON)
    gap = SeriesGap(uuid4(), 1, Milliseconds(first), Milliseconds(last), 3600, "evicted")
    told = [event.kind for event in await world.commit(billing(station, gap))]
    assert told == ["telemetry.thinned"]
    (shown,) = (await read(admin))["gaps"]
    assert (shown["samples"], shown["cause"]) == (3600, "evicted")
    assert shown["first_at"] == "2026-05-01T11:00:00Z"
    assert (await read(admin, evse=2))["gaps"] == []


async def test_another_tenant_sees_nothing(world: Any) -> None:
    station = await world.station(tenant=2)
    await world.commit(delivery(station, samples(NOON, 5)))
    async with world.database.unit(1) as cursor:
        await cursor.execute("SELECT count(*) FROM telemetry.api_sample")
        assert await cursor.fetchone() == (0,)
    async with world.database.unit(2) as cursor:
        await cursor.execute("SELECT count(*) FROM telemetry.api_sample")
        assert await cursor.fetchone() == (5,)


async def test_old_days_go_and_coming_days_are_made(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    for days in (0, 10, 20):
        await world.commit(delivery(station, samples(NOON - timedelta(days=days), 2)))
    keep = Keep(*(timedelta(days=15),) * 3, hot=timedelta(days=400))
    await world.telemetry.roll(NOON + timedelta(hours=1))
    assert await world.telemetry.tidy(NOON, keep) == 0, "hidden first, dropped when nobody reads it"
    assert await world.telemetry.tidy(NOON, keep) > 0
    told = await read(admin, every="1d", **{"from": "2026-03-01T00:00:00Z"})
    assert [item["at"][:10] for item in told["items"]] == ["2026-04-21", "2026-05-01"]
    await world.commit(delivery(station, samples(NOON + timedelta(hours=20), 2)))


async def test_rare_measurands_are_kept(world: Any) -> None:
    station = await world.station()
    series = msgspec.structs.replace(
        to_series(samples(NOON, 3))[0], more={"temperature_mdeg": (41_000, None, 250)}
    )
    batch = TelemetryBatch(OUTBOX, 1, 1, stamp(NOON), (series,))
    await world.commit(
        Delivery(station.id, station.tenant_id, OUTBOX, NOON, Stream.TELEMETRY, batch)
    )
    async with world.database.unit(1) as cursor:
        await cursor.execute("SELECT name, value FROM telemetry.api_extra ORDER BY time")
        assert await cursor.fetchall() == [
            ("temperature_mdeg", 41_000),
            ("temperature_mdeg", 41_250),
        ]


@pytest.mark.parametrize(
    "params",
    [
        {"every": "0s"},
        {"every": "1 minute"},
        {"from": "2026-05-01T14:00:00Z"},
        {"from": "0001-01-01T00:00:00Z"},
        {"from": "2020-01-01T00:00:00Z"},
        {"evse": "-1"},
        {"cursor": "nonsense"},
    ],
)
async def test_senseless_questions_are_refused(
    world: Any, admin: httpx.AsyncClient, params: dict[str, str]
) -> None:
    await world.station()
    answer = await admin.get(URL, params={"to": "2026-05-01T13:00:00Z", **params})
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
