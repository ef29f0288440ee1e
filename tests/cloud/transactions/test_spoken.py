"""What OCPP stations tell of transactions, with all that is known to go wrong."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from cloud.kernel.facts import Spoken
from cloud.stations.api import StationRef, to_ms
from cloud.transactions.writer import TransactionWriter
from protocols.agent_link import IdToken, TransactionEventType
from protocols.ocpp.messages import Answer, Meter, Reading, Told, Transaction
from protocols.quantities import Milliseconds, WattHours, Watts

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
STARTED, UPDATED, ENDED = TransactionEventType
CARD = IdToken("04A2B3C4")
Row = dict[str, Any]


def ms(at: datetime) -> Milliseconds:
    return Milliseconds(to_ms(at))


def reading(at: datetime, wh: int | None, context: str = "Sample.Periodic", **more: Any) -> Reading:
    register = None if wh is None else WattHours(wh)
    return Reading(at_ms=ms(at), energy_wh=register, context=context, **more)


def start(at: datetime, wh: int = 1000, *, evse: int = 1, token: str = CARD.value) -> Transaction:
    """1.6's StartTransaction."""
    return Transaction(
        event=STARTED,
        at_ms=ms(at),
        trigger="Authorized",
        evse=evse,
        id_token=IdToken(token),
        register_wh=WattHours(wh),
    )


def meter(number: int | None, at: datetime, wh: int | None, *, evse: int = 1, **more: Any) -> Meter:
    """1.6's MeterValues."""
    return Meter(evse=evse, number=number, readings=(reading(at, wh, **more),))


def stop(number: int, at: datetime, wh: int | None, **more: Any) -> Transaction:
    """1.6's StopTransaction, which names no connector."""
    told: dict[str, Any] = {"reason": "Local", "stop_token": True, **more}
    register = None if wh is None else WattHours(wh)
    return Transaction(
        event=ENDED, at_ms=ms(at), trigger="StopAuthorized", number=number, register_wh=register,
        **told,
    )  # fmt: skip


def event(
    key: str, kind: TransactionEventType, seq: int, at: datetime, *readings: Reading, **more: Any
) -> Transaction:
    """2.x's TransactionEvent."""
    told: dict[str, Any] = {"trigger": "MeterValuePeriodic", "evse": 1, **more}
    return Transaction(event=kind, key=key, seq_no=seq, at_ms=ms(at), readings=readings, **told)


class Line:
    """A station's connection: what it says goes down transactions' part of the commit path."""

    def __init__(self, world: Any, station: StationRef) -> None:
        self._world = world
        self.station = station
        self.events: list[str] = []
        self._writer = TransactionWriter()

    async def say(self, *told: Told, at: datetime | None = None) -> list[Answer]:
        """In one commit; received when it was told, if not said otherwise."""
        spoken = [self._spoken(one, at) for one in told]
        async with self._world.database.commit_unit() as cursor:
            events = await self._writer.write_spoken(cursor, spoken)
        self.events += [one.kind for one in events]
        return [one.answer for one in spoken]

    async def start(self, told: Transaction, at: datetime | None = None) -> int:
        (answer,) = await self.say(told, at=at)
        assert answer.number is not None
        return answer.number

    def _spoken(self, told: Any, at: datetime | None) -> Spoken:
        last = told.readings[-1].at_ms if isinstance(told, Meter) else told.at_ms
        received = at or datetime.fromtimestamp(last / 1000, UTC)
        answer = Answer(now_ms=ms(received))
        return Spoken(self.station.id, self.station.tenant_id, 1, received, told, answer)


@pytest.fixture
async def line(world: Any) -> Line:
    return Line(world, await world.station())


Rows = Callable[[], Awaitable[list[Row]]]


@pytest.fixture
def rows(admin: httpx.AsyncClient) -> Rows:
    """All transactions with their details, the first that started first."""

    async def read() -> list[Row]:
        listed = (await admin.get("/api/v1/transactions?sort=started_at")).json()["items"]
        return [
            (await admin.get(f"/api/v1/transactions/{one['transaction']}")).json() for one in listed
        ]

    return read


def minutes(count: float) -> datetime:
    return NOW + timedelta(minutes=count)


async def test_a_session_of_1_6(line: Line, rows: Rows) -> None:
    number = await line.start(start(NOW))
    await line.say(meter(number, minutes(1), 1100))
    await line.say(meter(number, minutes(2), 1200))
    await line.say(stop(number, minutes(3), 1300, reason="EVDisconnected"))
    (row,) = await rows()
    assert (row["energy_wh"], row["meter_wh"], row["state"]) == (300, 1300, "ended")
    assert (row["started_at"], row["ended_at"]) == ("2026-05-01T12:00:00Z", "2026-05-01T12:03:00Z")
    assert (row["started_dating"], row["reason"], row["origin"]) == (
        "cloud", "EVDisconnected", "ocpp1.6"
    )  # fmt: skip
    assert row["id_token"] == {"value": CARD.value, "type": "ISO14443"}
    assert (row["number"], row["concluded"], row["review"]) == (number, False, None)
    assert [one["type"] for one in row["events"]] == ["Started", "Updated", "Updated", "Ended"]
    assert line.events == [
        "transaction.started", "transaction.updated", "transaction.updated", "transaction.ended"
    ]  # fmt: skip


async def test_a_session_of_2_x(line: Line, rows: Rows) -> None:
    await line.say(
        event("t1", STARTED, 0, NOW, reading(NOW, 5000, "Transaction.Begin"), id_token=CARD),
        event("t1", UPDATED, 1, minutes(1), reading(minutes(1), 5400)),
        event("t1", ENDED, 2, minutes(2), reading(minutes(2), 5900, "Transaction.End"),
              reason="Local"),
    )  # fmt: skip
    (row,) = await rows()
    assert (row["energy_wh"], row["state"], row["origin"]) == (900, "ended", "ocpp2.x")
    assert (row["native_key"], row["number"], row["start_seen"]) == ("t1", None, True)


async def test_a_start_that_is_repeated_is_one_session(line: Line, rows: Rows) -> None:
    """S4: with a new message id, in another case, before and after other messages."""
    told = start(NOW)
    first, again = await line.say(told, start(NOW, token=CARD.value.lower()))
    assert first.number == again.number
    await line.say(meter(first.number, minutes(1), 1100))
    assert await line.start(told, at=minutes(2)) == first.number
    await line.say(stop(first.number or 0, minutes(3), 1200))
    assert await line.start(told, at=minutes(4)) == first.number
    (row,) = await rows()
    assert (row["energy_wh"], row["state"], row["conflicts"]) == (200, "ended", 0)


async def test_messages_that_are_repeated_change_nothing(line: Line, rows: Rows) -> None:
    number = await line.start(start(NOW))
    told = [meter(number, minutes(1), 1100), stop(number, minutes(3), 1300)]
    await line.say(*told)
    (before,) = await rows()
    line.events.clear()
    await line.say(*told, at=minutes(9))
    assert (await rows(), line.events) == ([before], [])


@pytest.mark.parametrize("watts", [7000])
async def test_power_and_registers_that_are_missing_do_not_zero(
    line: Line, rows: Rows, watts: int
) -> None:
    """S20."""
    number = await line.start(start(NOW))
    await line.say(meter(number, minutes(1), 1100))
    await line.say(meter(number, minutes(2), None, power_w=Watts(watts)))
    (row,) = await rows()
    assert (row["energy_wh"], row["last_at"]) == (100, "2026-05-01T12:02:00Z")
