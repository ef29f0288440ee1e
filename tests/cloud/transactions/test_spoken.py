"""What OCPP stations tell of transactions, with all that is known to go wrong."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from cloud.kernel.facts import Spoken
from cloud.stations.api import StationRef, to_ms
from cloud.transactions.writer import TransactionWriter
from protocols.agent_link import ChargingState, ConnectorStatus, IdToken, TransactionEventType
from protocols.ocpp.messages import Answer, Meter, Reading, Status, Told, Transaction
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


def status(at: datetime, state: ChargingState, *, evse: int = 1) -> Status:
    """1.6's StatusNotification of an occupied connector."""
    return Status(
        evse=evse,
        connector=1,
        status=ConnectorStatus.OCCUPIED,
        at_ms=ms(at),
        charging_state=state,
    )


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


# --------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("number", [-1, 0])
async def test_a_stop_without_a_number_ends_the_open_session(
    line: Line, rows: Rows, number: int
) -> None:
    """S1: the start was sent from the queue, the stop still carries -1; both are told twice."""
    await line.start(start(NOW), at=minutes(60))
    await line.start(start(minutes(5), 7000, evse=2, token="OTHER"), at=minutes(60))
    told = [meter(number, minutes(10), 1500), stop(number, minutes(20), 2000, id_token=CARD)]
    await line.say(*told, at=minutes(61))
    await line.say(*told, at=minutes(62))
    first, second = await rows()
    assert (first["state"], first["energy_wh"], first["evse"]) == ("ended", 1000, 1)
    assert (second["state"], second["energy_wh"], second["evse"]) == ("open", 0, 2)
    assert first["conflicts"] == 0


async def test_a_start_that_comes_after_its_stop_is_the_same_session(
    line: Line, rows: Rows
) -> None:
    await line.say(stop(-1, minutes(20), 2000, id_token=CARD), at=minutes(60))
    number = await line.start(start(NOW), at=minutes(61))
    assert await line.start(start(NOW), at=minutes(62)) == number
    await line.say(stop(-1, minutes(20), 2000, id_token=CARD), at=minutes(63))
    await line.say(meter(number, minutes(10), 1500), at=minutes(64))
    (row,) = await rows()
    assert (row["state"], row["energy_wh"], row["evse"], row["number"]) == (
        "ended", 1000, 1, number
    )  # fmt: skip
    assert (row["review"], row["start_seen"], row["started_at"]) == (
        None, True, "2026-05-01T12:00:00Z"
    )  # fmt: skip


async def test_a_stop_of_nobody_is_a_session_of_its_own(line: Line, rows: Rows) -> None:
    """S2: with the energy that it tells itself, or none and a look by a person."""
    begin = reading(NOW, 5000, "Transaction.Begin")
    end = reading(minutes(20), 6500, "Transaction.End")
    told = [
        stop(815, minutes(20), 6500, id_token=CARD, readings=(begin, end)),
        stop(816, minutes(50), 9000, id_token=CARD),
    ]
    await line.say(*told)
    await line.say(*told, at=minutes(70))
    measured, unmeasured = await rows()
    assert (measured["energy_wh"], measured["review"], measured["state"]) == (1500, None, "ended")
    assert measured["started_at"] == "2026-05-01T12:00:00Z"
    assert measured["id_token"]["value"] == CARD.value
    assert (unmeasured["energy_wh"], unmeasured["review"]) == (0, "unmatched")
    assert not unmeasured["start_seen"]


async def test_a_number_of_another_system_ends_the_session_with_the_same_token(
    line: Line, rows: Rows
) -> None:
    await line.start(start(NOW))
    await line.say(stop(77_000_000, minutes(20), 2000, id_token=CARD))
    (row,) = await rows()
    assert (row["state"], row["energy_wh"]) == ("ended", 1000)


