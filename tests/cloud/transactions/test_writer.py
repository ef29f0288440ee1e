"""Transaction events on their way into the database: duplicates, disorder, clocks, strangers."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest

from cloud.kernel.facts import Delivery
from cloud.stations.api import StationRef, from_ms, to_ms
from protocols.agent_link import (
    BillingBatch,
    BillingFact,
    ChargingState,
    ClockCorrected,
    ClockQuality,
    IdToken,
    Stamp,
    Stream,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.quantities import Milliseconds, WattHours

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
BOOT, OUTBOX = UUID(int=1), UUID(int=2)
UPTIME_MS = 3_600_000


def stamp(at: datetime, quality: ClockQuality = ClockQuality.SYNCED, boot: UUID = BOOT) -> Stamp:
    """A stamp of a boot that began an hour before noon; untrusted ones begin at 1970."""
    mono = UPTIME_MS + (at - NOW) // timedelta(milliseconds=1)
    wall = mono if quality is ClockQuality.UNSET else to_ms(at)
    return Stamp(Milliseconds(wall), Milliseconds(mono), boot, quality)


def session(
    count: int = 6,
    *,
    token: IdToken | None = None,
    quality: ClockQuality = ClockQuality.SYNCED,
    boot: UUID = BOOT,
) -> list[TransactionEvent]:
    """A whole transaction: 100 Wh a step, a step a minute, the last one at noon."""
    transaction, start = uuid4(), NOW - timedelta(minutes=count - 1)
    kinds = [TransactionEventType.UPDATED] * count
    kinds[0], kinds[-1] = TransactionEventType.STARTED, TransactionEventType.ENDED
    return [
        TransactionEvent(
            id=uuid4(),
            transaction=transaction,
            type=kind,
            seq_no=n,
            at=stamp(start + timedelta(minutes=n), quality, boot),
            trigger=Trigger.METER_VALUE_PERIODIC,
            evse=1,
            started=stamp(start, quality, boot),
            charging_state=ChargingState.CHARGING,
            energy_wh=WattHours(n * 100),
            meter_wh=WattHours(5000 + n * 100),
            id_token=token if n == 0 else None,
        )
        for n, kind in enumerate(kinds)
    ]


def delivery(
    station: StationRef, facts: Sequence[BillingFact], sent: Stamp | None = None
) -> Delivery:
    batch = BillingBatch(OUTBOX, 1, 1, sent or stamp(NOW), tuple(facts))
    return Delivery(station.id, station.tenant_id, OUTBOX, NOW, Stream.BILLING, batch)


Read = Callable[[UUID], Awaitable[dict[str, Any]]]


@pytest.fixture
def read(admin: httpx.AsyncClient) -> Read:
    async def one(transaction: UUID) -> dict[str, Any]:
        answer = await admin.get(f"/api/v1/transactions/{transaction}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    return one


@pytest.mark.parametrize("seed", range(5))
async def test_any_order_and_cut_into_batches_gives_one_transaction(
    world: Any, read: Read, seed: int
) -> None:
    station, events = await world.station(), session(8, token=IdToken("04AB"))
    dice = random.Random(seed)
    told = [*events, *dice.sample(events, 4)]
    dice.shuffle(told)
    while told:
        size = dice.randint(1, 4)
        await world.commit(delivery(station, told[:size]))
        told = told[size:]
    row = await read(events[0].transaction)
    assert (row["energy_wh"], row["meter_wh"], row["state"]) == (700, 5700, "ended")
    assert (row["started_at"], row["ended_at"]) == ("2026-05-01T11:53:00Z", "2026-05-01T12:00:00Z")
    assert row["id_token"] == {"value": "04AB", "type": "ISO14443"}
    assert [event["seq_no"] for event in row["events"]] == list(range(8))
    assert row["contradictions"] == []


async def test_steps_in_order_tell_started_updated_ended(world: Any) -> None:
    station, events = await world.station(), session(3)
    told = [(await world.commit(delivery(station, [event])))[0].kind for event in events]
    assert told == ["transaction.started", "transaction.updated", "transaction.ended"]
    assert await world.commit(delivery(station, events)) == []


async def test_an_end_that_comes_first_stays(world: Any, read: Read) -> None:
    station, events = await world.station(), session(3)
    await world.commit(delivery(station, [events[2]]))
    row = await read(events[0].transaction)
    assert (row["state"], row["start_seen"]) == ("ended", False)
    await world.commit(delivery(station, events[:2]))
    row = await read(events[0].transaction)
    assert (row["state"], row["start_seen"], row["energy_wh"]) == ("ended", True, 200)


async def test_events_after_the_end_are_noted_as_contradictions(world: Any, read: Read) -> None:
    station, events = await world.station(), session(3)
    late = msgspec.structs.replace(events[1], id=uuid4(), seq_no=7, energy_wh=WattHours(9999))
    await world.commit(delivery(station, [*events, late]))
    row = await read(events[0].transaction)
    assert (row["energy_wh"], row["conflicts"]) == (200, 1)
    assert row["contradictions"][0]["kind"] == "after_end"


async def test_another_station_cannot_write_into_a_transaction(world: Any, read: Read) -> None:
    owner, thief = await world.station("CP-1"), await world.station("CP-2")
    events = session(3)
    await world.commit(delivery(owner, events[:2]))
    await world.commit(delivery(thief, events[2:]))
    row = await read(events[0].transaction)
    assert (row["station"], row["state"], row["energy_wh"]) == ("CP-1", "open", 100)
    assert row["contradictions"][0]["kind"] == "other_station"


async def test_untrusted_stamps_are_estimated_from_the_receipt(world: Any, read: Read) -> None:
    station, events = await world.station(), session(3, quality=ClockQuality.UNSET)
    sent = stamp(NOW, ClockQuality.UNSET)
    await world.commit(delivery(station, events, sent))
    row = await read(events[0].transaction)
    assert (row["started_at"], row["started_dating"]) == ("2026-05-01T11:58:00Z", "estimated")


async def test_a_corrected_clock_dates_an_earlier_boot_again(world: Any, read: Read) -> None:
    station, boot = await world.station(), UUID(int=77)
    events = session(3, quality=ClockQuality.UNSET, boot=boot)
    await world.commit(delivery(station, events))
    assert (await read(events[0].transaction))["started_dating"] == "unset"
    offset = to_ms(NOW) - UPTIME_MS - 86_400_000
    fact = ClockCorrected(uuid4(), boot, Milliseconds(offset), ClockQuality.SYNCED)
    await world.commit(delivery(station, [fact]))
    row = await read(events[0].transaction)
    assert row["started_at"] == "2026-04-30T11:58:00Z"
    assert row["ended_at"] == "2026-04-30T12:00:00Z"
    assert {event["dating"] for event in row["events"]} == {"synced"}
    later = session(2, quality=ClockQuality.UNSET, boot=boot)
    await world.commit(delivery(station, later))
    assert (await read(later[0].transaction))["started_dating"] == "synced"


async def test_the_welcome_is_told_what_is_open_and_what_is_over(world: Any) -> None:
    station = await world.station()
    over, still = session(3), session(3, token=IdToken("77"))
    await world.commit(delivery(station, [*over, *still[:2]]))
    told = [over[0].transaction, still[0].transaction, uuid4()]
    async with world.database.commit_unit() as cursor:
        open_, ended = await world.transactions.open_transactions(cursor, station.id, told)
    assert ended == (over[0].transaction,)
    (one,) = open_
    assert (one.transaction, one.seq_no, one.energy_wh) == (still[0].transaction, 1, 100)
    assert one.id_token == IdToken("77")
    assert one.started == still[0].started


async def test_transactions_hold_no_id_token_value(world: Any) -> None:
    station, events = await world.station(), session(2, token=IdToken("SECRET-UID"))
    await world.commit(delivery(station, events))
    async with world.database.commit_unit() as cursor:
        for table in ("transaction", "event", "conflict"):
            await cursor.execute(f"SELECT t::text FROM transactions.{table} t")
            assert not any("SECRET-UID" in text for (text,) in await cursor.fetchall())


def test_times_go_there_and_back() -> None:
    assert from_ms(to_ms(NOW)) == NOW
