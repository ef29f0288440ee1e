"""Both halves of the agent link against each other: real journal, broker and database."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from prometheus_client import CollectorRegistry

from cloud.communication.api import Known
from cloud.communication.commands import CommandResults, Commands
from cloud.communication.link import AgentLink
from cloud.communication.receiver import BrokerSettings, Receiver
from cloud.kernel.database import Database, TenantId
from cloud.kernel.events import Event
from cloud.kernel.facts import GroupCommitter
from cloud.kernel.migrate import migrate
from edge_agent.journal import Journal, JournalBudget
from edge_agent.uplink.mqtt import MqttSettings, MqttUplink
from edge_agent.uplink.session import SessionSettings
from protocols.agent_link import (
    BillingBatch,
    ClockQuality,
    CommandResult,
    CommandStatus,
    SecurityEvent,
    SetAvailability,
    SetLocalList,
    Stamp,
)

STATION = "UZ/TAS 1"
SECRET = "a-long-random-secret"
TENANT = TenantId(1)


class Directory:
    """The one station of these tests, as stations would know it."""

    async def resolve(self, cursor, identity, *, hold=False):
        return Known(1, TENANT) if identity == STATION else None

    async def identities(self, cursor, stations):
        return {1: STATION}

    async def key_of(self, cursor, identity):
        return 1

    async def open_transactions(self, cursor, station_id, told):
        return (), ()

    async def list_version(self, cursor, tenant):
        return 0

    async def local_list(self, cursor, tenant):
        return SetLocalList(0, ())


class Seen:
    """A writer that keeps what it was given, in a table of the test's own."""

    name = "seen"

    async def write_batch(self, cursor, deliveries):
        happened = []
        for delivery in deliveries:
            if isinstance(delivery.batch, BillingBatch):
                for fact in delivery.batch.facts:
                    await cursor.execute("INSERT INTO seen VALUES (%s)", (str(fact.id),))
                    happened.append(Event(TENANT, "seen.taken", 1, str(fact.id), {}))
        return happened


@dataclass
class Agent:
    """What the loop would be: answers commands, hears of the link."""

    journal: Journal
    boot: UUID
    ticks: itertools.count = field(default_factory=lambda: itertools.count(1))
    up: bool = False
    commands: list = field(default_factory=list)

    def now(self) -> Stamp:
        now = round(datetime.now(UTC).timestamp() * 1000)
        return Stamp(now, next(self.ticks), self.boot, ClockQuality.SYNCED)

    async def welcomed(self, welcome) -> None:
        self.welcome = welcome

    async def command(self, command) -> None:
        if self.journal.result_of(command.id) is None:
            self.commands.append(command)
            answer = CommandResult(uuid4(), command.id, self.now(), CommandStatus.EXECUTED, "ok")
            self.journal.commit(facts=[answer])

    def link_changed(self, up: bool, reason: str) -> None:
        self.up = up

    def event(self) -> UUID:
        fact = SecurityEvent(uuid4(), self.now(), "Test", "told once")
        self.journal.commit(facts=[fact])
        return fact.id


def _url(broker) -> str:
    return f"mqtts://{broker.host}:{broker.port}"


@asynccontextmanager
async def _cloud(dsn: str, broker) -> AsyncIterator[tuple[Commands, Database]]:
    settings = BrokerSettings(
        _url(broker), broker.cloud_user, broker.cloud_secret, broker.ca_file.read_text()
    )
    directory = Directory()

    def clock() -> datetime:
        return datetime.now(UTC)

    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(Database.open(dsn))
        writers = [CommandResults(), Seen()]
        sink = await stack.enter_async_context(GroupCommitter(database, writers))
        receiver = await stack.enter_async_context(Receiver(settings))
        commands = Commands(database, directory, directory, clock)
        link = AgentLink(
            database,
            receiver,
            sink,
            commands,
            directory=directory,
            book=directory,
            lists=directory,
            greeted=(),
            clock=clock,
            registry=CollectorRegistry(),
        )
        task = asyncio.create_task(link.run())
        try:
            yield commands, database
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def _agent(folder: Path, broker) -> AsyncIterator[Agent]:
    boot = uuid4()
    journal = Journal.open(folder, station=STATION, boot=boot, budget=JournalBudget())
    agent = Agent(journal, boot)
    settings = MqttSettings(
        host=broker.host,
        port=broker.port,
        password=SECRET,
        ca_file=broker.ca_file,
        first_retry_s=0.2,
    )
    session = SessionSettings(station=STATION, agent_version="1", welcome_ms=3000, resend_ms=1000)
    uplink = MqttUplink(settings, session, journal, agent, agent)
    task = asyncio.create_task(uplink.run())
    try:
        yield agent
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        journal.close()