async def test_a_number_of_another_station_has_no_effect(
    world: Any, line: Line, rows: Rows
) -> None:
    """A21."""
    number = await line.start(start(NOW))
    thief = Line(world, await world.station("CP-2"))
    await thief.say(stop(number, minutes(1), 9000, id_token=CARD))
    assert thief.events == ["transaction.foreign_number"]
    (row,) = await rows()
    assert (row["state"], row["station"]) == ("open", "CP-1")


async def test_values_without_a_number_belong_to_the_session_of_their_time(
    line: Line, rows: Rows
) -> None:
    """S3: also late ones; those of an idle EVSE belong to none."""
    first = await line.start(start(NOW))
    await line.say(stop(first, minutes(10), 1600))
    await line.say(meter(None, minutes(15), 1600, context="Sample.Clock"))
    await line.start(start(minutes(20), 1600))
    await line.say(meter(None, minutes(25), 1800, context="Sample.Clock"))
    await line.say(meter(None, minutes(5), 1300, context="Sample.Clock"), at=minutes(30))
    await line.say(meter(None, minutes(26), 40, evse=2), meter(None, minutes(26), 40, evse=0))
    done, open_ = await rows()
    assert (done["energy_wh"], len(done["events"])) == (600, 3)
    assert (open_["energy_wh"], len(open_["events"])) == (200, 2)


async def test_gateways_are_told_what_stations_call_their_transactions(
    world: Any, line: Line, rows: Rows
) -> None:
    number = await line.start(start(NOW))
    await line.say(event("x", STARTED, 0, minutes(1), evse=2, remote_start_id=77))
    await line.say(stop(815, minutes(2), 6500))
    of_16, of_2, unmatched = (row["transaction"] for row in await rows())
    async with world.database.commit_unit() as cursor:
        names = await world.transactions.native(cursor, [of_16, of_2, unmatched])
    assert names == {UUID(of_16): (None, number), UUID(of_2): ("x", None)}


# --------------------------------------------------------------------------- ends


async def test_a_second_start_ends_the_first_session(line: Line, rows: Rows) -> None:
    """S5: with the register of the second start; its own end wins when it comes."""
    first = await line.start(start(NOW))
    await line.say(meter(first, minutes(5), 1500))
    await line.start(start(minutes(30), 1700, token="OTHER"))
    superseded, _ = await rows()
    assert (superseded["state"], superseded["reason"], superseded["concluded"]) == (
        "ended", "superseded", True
    )  # fmt: skip
    assert (superseded["energy_wh"], superseded["ended_at"]) == (700, "2026-05-01T12:30:00Z")
    await line.say(stop(first, minutes(8), 1650, reason="EVDisconnected"), at=minutes(40))
    corrected, second = await rows()
    assert (corrected["reason"], corrected["concluded"], corrected["energy_wh"]) == (
        "EVDisconnected", False, 650
    )  # fmt: skip
    assert corrected["ended_at"] == "2026-05-01T12:08:00Z"
    assert corrected["conflicts"] == 0
    assert second["state"] == "open"


async def test_a_register_of_the_next_start_that_cannot_be_is_not_taken(
    line: Line, rows: Rows
) -> None:
    first = await line.start(start(NOW))
    await line.say(meter(first, minutes(5), 1500))
    await line.start(start(minutes(30), 900_000_000))
    superseded, _ = await rows()
    assert superseded["energy_wh"] == 500


async def test_sessions_of_two_connectors_do_not_end_each_other(line: Line, rows: Rows) -> None:
    await line.start(start(NOW))
    await line.start(start(minutes(1), evse=2))
    assert [row["state"] for row in await rows()] == ["open", "open"]


async def test_a_2_x_session_is_superseded_too(line: Line, rows: Rows) -> None:
    await line.say(event("a", STARTED, 0, NOW, reading(NOW, 100)))
    await line.say(event("b", STARTED, 0, minutes(9), reading(minutes(9), 400)))
    one, other = await rows()
    assert (one["reason"], one["energy_wh"], other["state"]) == ("superseded", 300, "open")


# --------------------------------------------------------------------------- order


