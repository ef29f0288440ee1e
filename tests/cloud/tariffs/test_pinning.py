"""Which version a start gets: the narrowest place, the moment of the start, one tenant's own."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from cloud.kernel.database import Database, TenantId
from cloud.kernel.etags import ANYTHING
from cloud.kernel.handover import Move
from cloud.kernel.http import Caller, Role
from cloud.stations.api import sites_of
from cloud.tariffs.api import PriceBook, Start, TariffVersion, pin, pins
from cloud.tariffs.service import Draft, Place, TariffHandover
from cloud.tariffs.store import versions

MINE, THEIRS = TenantId(1), TenantId(2)
BOSS = Caller(MINE, "key:1", Role.OPERATOR)
HOUR = timedelta(hours=1)


class Network:
    """Tariffs by the name of where they hold, and what a start there gets."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.tariffs: dict[str, int] = {}

    async def tariff(self, name: str, tenant: TenantId = MINE, **given: Any) -> int:
        caller = Caller(tenant, "key:1", Role.OPERATOR)
        made = await self.world.tariffs.create(caller, name, "UZS", Draft("1500", **given))
        self.tariffs[name] = made.tariff.id
        return self.tariffs[name]

    async def assign(self, name: str, place: Place, tenant: TenantId = MINE) -> int:
        caller = Caller(tenant, "key:1", Role.OPERATOR)
        held = await self.world.tariffs.assign(caller, self.tariffs[name], place)
        return int(held.row.id)

    async def got(self, *starts: tuple[int, int, datetime], tenant: TenantId = MINE) -> list[Any]:
        """What starts of (station, EVSE, time) get, as the commit path asks: names, or None."""
        names = {number: name for name, number in self.tariffs.items()}
        async with self.world.database.commit_unit() as cursor:
            pinned = await pins(cursor, [Start(tenant, *one) for one in starts])
            told = await versions(cursor, [one for one in pinned if one is not None])
        return [None if one is None else names[told[one].tariff_id] for one in pinned]


@pytest.fixture
def network(world: Any) -> Network:
    return Network(world)


async def at_site(world: Any, identity: str, site: int) -> int:
    await world.stations.create_station(BOSS, identity, "", site)
    async with world.database.commit_unit() as cursor:
        return int((await world.stations.find(cursor, identity)).id)


async def test_the_narrowest_place_wins(world: Any, network: Network) -> None:
    site = (await world.stations.create_site(BOSS, {"name": "Home", "address": "",
        "latitude": None, "longitude": None, "time_zone": "UTC"})).id  # fmt: skip
    here, there = await at_site(world, "CP-1", site), await at_site(world, "CP-2", site)
    away = (await world.station("CP-3")).id
    for name in ("all", "site", "station", "evse"):
        await network.tariff(name)
    now = world.clock()
    asked = [(here, 1, now), (here, 2, now), (there, 1, now), (away, 1, now)]
    assert await network.got(*asked) == [None] * 4
    await network.assign("evse", Place(station="CP-1", evse=1))
    assert await network.got(*asked) == ["evse", None, None, None]
    await network.assign("all", Place())
    assert await network.got(*asked) == ["evse", "all", "all", "all"]
    held = await network.assign("site", Place(site=site))
    assert await network.got(*asked) == ["evse", "site", "site", "all"]
    await network.assign("station", Place(station="CP-1"))
    assert await network.got(*asked) == ["evse", "station", "site", "all"]
    await world.tariffs.unassign(BOSS, held, ANYTHING)
    assert await network.got(*asked) == ["evse", "station", "all", "all"]
    async with world.database.unit(MINE) as cursor:
        one = await pin(cursor, MINE, there, site, 1, now)
        assert one == (await pins(cursor, [Start(MINE, there, 1, now)]))[0]
        assert await pins(cursor, []) == []


async def test_a_start_gets_what_held_when_it_was(world: Any, network: Network) -> None:
    """Facts come late: what changed meanwhile does not touch them."""
    station = (await world.station()).id
    before = world.clock()
    world.clock.forward(hours=1)
    await network.tariff("old")
    await network.assign("old", Place())
    world.clock.forward(hours=1)
    await network.tariff("new")
    await network.assign("new", Place())
    held = await network.assign("new", Place())
    world.clock.forward(hours=1)
    await world.tariffs.unassign(BOSS, held, ANYTHING)
    moments = [before + n * HOUR / 2 for n in range(9)]
    assert await network.got(*[(station, 1, at) for at in moments]) == [
        None, None, "old", "old", "new", "new", None, None, None,
    ]  # fmt: skip


