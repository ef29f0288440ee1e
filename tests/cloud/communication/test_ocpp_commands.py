"""From a stored command to the gateway that holds its station, and back by the commit path."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from cloud.communication import ocpp_store, store
from cloud.communication.answers import Answers, TooManyWaiting
from cloud.communication.commands import Commands
from cloud.communication.ocpp_commands import (
    Due,
    OcppAnswers,
    OcppCommands,
    running,
)
from cloud.communication.store import CommandRow
from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.facts import GroupCommitter, Spoken
from cloud.kernel.fencing import let_go, take_over
from protocols.agent_link import (
    Action,
    IdToken,
    RemoteStart,
    RemoteStop,
    SetAvailability,
    SetLimit,
    SetLocalList,
)
from protocols.ocpp.dialect import NotExpressible, Outcome, Request, RequestContext
from protocols.ocpp.messages import Answer, Answered, Boot, Connected, Told
from protocols.ocpp.schemas import codec
from protocols.ocpp.version import Version
from protocols.quantities import MilliAmperes, Milliseconds

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
HERE, THERE = UUID(int=1), UUID(int=2)
ONE = TenantId(1)
LIMIT = SetLimit(0, MilliAmperes(16000), Milliseconds(60000))
OPEN = UUID(int=77)


class Words:
    """A dialect with two ways for a limit, and none for a list."""

    def ways(self, do: Any, context: RequestContext) -> tuple[Request, ...]:
        if isinstance(do, SetLocalList):
            raise NotExpressible("it holds no list")
        names = ["best", "other"] if isinstance(do, SetLimit) else [""]
        told = {"start": context.remote_start_id, "stop": context.transaction_number}
        return tuple(Request(type(do).__name__, {**told, "way": name}, name) for name in names)

    def outcome(
        self, action: str, request: Mapping[str, Any], response: Mapping[str, Any]
    ) -> Outcome:
        return Outcome(accepted=response["status"] == "Accepted", text=response["status"])


@dataclass
class House:
    """Two gateways' halves over one database."""

    database: Database
    surroundings: Any
    now: datetime = START
    sink: GroupCommitter = field(init=False)

    def __post_init__(self) -> None:
        self.commands = Commands(self.database, self.surroundings, self.surroundings, self.clock)
        self.ocpp = OcppCommands(
            self.database, self.surroundings, self, self.clock, lambda _: Words()
        )

    def clock(self) -> datetime:
        return self.now

    async def native(
        self, cursor: Cursor, transactions: Collection[UUID]
    ) -> dict[UUID, tuple[str | None, int | None]]:
        return {OPEN: (None, 4711)} if OPEN in transactions else {}

    async def connect(self, gateway: UUID, *stations: int) -> dict[int, int]:
        async with self.database.commit_unit() as cursor:
            epochs = await take_over(cursor, gateway, [(station, ONE) for station in stations])
        for station in stations:
            told = Connected(gateway=gateway, version="ocpp1.6", security_profile=0, address="::1")
            await self.say(station, epochs[station], told)
        return epochs

    async def say(self, station: int, epoch: int, told: Told) -> bool:
        answer = Answer(now_ms=Milliseconds(0))
        spoken = Spoken(station, ONE, epoch, self.now, told, answer)
        return bool(await self.sink.append([spoken]))

    async def give(self, station: int, action: Action = LIMIT, valid_s: int = 120) -> UUID:
        async with self.database.unit(ONE) as cursor:
            valid = timedelta(seconds=valid_s)
            return await self.commands.send(cursor, ONE, station, action, valid, "key:7")

    async def row(self, command: UUID) -> CommandRow:
        async with self.database.unit(ONE, read_only=True) as cursor:
            row = await store.command(cursor, command)
        assert row
        return row

    async def to_agents(self) -> list[str]:
        out: list[str] = []

        async def publish(identity: str, _: object) -> None:
            out.append(identity)

        await self.commands.deliver(publish)
        return out


@pytest.fixture
async def house(database: Database, surroundings: Any) -> Any:
    made = House(database, surroundings)
    async with GroupCommitter(database, [], [OcppAnswers()], linger_s=0) as made.sink:
        yield made


def reply(due: Due, status: str = "Accepted") -> Answered:
    response = {"status": status}
    return due.answered(Words().outcome(due.action, due.payload, response), response)


async def test_each_gateway_gets_the_commands_of_the_stations_that_it_holds(house: House) -> None:
    await house.connect(HERE, 1, 2)
    await house.connect(THERE, 3)
    given = {station: await house.give(station) for station in (1, 2, 3, 4)}
    assert {one.station_id: one.command for one in await house.ocpp.due(HERE)} == {
        1: given[1], 2: given[2],
    }  # fmt: skip
    assert [one.command for one in await house.ocpp.due(THERE)] == [given[3]]
    assert await house.ocpp.due(HERE) == []
    assert (await house.row(given[4])).status == "requested"
    sent = await house.row(given[1])
    assert (sent.status, sent.link, sent.ocpp_action) == ("sent", "ocpp", "SetLimit")