@pytest.mark.parametrize("seed", range(6))
async def test_any_order_and_repetition_gives_one_session(
    line: Line, rows: Rows, seed: int
) -> None:
    """F37."""
    told = [
        event("x", STARTED, 0, NOW, reading(NOW, 5000, "Transaction.Begin"), id_token=CARD),
        *(event("x", UPDATED, n, minutes(n), reading(minutes(n), 5000 + 100 * n))
          for n in range(1, 6)),
        event("x", ENDED, 6, minutes(6), reading(minutes(6), 5600, "Transaction.End"),
              reason="Remote"),
    ]  # fmt: skip
    dice = random.Random(seed)
    told += dice.sample(told, 3)
    dice.shuffle(told)
    while told:
        size = dice.randint(1, 4)
        await line.say(*told[:size], at=minutes(30))
        told = told[size:]
    (row,) = await rows()
    assert (row["energy_wh"], row["state"], row["reason"]) == (600, "ended", "Remote")
    assert (row["started_at"], row["ended_at"]) == ("2026-05-01T12:00:00Z", "2026-05-01T12:06:00Z")
    assert (row["conflicts"], row["review"], len(row["events"])) == (0, None, 7)
    assert row["id_token"]["value"] == CARD.value


async def test_a_session_without_its_start_is_told_so(line: Line, rows: Rows) -> None:
    await line.say(event("x", UPDATED, 4, NOW, reading(NOW, 5400)))
    await line.say(event("x", ENDED, 5, minutes(1), reading(minutes(1), 5500)))
    (row,) = await rows()
    assert (row["energy_wh"], row["start_seen"], row["review"]) == (100, False, "unmatched")
    await line.say(event("x", STARTED, 0, minutes(-9), reading(minutes(-9), 5000)), at=minutes(2))
    (row,) = await rows()
    assert (row["energy_wh"], row["start_seen"], row["review"]) == (500, True, None)
    assert row["started_at"] == "2026-05-01T11:51:00Z"


async def test_what_is_numbered_after_the_end_contradicts(line: Line, rows: Rows) -> None:
    await line.say(
        event("x", STARTED, 0, NOW, reading(NOW, 5000)),
        event("x", ENDED, 2, minutes(2), reading(minutes(2), 5200)),
        event("x", UPDATED, 3, minutes(3), reading(minutes(3), 5900)),
    )
    (row,) = await rows()
    assert (row["energy_wh"], row["state"]) == (200, "ended")
    assert [one["kind"] for one in row["contradictions"]] == ["after_end"]


async def test_a_station_that_numbers_everything_alike_still_begins_and_ends(
    line: Line, rows: Rows
) -> None:
    await line.say(
        event("x", STARTED, 0, NOW, reading(NOW, 5000)),
        event("x", UPDATED, 0, minutes(1), reading(minutes(1), 5100)),
        event("x", ENDED, 0, minutes(2), reading(minutes(2), 5200)),
    )
    (row,) = await rows()
    assert (row["energy_wh"], row["state"], row["start_seen"]) == (200, "ended", True)


async def test_a_transaction_id_that_is_used_again_is_another_session(
    line: Line, rows: Rows
) -> None:
    old = [
        event("1", STARTED, 0, NOW, reading(NOW, 100)),
        event("1", ENDED, 1, minutes(10), reading(minutes(10), 400)),
    ]
    new = [
        event("1", STARTED, 0, minutes(60), reading(minutes(60), 400)),
        event("1", UPDATED, 1, minutes(70), reading(minutes(70), 900)),
    ]
    await line.say(*old)
    await line.say(*new)
    await line.say(*old, *new, at=minutes(80))
    first, second = await rows()
    assert (first["energy_wh"], first["state"]) == (300, "ended")
    assert (second["energy_wh"], second["state"]) == (500, "open")
    assert first["native_key"] == second["native_key"] == "1"
    assert first["conflicts"] == second["conflicts"] == 0