async def test_versions_begin_when_they_were_given_to(world: Any, network: Network) -> None:
    station = (await world.station()).id
    now = world.clock()
    number = await network.tariff("day")
    await network.assign("day", Place())
    for draft in (
        Draft("1600", valid_from=now + 4 * HOUR),
        Draft("1700", valid_from=now + 2 * HOUR),
        Draft("1800", valid_from=now + 4 * HOUR),
    ):
        await world.tariffs.add_version(BOSS, number, draft, ANYTHING)
    book = PriceBook()
    async with world.database.commit_unit() as cursor:
        starts = [Start(MINE, station, 1, now + n * HOUR) for n in range(5)]
        pinned = [one for one in await pins(cursor, starts) if one is not None]
        told = await book.versions(cursor, set(pinned))
    assert [told[one].number for one in pinned] == [1, 1, 3, 3, 4]


async def test_one_that_has_not_begun_is_passed_over(world: Any, network: Network) -> None:
    station = (await world.station("CP-1")).id
    now = world.clock()
    await network.tariff("all")
    await network.tariff("summer", valid_from=now + HOUR)
    await network.assign("all", Place())
    await network.assign("summer", Place(station="CP-1"))
    asked = [(station, 1, now), (station, 1, now + HOUR)]
    assert await network.got(*asked) == ["all", "summer"]


async def test_tenants_prices_are_their_own(world: Any, network: Network) -> None:
    mine, theirs = await world.station("CP-1"), await world.station("CP-2", tenant=THEIRS)
    now = world.clock()
    await network.tariff("mine")
    await network.assign("mine", Place())
    assert await network.got((theirs.id, 1, now), tenant=THEIRS) == [None]
    await network.tariff("theirs", tenant=THEIRS)
    await network.assign("theirs", Place(station="CP-2"), tenant=THEIRS)
    assert await network.got((mine.id, 1, now)) == ["mine"]
    assert await network.got((theirs.id, 1, now), tenant=THEIRS) == ["theirs"]
    assert await network.got((theirs.id, 1, now)) == ["mine"], "a start of before it was sold"


async def test_a_stations_assignment_ends_with_its_tenant(world: Any, network: Network) -> None:
    station = await world.station("CP-1")
    start = world.clock()
    await network.tariff("mine")
    await network.assign("mine", Place(station="CP-1"))
    world.clock.forward(hours=1)
    async with world.database.commit_unit() as cursor:
        move = Move(station.id, MINE, THEIRS)
        await TariffHandover(world.clock).station_moved(cursor, move)
    asked = [(station.id, 1, start), (station.id, 1, world.clock())]
    assert await network.got(*asked) == ["mine", None]


async def test_a_deleted_stations_site_is_where_it_stood(world: Any, network: Network) -> None:
    fields = {"address": "", "latitude": None, "longitude": None, "time_zone": "UTC"}
    site = (await world.stations.create_site(BOSS, {"name": "Home", **fields})).id
    station = await at_site(world, "CP-1", site)
    elsewhere = (await world.station("CP-2")).id
    await network.tariff("site")
    await network.assign("site", Place(site=site))
    await world.stations.delete_station(BOSS, "CP-1", ANYTHING)
    async with world.database.commit_unit() as cursor:
        assert await sites_of(cursor, [station, elsewhere, 999]) == {station: site}
    assert await network.got((station, 1, world.clock())) == ["site"]


async def test_nobody_changes_a_version(world: Any, network: Network) -> None:
    await network.tariff("day")
    for statement in ("UPDATE tariffs.version SET per_kwh = 0", "DELETE FROM tariffs.version"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            async with world.database.unit(MINE) as cursor:
                await cursor.execute(statement)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            async with world.database.commit_unit() as cursor:
                await cursor.execute(statement)


async def test_versions_are_read_once(database: Database, network: Network) -> None:
    await network.tariff("day")
    await network.tariff("night")
    book = PriceBook()
    async with database.unit(MINE) as cursor:
        await cursor.execute("SELECT id FROM tariffs.version ORDER BY id")
        ids = [number for (number,) in await cursor.fetchall()]
        first = await book.versions(cursor, ids[:1])
    async with database.unit(None) as blind:
        again = await book.versions(blind, ids)
    assert again == first, "the one that was read is kept, the other one cannot be seen"
    assert isinstance(first[ids[0]], TariffVersion)