async def test_a_station_is_asked_one_thing_after_the_other(house: House) -> None:
    epochs = await house.connect(HERE, 1)
    first = await house.give(1)
    house.now += timedelta(seconds=1)
    second = await house.give(1, SetAvailability(1, operative=True))
    (due,) = await house.ocpp.due(HERE)
    assert due.command == first
    assert await house.ocpp.due(HERE) == []
    await house.say(1, epochs[1], reply(due))
    (due,) = await house.ocpp.due(HERE)
    assert due.command == second


async def test_answers_end_commands_once_and_are_told(house: House) -> None:
    epochs = await house.connect(HERE, 1, 2, 3)
    given = {station: await house.give(station) for station in epochs}
    by_station = {one.station_id: one for one in await house.ocpp.due(HERE)}
    for told in (
        {1: reply(by_station[1]), 2: reply(by_station[2], "Rejected")},
        {3: by_station[3].failed("NotSupported: no smart charging"), 1: reply(by_station[1], "?")},
    ):
        for station, answered in told.items():
            await house.say(station, epochs[station], answered)
    rows = {station: await house.row(command) for station, command in given.items()}
    assert [(row.status, row.result) for row in rows.values()] == [
        ("executed", "Accepted"),
        ("rejected", "Rejected"),
        ("failed", "NotSupported: no smart charging"),
    ]
    assert rows[1].response == {"status": "Accepted"}
    assert rows[3].error == rows[3].result
    async with house.database.commit_unit() as cursor:
        await cursor.execute("SELECT kind FROM kernel.event ORDER BY station_id, position")
        kinds = [kind for (kind,) in await cursor.fetchall()]
    assert kinds == ["command.executed", "command.rejected", "command.failed"]


async def test_nobody_answers_for_another_station(house: House) -> None:
    epochs = await house.connect(HERE, 1, 2)
    command = await house.give(1)
    (due,) = await house.ocpp.due(HERE)
    await house.say(2, epochs[2], reply(due))
    assert (await house.row(command)).status == "sent"


async def test_agents_and_ocpp_stations_never_get_each_others_commands(
    house: House, make_hello: Any
) -> None:
    async with house.database.commit_unit() as cursor:
        for station in (1, 2):
            await store.connected(cursor, TenantId(station), station, make_hello(), house.now)
    await house.connect(HERE, 1)
    await house.give(1)
    async with house.database.unit(TenantId(2)) as cursor:
        await house.commands.send(cursor, TenantId(2), 2, LIMIT, timedelta(minutes=2), "key:7")
    assert await house.to_agents() == ["CP 2/ü"]
    assert [one.station_id for one in await house.ocpp.due(HERE)] == [1]
    house.now += timedelta(seconds=20)
    async with house.database.commit_unit() as cursor:
        await let_go(cursor, [(1, 1)])
    assert await house.to_agents() == ["CP 2/ü"]


async def test_what_a_lost_connection_took_along_is_asked_again_or_has_failed(
    house: House,
) -> None:
    await house.connect(HERE, 1, 2)
    again = await house.give(1)
    once = await house.give(2, RemoteStart(1, IdToken("A")))
    for one in await house.ocpp.due(HERE):
        if one.command == once:
            assert one.action == "RemoteStart"
    async with house.database.commit_unit() as cursor:
        await cursor.execute(
            "UPDATE communication.command SET ocpp_action = 'RemoteStartTransaction' WHERE id = %s",
            (once,),
        )
    epochs = await house.connect(THERE, 1, 2)
    (due,) = await house.ocpp.due(THERE)
    assert (due.command, due.epoch) == (again, epochs[1])
    assert (await house.row(once)).status == "failed"
    assert "is not known" in (await house.row(once)).result


async def test_what_was_not_put_on_the_wire_waits_again(house: House) -> None:
    await house.connect(HERE, 1)
    command = await house.give(1)
    due = await house.ocpp.due(HERE)
    await house.ocpp.give_back(due)
    assert (await house.row(command)).status == "requested"
    assert [one.command for one in await house.ocpp.due(HERE)] == [command]


async def test_a_command_dies_with_its_time_and_a_late_answer_still_tells(house: House) -> None:
    epochs = await house.connect(HERE, 1, 2)
    never = await house.give(2, valid_s=10)
    late = await house.give(1, valid_s=10)
    (due,) = [one for one in await house.ocpp.due(HERE) if one.command == late]
    house.now += timedelta(seconds=60)
    await house.ocpp.expire()
    assert {(await house.row(one)).status for one in (never, late)} == {"expired"}
    await house.say(1, epochs[1], reply(due))
    assert (await house.row(late)).status == "executed"
    house.now = START
    gone = await house.give(3, valid_s=1)
    house.now += timedelta(seconds=2)
    await house.connect(HERE, 3)
    assert await house.ocpp.due(HERE) == []
    assert (await house.row(gone)).status == "requested"