async def test_metered_values_of_2_x_stand_between_its_events(line: Line, rows: Rows) -> None:
    await line.say(event("x", STARTED, 0, NOW, reading(NOW, 100)))
    await line.say(Meter(evse=1, readings=(reading(minutes(1), 150, "Sample.Clock"),)))
    await line.say(Meter(evse=1, readings=(reading(minutes(2), 180, "Sample.Clock"),)))
    (row,) = await rows()
    assert (row["energy_wh"], row["seq_no"]) == (80, 0)
    await line.say(event("x", ENDED, 1, minutes(3), reading(minutes(3), 200)))
    (row,) = await rows()
    assert (row["energy_wh"], row["conflicts"]) == (100, 0)


# --------------------------------------------------------------------------- clocks


async def test_times_of_1970_are_those_of_receipt(line: Line, rows: Rows) -> None:
    """S11."""
    boot = datetime(1970, 1, 1, 0, 0, 30, tzinfo=UTC)
    number = await line.start(start(boot), at=NOW)
    assert await line.start(start(boot), at=minutes(1)) == number
    await line.say(meter(number, boot + timedelta(minutes=5), 1400), at=minutes(5))
    await line.say(stop(number, boot + timedelta(minutes=9), 1700), at=minutes(9))
    (row,) = await rows()
    assert (row["energy_wh"], row["review"]) == (700, None)
    assert (row["started_at"], row["started_dating"]) == ("2026-05-01T12:00:00Z", "estimated")
    assert (row["ended_at"], row["ended_dating"]) == ("2026-05-01T12:09:00Z", "estimated")


UNSET = datetime(1970, 1, 1, 0, 0, 30, tzinfo=UTC)


async def test_a_session_of_1970_that_was_offline_keeps_its_length(line: Line, rows: Rows) -> None:
    """S11: it was over at the latest when it was told of, and began so long before."""
    end = UNSET + timedelta(minutes=30)
    await line.say(
        event("x", STARTED, 0, UNSET, reading(UNSET, 1000)),
        event("x", ENDED, 1, end, reading(end, 1700), offline=True),
        at=minutes(300),
    )
    (row,) = await rows()
    assert (row["started_at"], row["started_dating"]) == ("2026-05-01T16:30:00Z", "estimated")
    assert (row["ended_at"], row["duration_ms"]) == ("2026-05-01T17:00:00Z", 1_800_000)
    assert (row["energy_wh"], row["review"]) == (700, None)


async def test_an_end_of_1970_that_comes_late_is_dated_by_its_start(line: Line, rows: Rows) -> None:
    """S11."""
    number = await line.start(start(UNSET), at=NOW)
    await line.say(stop(number, UNSET + timedelta(minutes=30), 1700), at=minutes(500))
    (row,) = await rows()
    assert (row["started_at"], row["ended_at"]) == ("2026-05-01T12:00:00Z", "2026-05-01T12:30:00Z")
    assert row["duration_ms"] == 1_800_000


async def test_a_clock_that_began_anew_dates_nothing(line: Line, rows: Rows) -> None:
    """S11."""
    number = await line.start(start(UNSET), at=NOW)
    await line.say(stop(number, UNSET - timedelta(seconds=20), 1700), at=minutes(20))
    (row,) = await rows()
    assert (row["started_at"], row["ended_at"]) == ("2026-05-01T12:00:00Z", "2026-05-01T12:20:00Z")


async def test_a_session_that_is_replayed_weeks_later_keeps_its_times(
    line: Line, rows: Rows
) -> None:
    """S24."""
    later = NOW + timedelta(days=30)
    number = await line.start(start(NOW), at=later)
    await line.say(meter(number, minutes(30), 3000), stop(number, minutes(60), 9000), at=later)
    (row,) = await rows()
    assert (row["started_at"], row["ended_at"]) == ("2026-05-01T12:00:00Z", "2026-05-01T13:00:00Z")
    assert (row["energy_wh"], row["duration_ms"], row["review"]) == (8000, 3_600_000, None)


# --------------------------------------------------------------------------- registers


async def told(line: Line, rows: Rows, *registers: int | None, last: int | None) -> Row:
    """A session from 1000 Wh on, a reading every ten minutes."""
    number = await line.start(start(NOW))
    for at, register in enumerate(registers, 1):
        await line.say(meter(number, minutes(10 * at), register))
    await line.say(stop(number, minutes(10 * len(registers) + 10), last))
    (row,) = await rows()
    return row


