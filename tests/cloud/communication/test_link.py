"""Greetings, commits, acks, commands: the link over a real database, without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from cloud.communication import store
from cloud.communication.commands import CommandResults, Commands
from cloud.communication.link import AgentLink
from cloud.kernel.database import Database, TenantId
from cloud.kernel.errors import Unavailable
from cloud.kernel.facts import Delivery, FactSink, GroupCommitter
from protocols.agent_link import (
    Action,
    ClockQuality,
    Command,
    CommandResult,
    CommandStatus,
    Down,
    IdToken,
    LocalListEntry,
    Presence,
    SetAvailability,
    SetLimit,
    SetLocalList,
    Stamp,
    Stream,
    Up,
    Verdict,
)
from protocols.quantities import MilliAmperes, Milliseconds

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
OUTBOX = UUID(int=0x0B0C)
BOOT = UUID(int=0xB007)


@dataclass
class Clock:
    now: datetime = START

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Driven:
    """The link as a test drives it: feed, wait until idle, look at what went out."""

    link: AgentLink
    commands: Commands
    wire: Any
    clock: Clock
    database: Database

    async def receive(
        self, *messages: tuple[Any, Any], station: str = "CP-1", retained: bool = False
    ) -> None:
        fed = [
            self.wire.arrive(channel, message, station, retained=retained).token
            for channel, message in messages
        ]
        async with asyncio.timeout(10):
            while not set(fed) <= set(self.wire.settled) or self.link._tasks:
                await asyncio.sleep(0.001)

    def last(self, channel: Down) -> Any:
        return self.wire.of(channel)[-1]

    async def deliver(self) -> int:
        """Send what is due; how many commands went out."""
        before = len(self.wire.of(Down.COMMAND))
        await self.commands.deliver(self.link._publish_command)
        return len(self.wire.of(Down.COMMAND)) - before

    async def send(self, action: Action | None = None) -> UUID:
        async with self.database.unit(TenantId(1)) as cursor:
            return await self.commands.send(
                cursor,
                TenantId(1),
                1,
                action or SetAvailability(1, operative=False),
                timedelta(minutes=2),
                "key:7",
            )

    async def state_of(self, command: UUID) -> tuple[str, str]:
        async with self.database.unit(TenantId(1), read_only=True) as cursor:
            row = await store.command(cursor, command)
        assert row
        return row.status, row.result


def make_link(
    database: Database, wire: Any, sink: FactSink, surroundings: Any, clock: Clock
) -> tuple[AgentLink, Commands]:
    commands = Commands(database, surroundings, surroundings, clock)
    link = AgentLink(
        database,
        wire,
        sink,
        commands,
        directory=surroundings,
        book=surroundings,
        lists=surroundings,
        greeted=[surroundings],
        clock=clock,
        registry=CollectorRegistry(),
        retry_s=0.001,
    )
    return link, commands


@asynccontextmanager
async def receiving(link: AgentLink) -> AsyncIterator[None]:
    task = asyncio.create_task(link._receive())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, *link._tasks, return_exceptions=True)


@pytest.fixture
async def link(database: Database, surroundings: Any, fake_receiver: Any) -> AsyncIterator[Driven]:
    clock = Clock()
    async with GroupCommitter(database, [CommandResults()], linger_s=0.001) as sink:
        made, commands = make_link(database, fake_receiver, sink, surroundings, clock)
        async with receiving(made):
            yield Driven(made, commands, fake_receiver, clock, database)


def result(command: UUID, status: CommandStatus, text: str = "") -> CommandResult:
    at = Stamp(Milliseconds(0), Milliseconds(0), BOOT, ClockQuality.SYNCED)
    return CommandResult(uuid4(), command, at, status, text)


# --------------------------------------------------------------------------- greeting


async def test_a_first_greeting_is_welcomed_with_nothing_committed(
    link: Driven, make_hello: Callable[..., Any], surroundings: Any
) -> None:
    surroundings.over, surroundings.version = (UUID(int=5),), 9
    await link.receive((Up.HELLO, make_hello()))
    welcome = link.last(Down.WELCOME)
    assert welcome.verdict is Verdict.GO_ON
    assert set(welcome.committed.values()) == {()}
    assert (welcome.cloud, welcome.outbox) == (link.link.cloud, OUTBOX)
    assert (welcome.ended_transactions, welcome.local_list_version) == ((UUID(int=5),), 9)
    assert welcome.now_ms == START.timestamp() * 1000
    assert [station for station, _ in surroundings.hellos] == [1]


async def test_a_later_greeting_tells_what_is_committed(
    link: Driven, make_hello: Callable[..., Any], make_billing: Callable[..., Any]
) -> None:
    await link.receive((Up.HELLO, make_hello()))
    await link.receive(*((Up.BILLING, make_billing(seq)) for seq in (1, 2, 4)))
    await link.receive((Up.HELLO, make_hello(boots=(UUID(int=2), BOOT), next_number=5)))
    welcome = link.last(Down.WELCOME)
    assert welcome.verdict is Verdict.GO_ON
    assert welcome.committed[Stream.BILLING] == ((1, 2), (4, 4))


async def test_a_clone_is_told_to_take_a_new_outbox(
    link: Driven, make_hello: Callable[..., Any]
) -> None:
    original, clone = UUID(int=2), UUID(int=3)
    await link.receive((Up.HELLO, make_hello(boots=(BOOT,))))
    await link.receive((Up.HELLO, make_hello(boots=(original, BOOT))))
    await link.receive((Up.HELLO, make_hello(boots=(clone, BOOT))))
    assert link.last(Down.WELCOME).verdict is Verdict.NEW_OUTBOX
    await link.receive((Up.HELLO, make_hello(boots=(original, BOOT))))
    assert link.last(Down.WELCOME).verdict is Verdict.GO_ON


async def test_a_restored_journal_is_told_to_take_a_new_outbox(
    link: Driven, make_hello: Callable[..., Any], make_billing: Callable[..., Any]
) -> None:
    await link.receive((Up.HELLO, make_hello()))
    await link.receive((Up.BILLING, make_billing(3)))
    await link.receive((Up.HELLO, make_hello(next_number=3)))
    welcome = link.last(Down.WELCOME)
    assert (welcome.verdict, welcome.committed) == (Verdict.NEW_OUTBOX, {})


async def test_a_hello_that_was_overtaken_is_not_judged_any_more(
    link: Driven, make_hello: Callable[..., Any], make_billing: Callable[..., Any]
) -> None:
    first = make_hello()
    later = msgspec.structs.replace(
        first, sent=msgspec.structs.replace(first.sent, mono_ms=first.sent.mono_ms + 10)
    )
    await link.receive((Up.HELLO, later))
    await link.receive((Up.BILLING, make_billing(3)))
    await link.receive((Up.HELLO, first))
    assert [welcome.verdict for welcome in link.wire.of(Down.WELCOME)] == [Verdict.GO_ON]


async def test_an_unknown_station_is_neither_welcomed_nor_kept_waiting(
    link: Driven, make_hello: Callable[..., Any]
) -> None:
    await link.receive((Up.HELLO, make_hello()), station="nobody")
    assert link.wire.messages == []


# --------------------------------------------------------------------------- batches


async def test_what_arrives_together_is_acknowledged_together(
    link: Driven, make_hello: Callable[..., Any], make_billing: Callable[..., Any]
) -> None:
    await link.receive((Up.HELLO, make_hello()))
    await link.receive(*((Up.BILLING, make_billing(seq)) for seq in (5, 1, 2, 2)))
    acks = link.wire.of(Down.ACK)
    assert [(ack.stream, ack.ranges) for ack in acks] == [(Stream.BILLING, ((1, 2), (5, 5)))]


async def test_a_batch_of_an_unknown_outbox_asks_for_a_greeting(
    link: Driven, make_hello: Callable[..., Any], make_billing: Callable[..., Any]
) -> None:
    await link.receive((Up.BILLING, make_billing(1)))
    ack = link.last(Down.ACK)
    assert (ack.cloud, ack.outbox, ack.ranges) == (link.link.cloud, OUTBOX, ())


async def test_another_stations_outbox_is_not_its_own(
    link: Driven, make_hello: Callable[..., Any], make_billing: Callable[..., Any]
) -> None:
    await link.receive((Up.HELLO, make_hello()))
    await link.receive((Up.BILLING, make_billing(1)), station="CP 2/ü")
    assert link.last(Down.ACK).ranges == ()


async def test_what_does_not_decode_is_kept_and_settled(
    link: Driven,
    database: Database,
    make_hello: Callable[..., Any],
    make_billing: Callable[..., Any],
) -> None:
    await link.receive((Up.HELLO, make_hello()))
    await link.receive(
        (Up.BILLING, b"{nonsense"), (Up.BILLING, make_billing(2**60)), (Up.BILLING, make_billing(1))
    )
    assert link.last(Down.ACK).ranges == ((1, 1),)
    async with database.commit_unit() as cursor:
        await cursor.execute("SELECT payload FROM kernel.dead_letter ORDER BY id")
        assert (await cursor.fetchall())[0] == (b"{nonsense",)


async def test_a_flood_of_nonsense_is_kept_within_bounds(link: Driven, database: Database) -> None:
    await link.receive(*((Up.STATE, b"\xff" * 100_000) for _ in range(200)))
    async with database.commit_unit() as cursor:
        await cursor.execute("SELECT count(*), max(length(payload)) FROM kernel.dead_letter")
        row = await cursor.fetchone()
    assert row
    assert row[0] <= 120, "60 a minute, and a minute may turn meanwhile"
    assert row[1] == 65536


class Reluctant:
    """A FactSink whose database comes back at the third try."""

    def __init__(self) -> None:
        self.tried: list[list[int]] = []

    async def append(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        self.tried.append([delivery.batch.seq for delivery in deliveries])
        if len(self.tried) < 3:
            raise Unavailable("not yet")
        return list(deliveries)


async def test_with_the_database_away_nothing_is_settled_until_it_is_back(
    database: Database, surroundings: Any, fake_receiver: Any, make_billing: Callable[..., Any]
) -> None:
    sink = Reluctant()
    link, _ = make_link(database, fake_receiver, sink, surroundings, Clock())
    async with receiving(link), asyncio.timeout(10):
        fake_receiver.arrive(Up.BILLING, make_billing(7))
        while not sink.tried:
            await asyncio.sleep(0)
        assert fake_receiver.settled == []
        assert fake_receiver.messages == []
        while not fake_receiver.settled:
            await asyncio.sleep(0.001)
    assert sink.tried == [[7]] * 3
    assert [ack.ranges for ack in fake_receiver.of(Down.ACK)] == [((7, 7),)]


async def test_a_message_that_fails_for_good_gives_its_place_back(
    link: Driven, make_hello: Callable[..., Any], make_billing: Callable[..., Any]
) -> None:
    """A text that PostgreSQL refuses, in a place where nothing is dead-lettered."""
    impossible = msgspec.structs.replace(make_hello(), agent_version="1.0\0")
    await link.receive((Up.HELLO, impossible))
    assert link.wire.messages == []
    await link.receive((Up.HELLO, make_hello()), (Up.HELLO, make_hello(boots=())))
    assert len(link.wire.of(Down.WELCOME)) == 1


# --------------------------------------------------------------------------- presence


async def online(database: Database) -> list[int]:
    async with database.unit(TenantId(1)) as cursor:
        return await store.online(cursor, TenantId(1))


async def test_presence_follows_greeting_and_will(
    link: Driven, database: Database, make_hello: Callable[..., Any]
) -> None:
    await link.receive((Up.HELLO, make_hello()))
    assert await online(database) == [1]
    await link.receive((Up.PRESENCE, Presence(online=False, boot=BOOT)))
    assert await online(database) == []
    await link.receive((Up.PRESENCE, Presence(online=True, boot=BOOT)))
    assert await online(database) == [1]


async def test_the_will_of_an_earlier_boot_does_not_end_the_present_one(
    link: Driven, database: Database, make_hello: Callable[..., Any]
) -> None:
    await link.receive((Up.HELLO, make_hello(boots=(UUID(int=2), BOOT))))
    await link.receive((Up.PRESENCE, Presence(online=False, boot=BOOT)))
    assert await online(database) == [1]


async def test_traffic_after_a_late_will_brings_a_station_back(
    link: Driven,
    database: Database,
    make_hello: Callable[..., Any],
    make_billing: Callable[..., Any],
) -> None:
    await link.receive((Up.HELLO, make_hello()))
    await link.receive((Up.PRESENCE, Presence(online=False, boot=BOOT)))
    await link.link._store_seen(link.link._seen)
    assert await online(database) == []
    await link.receive((Up.PRESENCE, Presence(online=False, boot=UUID(int=3))))
    await link.receive((Up.BILLING, make_billing(1)))
    await link.link._store_seen(link.link._seen)
    assert await online(database) == [1]


async def test_a_retained_message_does_not_make_a_station_seen_now(
    link: Driven, database: Database, make_hello: Callable[..., Any]
) -> None:
    await link.receive((Up.HELLO, make_hello()))
    await link.link._store_seen(link.link._seen)
    link.link._seen.clear()
    link.clock.now += timedelta(hours=1)
    await link.receive((Up.PRESENCE, Presence(online=True, boot=BOOT)), retained=True)
    assert link.link._seen == {}
    await link.receive((Up.PRESENCE, Presence(online=True, boot=BOOT)))
    assert link.link._seen == {1: link.clock.now}


# --------------------------------------------------------------------------- commands


async def test_a_command_goes_out_at_once_to_a_station_that_is_online(
    link: Driven, database: Database, make_hello: Callable[..., Any]
) -> None:
    await link.receive((Up.HELLO, make_hello()))
    limit = SetLimit(1, MilliAmperes(16000), Milliseconds(60000))
    command = await link.send(limit)
    assert await link.deliver() == 1
    told: Command = link.last(Down.COMMAND)
    assert (told.id, told.do, told.valid_ms) == (command, limit, 120_000)
    assert await link.state_of(command) == ("sent", "")
    assert await link.deliver() == 0


async def test_a_command_waits_for_the_greeting_and_comes_after_the_welcome(
    link: Driven, database: Database, make_hello: Callable[..., Any]
) -> None:
    command = await link.send()
    assert await link.deliver() == 0
    await link.receive((Up.HELLO, make_hello()))
    channels = [topic.rpartition("/")[2] for topic, _ in link.wire.messages]
    assert channels == ["welcome", "command"]
    assert link.last(Down.COMMAND).id == command


async def test_an_unanswered_command_is_sent_again_until_accepted(
    link: Driven,
    database: Database,
    make_hello: Callable[..., Any],
    make_billing: Callable[..., Any],
) -> None:
    await link.receive((Up.HELLO, make_hello()))
    command = await link.send()
    await link.deliver()
    link.clock.now += timedelta(seconds=20)
    assert await link.deliver() == 1
    await link.receive((Up.BILLING, make_billing(1, result(command, CommandStatus.ACCEPTED))))
    link.clock.now += timedelta(seconds=20)
    assert await link.deliver() == 0
    assert await link.state_of(command) == ("accepted", "")


async def test_an_expired_command_is_not_sent_and_a_late_answer_still_tells_the_truth(
    link: Driven,
    database: Database,
    make_hello: Callable[..., Any],
    make_billing: Callable[..., Any],
) -> None:
    await link.receive((Up.HELLO, make_hello()))
    command = await link.send()
    link.clock.now += timedelta(minutes=3)
    assert await link.deliver() == 0
    await link.commands._expire()
    assert (await link.state_of(command))[0] == "expired"
    await link.receive((Up.BILLING, make_billing(1, result(command, CommandStatus.EXECUTED))))
    assert (await link.state_of(command))[0] == "executed"


async def test_the_first_end_holds_in_whatever_order_answers_come(
    link: Driven,
    database: Database,
    make_hello: Callable[..., Any],
    make_billing: Callable[..., Any],
) -> None:
    await link.receive((Up.HELLO, make_hello()))
    command = await link.send()
    answers = [
        result(command, CommandStatus.REJECTED, "no cable"),
        result(command, CommandStatus.ACCEPTED),
        result(command, CommandStatus.EXECUTED),
    ]
    await link.receive((Up.BILLING, make_billing(1, *answers)))
    assert await link.state_of(command) == ("rejected", "no cable")
    async with database.commit_unit() as cursor:
        await cursor.execute("SELECT kind FROM kernel.event WHERE kind LIKE 'command.%%'")
        assert await cursor.fetchall() == [("command.rejected",)]


async def test_a_station_cannot_answer_for_another(
    link: Driven,
    database: Database,
    make_hello: Callable[..., Any],
    make_billing: Callable[..., Any],
) -> None:
    await link.receive((Up.HELLO, make_hello()), station="CP 2/ü")
    command = await link.send()
    foreign = make_billing(1, result(command, CommandStatus.EXECUTED))
    await link.receive((Up.BILLING, foreign), station="CP 2/ü")
    assert (await link.state_of(command))[0] == "requested"


async def test_a_list_is_kept_once_and_goes_out_as_it_is_by_then(
    link: Driven, database: Database, surroundings: Any, make_hello: Callable[..., Any]
) -> None:
    surroundings.version = 7
    command = await link.send(SetLocalList(7, (LocalListEntry(IdToken("secret")),)))
    async with database.unit(TenantId(1)) as cursor:
        kept = await store.command(cursor, command)
    assert kept
    assert kept.action == {"action": "set_local_list", "version": 7}
    surroundings.version = 8
    await link.receive((Up.HELLO, make_hello()))
    assert link.last(Down.COMMAND).do == SetLocalList(8, (LocalListEntry(IdToken("1-8")),))


async def test_another_tenants_command_is_not_there(database: Database, link: Driven) -> None:
    command = await link.send()
    async with database.unit(TenantId(2)) as cursor:
        assert await store.command(cursor, command) is None