async def test_another_way_is_tried_and_remembered_for_the_firmware(house: House) -> None:
    epochs = await house.connect(HERE, 1)
    command = await house.give(1)
    (due,) = await house.ocpp.due(HERE)
    other = house.ocpp.next_request(due, Outcome(accepted=False, text=""))
    assert other is not None
    assert (due.payload["way"], other.payload["way"]) == ("best", "other")
    assert house.ocpp.next_request(other, Outcome(accepted=False, text="")) is None
    assert house.ocpp.next_request(other, Outcome(accepted=True, text="")) is None
    await house.say(1, epochs[1], reply(other))
    assert (await house.row(command)).request == other.payload
    for firmware, way in (("", "other"), ("2.0", "best")):
        await house.say(1, epochs[1], Boot(vendor="V", model="M", firmware=firmware))
        await house.give(1)
        await house.ocpp.due(THERE)
        (due,) = await house.ocpp.due(HERE)
        assert due.payload["way"] == way
        await house.say(1, epochs[1], reply(due))


async def test_what_cannot_be_said_fails_with_its_reason(house: House) -> None:
    await house.connect(HERE, 1, 2, 3)
    unheld = await house.give(1, SetLocalList(1, ()))
    unnamed = await house.give(2, RemoteStop(UUID(int=5)))
    await house.give(3, RemoteStop(OPEN))
    (due,) = await house.ocpp.due(HERE)
    assert due.payload["stop"] == 4711
    assert [(await house.row(one)).status for one in (unheld, unnamed)] == ["failed", "failed"]
    assert (await house.row(unheld)).result == "it holds no list"


async def test_secrets_are_hidden_once_they_were_sent(house: House) -> None:
    epochs = await house.connect(HERE, 1)
    command = await house.give(1)
    (due,) = await house.ocpp.due(HERE)
    secret = {"key": "AuthorizationKey", "value": "0123456789abcdef"}
    told = Answered(
        command=command,
        action="ChangeConfiguration",
        request=secret,
        response={"status": "Accepted", "text": "a\0b"},
        accepted=True,
    )
    await house.say(due.station_id, epochs[1], told)
    row = await house.row(command)
    assert row.request == {"key": "AuthorizationKey", "value": "***"}
    assert row.response == {"status": "Accepted", "text": "a\N{REPLACEMENT CHARACTER}b"}


async def test_who_waits_is_woken_by_another_process(house: House) -> None:
    epochs = await house.connect(HERE, 1)
    async with Database.open(house.database.dsn) as elsewhere:
        answers = Answers(elsewhere, most=1)
        listening = asyncio.create_task(answers.run())
        command = await house.give(1)
        with answers.expecting(command) as ended:
            with pytest.raises(TooManyWaiting), answers.expecting(UUID(int=9)):
                pass
            await asyncio.sleep(0.2)  # by then it listens, and has woken everybody once
            ended.clear()
            (due,) = await house.ocpp.due(HERE)
            await house.say(1, epochs[1], reply(due))
            async with asyncio.timeout(10):
                await ended.wait()
        assert answers._waiting == {}
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_a_gateway_is_woken_by_the_asker(house: House) -> None:
    await house.connect(HERE, 1)
    handed: asyncio.Queue[Due] = asyncio.Queue()

    def hand_over(due: Any) -> None:
        for one in due:
            handed.put_nowait(one)

    async with running(house.ocpp, HERE, hand_over):
        await asyncio.sleep(0.2)
        command = await house.give(1)
        async with asyncio.timeout(3):
            assert (await handed.get()).command == command


async def test_many_stations_commands_are_claimed_at_once(house: House) -> None:
    async with house.database.commit_unit() as cursor:
        stations = [(station, ONE) for station in range(1, 301)]
        await take_over(cursor, HERE, stations)
        await ocpp_store.note_versions(
            cursor, {station: (ONE, "ocpp1.6", house.now) for station, _ in stations}
        )
        for station, _ in stations:
            await house.commands.send(cursor, ONE, station, LIMIT, timedelta(minutes=2), "key:7")
    assert len(await house.ocpp.due(HERE)) == 300


@pytest.mark.parametrize("version", list(Version))
async def test_everyday_commands_go_out_in_every_versions_words(
    house: House, version: Version
) -> None:
    """What is given to an agent is given to a station that speaks OCPP in the same way."""
    native = {Version.V16: "number"}.get(version, "key")

    class Book:
        async def native(
            self, cursor: Cursor, transactions: Collection[UUID]
        ) -> dict[UUID, tuple[str | None, int | None]]:
            return {OPEN: (None, 4711) if native == "number" else ("tx-1", None)}

    real = OcppCommands(house.database, house.surroundings, Book(), house.clock)
    given: list[Action] = [
        RemoteStart(1, IdToken("04A2")),
        RemoteStop(OPEN),
        LIMIT,
        SetLimit(1, None, Milliseconds(1000)),
        SetAvailability(0, operative=False),
        SetLocalList(1, ()),
    ]
    await house.connect(HERE, *range(1, len(given) + 1))
    async with house.database.commit_unit() as cursor:
        await ocpp_store.note_versions(
            cursor, dict.fromkeys(range(1, len(given) + 1), (ONE, version, house.now))
        )
    for station, action in enumerate(given, 1):
        await house.give(station, action)
    due = await real.due(HERE)
    assert len(due) == len(given)
    for one in due:
        codec(version).make_request(one.action, one.payload)
        json.dumps(one.payload)