@pytest.mark.parametrize(
    ("registers", "last", "energy", "review"),
    [
        ((1500, 200, 1900), 2000, 1000, "register_back"),  # F16
        ((1500, 9_000_000), 2000, 1000, "register_leap"),  # A22, and kWh that are called Wh
        ((1500, -5), 2000, 1000, "register_negative"),
        ((1500,), 0, 500, "register_back"),
        ((1500,), 4_294_967_295, 500, "register_leap"),
        ((1500, None), None, 500, None),
        ((1999, 2005), 2000, 1000, None),
        ((2500,), 2000, 1000, "register_back"),
    ],
)  # fmt: skip
async def test_registers_that_cannot_be_do_not_count(  # a table
    line: Line,
    rows: Rows,
    registers: tuple[int | None, ...],
    last: int | None,
    energy: int,
    review: str | None,
) -> None:
    row = await told(line, rows, *registers, last=last)
    assert (row["energy_wh"], row["review"], row["state"]) == (energy, review, "ended")


async def test_energy_that_is_too_much_for_its_time_counts_and_is_looked_at(
    line: Line, rows: Rows
) -> None:
    """A clock that is wrong, or a session that was simulated, must not cost what was metered."""
    number = await line.start(start(NOW))
    await line.say(stop(number, NOW + timedelta(seconds=2), 11_000))
    (row,) = await rows()
    assert (row["energy_wh"], row["review"]) == (10_000, "energy_against_power")


async def test_a_reading_that_leaps_and_returns_leaves_the_end_as_it_is(
    line: Line, rows: Rows
) -> None:
    row = await told(line, rows, 1500, 900_000, 2000, last=2100)
    assert (row["energy_wh"], row["review"]) == (1100, "energy_against_power")


async def test_a_register_that_moves_far_less_than_the_power_is_looked_at(
    line: Line, rows: Rows, admin: httpx.AsyncClient
) -> None:
    """S16."""
    number = await line.start(start(NOW))
    for at in range(1, 7):
        await line.say(meter(number, minutes(10 * at), 1000 + 2 * at, power_w=Watts(11_000)))
    await line.say(stop(number, minutes(61), 1011))
    (row,) = await rows()
    assert (row["energy_wh"], row["review"]) == (11, "energy_against_power")
    await line.start(start(minutes(90)))
    for wanted, count in (("true", 1), ("false", 1)):
        found = (await admin.get(f"/api/v1/transactions?review={wanted}")).json()["items"]
        assert len(found) == count


async def test_absurd_numbers_do_not_break_the_commit(line: Line, rows: Rows) -> None:
    number = await line.start(start(NOW))
    await line.say(meter(number, minutes(1), 2**80), meter(number, minutes(2), -(2**80)))
    await line.say(meter(number, minutes(2), 1000, power_w=Watts(2**70)))
    await line.say(stop(number, minutes(3), 1100))
    (row,) = await rows()
    assert (row["energy_wh"], row["state"]) == (100, "ended")


async def test_the_readings_of_begin_and_end_are_the_measure(line: Line, rows: Rows) -> None:
    await line.say(
        event("x", STARTED, 0, NOW, reading(minutes(1), 130),
              reading(NOW, 100, "Transaction.Begin")),
        event("x", ENDED, 1, minutes(9), reading(minutes(9), 900, "Transaction.End"),
              reading(NOW, 100, "Transaction.Begin"), reading(minutes(10), 905)),
    )  # fmt: skip
    (row,) = await rows()
    assert row["energy_wh"] == 800


async def test_the_card_that_stops_is_not_the_one_that_pays(line: Line, rows: Rows) -> None:
    number = await line.start(start(NOW))
    await line.say(stop(number, minutes(3), 1300, id_token=IdToken("MASTER")))
    (row,) = await rows()
    assert row["id_token"]["value"] == CARD.value