async def _until(condition, seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


async def _seen(database: Database) -> list[str]:
    async with database.commit_unit() as cursor:
        await cursor.execute("SELECT fact FROM seen")
        return [row[0] for row in await cursor.fetchall()]


@pytest.fixture
def cloud_dsn(pg_dsn: str) -> str:
    migrate(pg_dsn)
    with psycopg.connect(pg_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE seen (fact text)")  # not unique: doubles would show
        connection.execute("GRANT ALL ON seen TO karvon_commit")
    return pg_dsn


@pytest.mark.system
async def test_what_an_agent_commits_arrives_once_and_is_forgotten_only_then(
    cloud_dsn, broker, tmp_path
) -> None:
    broker.admit("UZ=2FTAS=201", SECRET)
    async with _agent(tmp_path, broker) as agent:
        facts = {str(agent.event()) for _ in range(20)}
        async with _cloud(cloud_dsn, broker) as (_, database):
            await _until(lambda: agent.journal.pending_billing == 0)
            assert sorted(await _seen(database)) == sorted(facts)
        late = str(agent.event())
        assert agent.journal.pending_billing == 1
        async with _cloud(cloud_dsn, broker) as (_, database):
            await _until(lambda: agent.journal.pending_billing == 0)
            assert sorted(await _seen(database)) == sorted({late, *facts})


@pytest.mark.system
async def test_a_command_is_done_once_and_its_answer_comes_back(
    cloud_dsn, broker, tmp_path
) -> None:
    broker.admit("UZ=2FTAS=201", SECRET)
    async with (
        _cloud(cloud_dsn, broker) as (commands, database),
        _agent(tmp_path, broker) as agent,
    ):
        await _until(lambda: agent.up)
        async with database.unit(TENANT) as cursor:
            sent = await commands.send(
                cursor, TENANT, 1, SetAvailability(0, False), timedelta(minutes=1), "test"
            )
        await _until(lambda: agent.commands)
        await _until(lambda: agent.journal.pending_billing == 0)
        async with database.unit(TENANT) as cursor:
            await cursor.execute(
                "SELECT status, result FROM communication.command WHERE id = %s", (sent,)
            )
            assert await cursor.fetchone() == ("executed", "ok")
        assert [command.id for command in agent.commands] == [sent]


@pytest.mark.system
async def test_a_cloud_restored_from_before_gets_everything_again(
    cloud_dsn, broker, tmp_path
) -> None:
    broker.admit("UZ=2FTAS=201", SECRET)
    async with _agent(tmp_path, broker) as agent:
        async with _cloud(cloud_dsn, broker):
            facts = {str(agent.event()) for _ in range(5)}
            await _until(lambda: agent.journal.pending_billing == 0)
        with psycopg.connect(cloud_dsn, autocommit=True) as connection:
            connection.execute("DELETE FROM seen")
            connection.execute("UPDATE kernel.outbox_mark SET committed = '{}'")
        async with _cloud(cloud_dsn, broker) as (_, database):
            agent.event()
            await _until(lambda: agent.journal.pending_billing == 0)
            async with asyncio.timeout(10):
                while not facts < set(await _seen(database)):
                    await asyncio.sleep(0.1)


@pytest.mark.system
async def test_a_cloned_journal_takes_another_outbox(cloud_dsn, broker, tmp_path) -> None:
    broker.admit("UZ=2FTAS=201", SECRET)
    async with _cloud(cloud_dsn, broker) as (_, database):
        first, second = tmp_path / "first", tmp_path / "second"
        async with _agent(first, broker) as agent:
            one = str(agent.event())
            await _until(lambda: agent.journal.pending_billing == 0)
            outbox = agent.journal.outbox
        second.mkdir()
        for file in first.iterdir():
            (second / file.name).write_bytes(file.read_bytes())
        async with _agent(first, broker) as agent:
            two = str(agent.event())
            await _until(lambda: agent.journal.pending_billing == 0)
            assert agent.journal.outbox == outbox
        async with _agent(second, broker) as clone:
            three = str(clone.event())
            await _until(lambda: clone.journal.pending_billing == 0)
            assert clone.journal.outbox != outbox
        assert sorted(await _seen(database)) == sorted([one, two, three])
