"""Transactions that nobody ends are ended, and opened again when there is more of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from cloud.stations.store import EvseState, put_evse_states
from cloud.transactions.sweeper import TransactionSweeper
from cloud.transactions.zombies import Patience
from tests.cloud.transactions.test_spoken import (
    Line,
    Rows,
    line,
    meter,
    minutes,
    rows,
    start,
    stop,
)
from tests.cloud.transactions.test_writer import delivery, session

__all__ = ["line", "rows"]


@pytest.fixture
def sweeper(world: Any) -> TransactionSweeper:
    return TransactionSweeper(world.database, world.clock, Patience())


async def status(world: Any, line: Line, status: str, at: float) -> None:
    state = EvseState(
        line.station.id, 1, UUID(int=0), int(at) + 1, minutes(at), minutes(at), None, status,
        "Idle", None, None, "", "",
    )  # fmt: skip
    async with world.database.commit_unit() as cursor:
        await put_evse_states(cursor, [(line.station.tenant_id, state)])


async def test_an_available_connector_ends_its_session(
    world: Any, line: Line, rows: Rows, sweeper: TransactionSweeper
) -> None:
    number = await line.start(start(minutes(0)))
    await line.say(meter(number, minutes(5), 1500))
    await status(world, line, "Available", 8)
    world.clock.forward(minutes=12)
    assert await sweeper.sweep() == 0
    world.clock.forward(minutes=10)
    assert await sweeper.sweep() == 1
    assert await sweeper.sweep() == 0
    (row,) = await rows()
    assert (row["state"], row["reason"], row["concluded"], row["energy_wh"]) == (
        "ended", "connector_available", True, 500
    )  # fmt: skip
    assert (row["ended_at"], row["ended_dating"]) == ("2026-05-01T12:08:00Z", "estimated")
    assert [one["concluded"] for one in row["events"]] == [False, False, True]
    await line.say(stop(number, minutes(7), 1650), at=minutes(60))
    (row,) = await rows()
    assert (row["reason"], row["concluded"], row["energy_wh"]) == ("Local", False, 650)
    assert (row["ended_at"], row["conflicts"]) == ("2026-05-01T12:07:00Z", 0)


async def test_an_evse_shows_its_transaction(world: Any, line: Line, rows: Rows) -> None:
    await status(world, line, "Occupied", 0)

    async def shown() -> tuple[Any, ...]:
        async with world.database.commit_unit() as cursor:
            await cursor.execute("SELECT transaction, charging_state FROM stations.evse_state")
            return tuple(await cursor.fetchone())

    number = await line.start(start(minutes(0)))
    (row,) = await rows()
    assert await shown() == (UUID(row["transaction"]), "Charging")
    await line.say(stop(number, minutes(7), 1650))
    assert await shown() == (None, "Idle")


async def test_a_sign_of_life_opens_it_again(
    world: Any, line: Line, rows: Rows, sweeper: TransactionSweeper
) -> None:
    number = await line.start(start(minutes(0)))
    world.clock.forward(days=8)
    assert await sweeper.sweep() == 1
    (row,) = await rows()
    assert (row["reason"], row["ended_at"]) == ("lost", "2026-05-01T12:00:00Z")
    await line.say(meter(number, minutes(4), 1200), at=world.clock())
    (row,) = await rows()
    assert (row["state"], row["reason"], row["concluded"], row["energy_wh"]) == (
        "open", None, False, 200
    )  # fmt: skip
    world.clock.forward(days=8)
    assert await sweeper.sweep() == 1
    (row,) = await rows()
    assert (row["reason"], row["ended_at"]) == ("lost", "2026-05-01T12:04:00Z")


async def test_what_a_removed_station_left_open_is_over(
    world: Any, line: Line, rows: Rows, admin: httpx.AsyncClient, sweeper: TransactionSweeper
) -> None:
    """Also an agent's."""
    agent = await world.station("CP-2")
    await line.start(start(minutes(0)))
    await world.commit(delivery(agent, session(3)[:2]))
    world.clock.forward(minutes=30)
    assert await sweeper.sweep() == 0
    for identity in ("CP-1", "CP-2"):
        assert (await admin.delete(f"/api/v1/stations/{identity}")).status_code == 204
    assert await sweeper.sweep() == 2
    for row in await rows():
        assert (row["state"], row["reason"], row["concluded"]) == (
            "ended", "station_removed", True
        )  # fmt: skip
    agents = next(row for row in await rows() if row["origin"] == "agent")
    assert (agents["energy_wh"], agents["meter_wh"]) == (100, 5100)


async def test_many_are_swept(world: Any, line: Line, sweeper: TransactionSweeper) -> None:
    count = 1100
    await line.say(*(start(minutes(0), evse=n) for n in range(1, count + 1)))
    world.clock.forward(days=8)
    assert await sweeper.sweep() == count


async def test_one_process_sweeps(world: Any, line: Line, sweeper: TransactionSweeper) -> None:
    await line.start(start(minutes(0)))
    world.clock.now += timedelta(days=8)
    async with world.database.commit_unit() as cursor:
        await cursor.execute("SELECT pg_advisory_xact_lock(hashtext('transactions.sweep'))")
        assert await sweeper.sweep() == 0
    assert await sweeper.sweep() == 1
