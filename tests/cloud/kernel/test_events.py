"""The event log: no reader behind a cursor misses an event, whatever order commits end in."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict

from cloud.kernel import events
from cloud.kernel.database import Database, TenantId
from cloud.kernel.events import PARTITIONS, Event, EventLog, Logged


def event(station: int | None, number: int, tenant: int = 1) -> Event:
    return Event(TenantId(tenant), "thing.happened", station, f"thing:{number}", {"n": number})


async def log(database: Database, *happened: Event) -> None:
    async with database.commit_unit() as cursor:
        await events.append(cursor, happened)


def numbers(found: list[Logged]) -> list[int]:
    return [int(logged.event.data["n"]) for logged in found]


async def test_the_same_events_come_again_until_they_are_done(database: Database) -> None:
    journal = EventLog(database)
    await log(database, event(1, 1), event(1, 2), event(1, 3))
    first = await journal.take("billing", limit=2)
    assert numbers(first) == numbers(await journal.take("billing", limit=2)) == [1, 2]
    await journal.done("billing", first)
    assert numbers(await journal.take("billing")) == [3]
    assert numbers(await journal.take("other")) == [1, 2, 3], "each consumer has its own cursor"


async def test_an_older_done_does_not_turn_the_cursor_back(database: Database) -> None:
    journal = EventLog(database)
    await log(database, event(1, 1), event(1, 2))
    both = await journal.take("billing")
    await journal.done("billing", both)
    await journal.done("billing", both[:1])
    assert await journal.take("billing") == []


async def test_what_rolls_back_leaves_no_event_and_no_hole(database: Database) -> None:
    await log(database, event(1, 1))
    try:
        async with database.commit_unit() as cursor:
            await events.append(cursor, [event(1, 2)])
            raise KeyError  # noqa: TRY301  # any failure after the append
    except KeyError:
        await log(database, event(1, 3))
    found = await EventLog(database).take("billing")
    assert numbers(found) == [1, 3]
    assert [logged.position for logged in found] == [0, 1]


async def test_readers_beside_writers_see_every_event_once_and_stations_in_order(
    database: Database,
) -> None:
    dice = random.Random(3)
    total, written = 120, 0

    async def write(first: int) -> None:
        """One station's events, in transactions that end late."""
        nonlocal written
        station = first // 30
        for number in range(first, first + 30, 3):
            async with database.commit_unit() as cursor:
                await events.append(cursor, [event(station, n) for n in range(number, number + 3)])
                await asyncio.sleep(dice.random() / 500)
            written += 3

    journal = EventLog(database)
    seen: list[Logged] = []

    async def read() -> None:
        while len(seen) < total:
            found = await journal.take("reader", limit=7)
            seen.extend(found)
            await journal.done("reader", found)
            await asyncio.sleep(0)

    async with asyncio.timeout(30):
        await asyncio.gather(read(), *(write(first) for first in range(0, total, 30)))
    assert written == total
    assert sorted(numbers(seen)) == list(range(total))
    by_station: dict[int | None, list[int]] = defaultdict(list)
    for logged in seen:
        by_station[logged.event.station_id].append(int(logged.event.data["n"]))
    assert all(order == sorted(order) for order in by_station.values())


async def test_appenders_in_opposite_orders_do_not_deadlock(database: Database) -> None:
    forward = [event(station, station) for station in range(PARTITIONS)]
    async with asyncio.timeout(20):
        for _ in range(10):
            await asyncio.gather(log(database, *forward), log(database, *reversed(forward)))
    async with database.commit_unit() as cursor:
        assert len(await events.read(cursor, {}, 1000)) == 20 * PARTITIONS


async def test_a_tenant_reads_only_its_own(database: Database) -> None:
    await log(database, event(1, 1, tenant=1), event(1, 2, tenant=2), event(None, 3, tenant=2))
    async with database.unit(TenantId(2), read_only=True) as cursor:
        assert sorted(numbers(await events.read(cursor, {}, 10))) == [2, 3]


async def test_an_append_wakes_the_waiting_reader(database: Database) -> None:
    async with EventLog(database).woken() as wake, asyncio.timeout(10):
        for _ in range(2):  # at the start, and once it listens
            await wake.wait()
            wake.clear()
        await log(database, event(1, 1))
        await wake.wait()