async def test_a_moved_station_leaves_earlier_sessions_with_their_tenant(
    world: Any, line: Line
) -> None:
    async with world.database.commit_unit() as cursor:
        await cursor.execute(
            "INSERT INTO stations.former (station_id, tenant_id, until, identity)"
            " VALUES (%s, 2, %s, 'CP-1')",
            (line.station.id, minutes(30)),
        )
    await line.say(start(NOW), start(minutes(40), evse=2), at=minutes(50))
    async with world.database.commit_unit() as cursor:
        await cursor.execute("SELECT tenant_id FROM transactions.transaction ORDER BY evse")
        assert await cursor.fetchall() == [(2,), (1,)]


# --------------------------------------------------------------------------- 1.6's statuses

CONNECTED, CHARGING = ChargingState.EV_CONNECTED, ChargingState.CHARGING
BY_EV, BY_EVSE = ChargingState.SUSPENDED_EV, ChargingState.SUSPENDED_EVSE


async def test_a_connectors_status_is_that_of_its_open_transaction(line: Line, rows: Rows) -> None:
    await line.say(status(NOW, CHARGING))
    assert await rows() == []
    number = await line.start(start(NOW))
    for minute, state in enumerate([CHARGING, BY_EV, BY_EVSE, CHARGING], start=1):
        await line.say(status(minutes(minute), state))
        assert (await rows())[0]["charging_state"] == state
    await line.say(status(minutes(5), BY_EV, evse=2), status(minutes(5), BY_EV, evse=0))
    await line.say(meter(number, minutes(6), 1500))
    (row,) = await rows()
    assert (row["charging_state"], row["energy_wh"], row["conflicts"]) == ("Charging", 500, 0)
    await line.say(stop(number, minutes(8), 1600))
    await line.say(status(minutes(8), CONNECTED))
    (row,) = await rows()
    assert (row["charging_state"], row["duration_ms"]) == ("Idle", 8 * 60_000)
    assert [one["charging_state"] for one in row["events"]] == [
        None if state is None else str(state)
        for state in (None, CHARGING, BY_EV, BY_EVSE, CHARGING, None, None)
    ]


async def test_statuses_count_by_their_time_not_by_when_they_came(line: Line, rows: Rows) -> None:
    number = await line.start(start(NOW))
    await line.say(status(minutes(3), BY_EV))
    await line.say(status(minutes(2), CHARGING), at=minutes(4))
    await line.say(meter(number, minutes(1), 1100), at=minutes(4))
    (row,) = await rows()
    assert row["charging_state"] == "SuspendedEV"
    await line.say(status(minutes(3), BY_EV), at=minutes(5))
    assert len((await rows())[0]["events"]) == 4, "a repeat is none"


async def test_of_statuses_in_one_second_the_last_one_stands(line: Line, rows: Rows) -> None:
    number = await line.start(start(NOW))
    await line.say(status(NOW, BY_EVSE), status(NOW, BY_EV), status(NOW, CHARGING))
    await line.say(meter(number, NOW, 1100))
    (row,) = await rows()
    assert (row["charging_state"], row["energy_wh"]) == ("Charging", 100)
    await line.say(status(minutes(1), CHARGING))
    await line.say(meter(number, minutes(1), 1200))
    await line.say(status(minutes(1), BY_EVSE))
    await line.say(status(minutes(1), BY_EV))
    (row,) = await rows()
    assert (row["charging_state"], row["energy_wh"]) == ("SuspendedEV", 200)


async def test_a_suspension_without_readings_is_no_power(line: Line, rows: Rows) -> None:
    """The last reading before it does not stand until the next one."""
    number = await line.start(start(NOW))
    await line.say(meter(number, minutes(1), 1100, power_w=Watts(11_000)))
    for hour in range(4):
        await line.say(status(minutes(2 + 60 * hour), BY_EV))
        await line.say(status(minutes(31 + 60 * hour), CHARGING))
    await line.say(stop(number, minutes(250), 1110))
    assert (await rows())[0]["review"] is None
