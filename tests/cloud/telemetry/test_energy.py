"""What the fleet has charged, from the roll-ups."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import httpx
import pytest

from cloud.kernel.facts import Delivery
from cloud.stations.api import StationRef, to_ms
from cloud.telemetry.energy import Energy
from cloud.telemetry.tiers.keeper import Keep
from protocols.agent_link import ClockQuality, Sample, Stamp, Stream, TelemetryBatch
from protocols.quantities import Milliseconds, WattHours
from protocols.series import to_series

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
URL = "/api/v1/telemetry/energy"


@pytest.fixture(scope="session")
def cloud_server(embedded_postgres_dsn: str) -> str:
    """One server is enough for what has no SQL of its own per kind of server."""
    return embedded_postgres_dsn


Reading = tuple[int, datetime, int]
"""EVSE, time, register in Wh."""


def delivery(station: StationRef, told: Sequence[Reading]) -> Delivery:
    def stamp(at: datetime) -> Stamp:
        wall = Milliseconds(to_ms(at))
        return Stamp(wall, Milliseconds(wall - 10**9), UUID(int=1), ClockQuality.SYNCED)

    samples = [Sample(evse=e, at=stamp(at), energy_wh=WattHours(wh)) for e, at, wh in told]
    batch = TelemetryBatch(UUID(int=2), 1, 1, stamp(NOON), to_series(samples))
    return Delivery(station.id, station.tenant_id, UUID(int=2), NOON, Stream.TELEMETRY, batch)


def hours(evse: int, *registers: int | None, start: datetime = NOON) -> list[Reading]:
    """A reading an hour, ending before noon."""
    first = start - timedelta(hours=len(registers))
    return [
        (evse, first + timedelta(hours=n, minutes=30), wh)
        for n, wh in enumerate(registers)
        if wh is not None
    ]


async def ask(client: httpx.AsyncClient, **params: Any) -> dict[str, Any]:
    answer = await client.get(URL, params={"to": "2026-05-01T12:00:00Z", **params})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def energies(client: httpx.AsyncClient, **params: Any) -> list[int]:
    return [item["energy_wh"] for item in (await ask(client, **params))["items"]]


async def test_energy_is_the_registers_difference_across_holes(
    world: Any, admin: httpx.AsyncClient
) -> None:
    one, two = await world.station("CP-1"), await world.station("CP-2")
    await world.commit(delivery(one, hours(1, 1000, 1100, None, 1500, 1700)))
    await world.commit(delivery(two, hours(1, None, None, 50_000, 50_000, 50_010)))
    await world.telemetry.roll(NOON + timedelta(hours=1))
    asked = {"every": "1h", "from": "2026-05-01T06:00:00Z"}
    assert await energies(admin, **asked) == [0, 100, 0, 400, 210]
    assert await energies(admin, **{**asked, "from": "2026-05-01T09:31:00Z"}) == [400, 210]
    by_station = await ask(admin, every="1d", group="station")
    assert [(i["station"], i["energy_wh"]) for i in by_station["items"]] == [
        ("CP-1", 700),
        ("CP-2", 10),
    ]


async def test_the_sites_meter_is_not_added_to_its_evses(
    world: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    both = [*hours(0, 9_000_000, 9_900_000), *hours(1, 0, 60), *hours(2, 5, 6)]
    await world.commit(delivery(station, both))
    await world.telemetry.roll(NOON + timedelta(hours=1))
    assert await energies(admin, every="1d") == [61]


async def test_days_are_the_callers_own(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    told = hours(1, *range(0, 72 * 1000, 1000))
    await world.commit(delivery(station, told))
    await world.telemetry.roll(NOON + timedelta(hours=1))
    for zone in ("UTC", "Asia/Tashkent", "Asia/Kathmandu", "America/St_Johns"):
        items = (await ask(admin, time_zone=zone))["items"]
        local = [datetime.fromisoformat(i["at"]).astimezone(ZoneInfo(zone)) for i in items[1:]]
        assert {at.time().isoformat() for at in local} == {"00:00:00"}
        assert sum(i["energy_wh"] for i in items) == 71_000
    assert await energies(admin, time_zone="Asia/Tashkent") == [6000, 24_000, 24_000, 17_000]


def test_a_day_is_as_long_as_the_clocks_make_it() -> None:
    zone = ZoneInfo("Europe/Berlin")
    start = datetime(2026, 3, 28, tzinfo=zone)
    asked = Energy(start, start + timedelta(days=3), timedelta(days=1), zone, None, None)
    bounds = asked.bounds()
    lengths = [(b.timestamp() - a.timestamp()) // 3600 for a, b in pairwise(bounds)]
    assert lengths == [24, 23, 24]


async def test_what_is_not_rolled_up_yet_is_said(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    await world.commit(delivery(station, hours(1, 0, 10, 20, 30)))
    assert (await ask(admin))["counted_until"] is None
    await world.telemetry.roll(NOON - timedelta(minutes=57))
    told = await ask(admin, every="1h")
    assert told["counted_until"] == "2026-05-01T11:00:00Z"
    assert [item["energy_wh"] for item in told["items"]] == [0, 10, 10]
    await world.commit(delivery(station, hours(2, 0, 7, start=NOON - timedelta(hours=2))))
    assert (await ask(admin))["late_hours"] == 2
    await world.telemetry.roll(NOON + timedelta(hours=1))
    told = await ask(admin, every="1h")
    assert (told["late_hours"], told["counted_until"]) == (0, "2026-05-01T12:00:00Z")
    assert [item["energy_wh"] for item in told["items"]] == [0, 17, 10, 10]


async def test_a_caller_sees_only_its_own_stations(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station("CP-9", tenant=2)
    await world.commit(delivery(station, hours(1, 0, 10)))
    await world.telemetry.roll(NOON + timedelta(hours=1))
    assert (await ask(admin))["items"] == []


async def test_sites_apart_and_in_groups(world: Any, admin: httpx.AsyncClient) -> None:
    site = (await admin.post("/api/v1/sites", json={"name": "Chorsu"})).json()["id"]
    for number, name in enumerate(("CP-1", "CP-2"), start=1):
        station = await world.station(name)
        await world.commit(delivery(station, hours(1, 0, 10 * number)))
    await admin.patch("/api/v1/stations/CP-2", json={"site": site})
    await world.telemetry.roll(NOON + timedelta(hours=1))
    assert await energies(admin, site=site) == [20]
    items = (await ask(admin, group="site"))["items"]
    assert [(i["site"], i["energy_wh"]) for i in items] == [(None, 10), (site, 20)]


async def test_pages_and_csv(world: Any, admin: httpx.AsyncClient) -> None:
    for name in ("CP-1", "CP-2", "CP-3"):
        await world.commit(delivery(await world.station(name), hours(1, 0, 10, 20)))
    await world.telemetry.roll(NOON + timedelta(hours=1))
    asked: dict[str, Any] = {"every": "1h", "group": "station", "limit": 4}
    first = await ask(admin, **asked)
    second = await ask(admin, **asked, cursor=first["next"])
    third = await ask(admin, **asked, cursor=second["next"])
    seen = [(i["at"], i["station"]) for page in (first, second, third) for i in page["items"]]
    assert len(set(seen)) == 9
    assert seen == sorted(seen)
    assert third["next"] is None
    params = {"to": "2026-05-01T12:00:00Z", **asked}
    answer = await admin.get(URL, params=params, headers={"Accept": "text/csv"})
    lines = answer.text.splitlines()
    assert lines[0] == "at,to,energy_wh,stations,station,site"
    assert len(lines) == 5
    assert "cursor=" in answer.headers["link"]


async def test_senseless_questions_are_refused(admin: httpx.AsyncClient) -> None:
    for params in (
        {"every": "1s"},
        {"every": "1m", "from": "2026-01-01T00:00:00Z"},
        {"time_zone": "Mars/Olympus"},
        {"time_zone": "../etc/passwd"},
        {"time_zone": "America"},
        {"from": "2026-05-01T12:00:00Z"},
        {"group": "tenant"},
        {"cursor": "nonsense"},
    ):
        answer = await admin.get(URL, params={"to": "2026-05-01T12:00:00Z", **params})
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"


async def test_random_registers_give_what_a_model_gives(
    world: Any, admin: httpx.AsyncClient, sample_size: Callable[[int, int], int]
) -> None:
    """Late, compacted, with samples and minutes forgotten: the same sums."""
    dice = random.Random(11)
    told: dict[tuple[str, int], list[Reading]] = defaultdict(list)
    start = NOON - timedelta(days=4)
    for name in ("CP-1", "CP-2"):
        station = await world.station(name)
        for evse in (1, 2):
            at, register = start, dice.randrange(10**6)
            while at < NOON - timedelta(minutes=1):
                told[name, evse].append((evse, at, register))
                at += timedelta(seconds=dice.choice((60, 600, 4000, 30_000)))
                register += dice.randrange(500)
        readings = [*told[name, 1], *told[name, 2]]
        dice.shuffle(readings)
        for first in range(0, len(readings), 40):
            await world.commit(delivery(station, readings[first : first + 40]))
            if dice.random() < 0.5:
                await world.telemetry.roll(start + timedelta(hours=dice.randrange(100)))
    await world.telemetry.roll(NOON + timedelta(hours=1))
    for keep in (Keep(), Keep(raw=timedelta(days=1), minutes=timedelta(days=1))):
        for _ in range(3):
            await world.telemetry.tidy(NOON, keep)
        for _ in range(sample_size(8, 100)):
            step = timedelta(hours=dice.choice((1, 3, 5)))
            since = start + timedelta(hours=dice.randrange(90))
            asked = Energy(since, NOON, step, ZoneInfo("UTC"), None, None)
            items = (
                await ask(
                    admin,
                    every=f"{step // timedelta(hours=1)}h",
                    **{"from": since.isoformat()},
                )
            )["items"]
            found = {datetime.fromisoformat(i["at"]): i["energy_wh"] for i in items}
            assert found == _model(told, asked.bounds())


def _model(
    told: dict[tuple[str, int], list[Reading]], bounds: list[datetime]
) -> dict[datetime, int]:
    sums: dict[datetime, int] = defaultdict(int)
    for readings in told.values():
        before = [wh for _, at, wh in readings if at < bounds[0]]
        last = before[-1] if before else None
        for first, end in pairwise(bounds):
            inside = [wh for _, at, wh in readings if first <= at < end]
            if inside:
                sums[first] += inside[-1] - (inside[0] if last is None else last)
                last = inside[-1]
    return dict(sums)
