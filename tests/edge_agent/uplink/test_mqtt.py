"""The uplink on real brokers: credentials, acks, a broker that dies, one that stays silent."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiomqtt
import pytest

from cloud.kernel.embedded import BrokerUser, EmbeddedBroker, hash_secret
from edge_agent.journal import Journal, JournalBudget
from edge_agent.uplink.mqtt import MqttSettings, MqttUplink, tls_context
from edge_agent.uplink.pace import retry_delay
from edge_agent.uplink.session import SessionSettings
from edge_agent.uplink.testing import ModelCloud
from protocols.agent_link import (
    ChargingState,
    ClockQuality,
    Command,
    Down,
    Presence,
    RemoteStop,
    Stamp,
    TransactionEvent,
    TransactionEventType,
    Trigger,
    Up,
    Welcome,
    decode_up,
    down_topic,
    encode,
    escape,
    parse_up_topic,
    up_filter,
)
from protocols.quantities import Milliseconds, WattHours

NOW = Stamp(Milliseconds(1_790_000_000_000), Milliseconds(1000), UUID(int=1), ClockQuality.SYNCED)
STATION = "UZ*KRV 01"


class FixedClock:
    def now(self) -> Stamp:
        return NOW


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.welcomes: list[Welcome] = []
        self.commands: list[Command] = []
        self.links: list[tuple[bool, str]] = []

    async def welcomed(self, welcome: Welcome) -> None:
        self.welcomes.append(welcome)

    async def command(self, command: Command) -> None:
        self.commands.append(command)

    def link_changed(self, up: bool, reason: str) -> None:
        self.links.append((up, reason))


def event(transaction: UUID, seq_no: int) -> TransactionEvent:
    return TransactionEvent(
        id=uuid4(),
        transaction=transaction,
        type=TransactionEventType.UPDATED,
        seq_no=seq_no,
        at=NOW,
        trigger=Trigger.METER_VALUE_PERIODIC,
        evse=1,
        started=NOW,
        charging_state=ChargingState.CHARGING,
        energy_wh=WattHours(seq_no),
        meter_wh=WattHours(seq_no),
    )


async def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"never: {what}")


class LiveCloud:
    """The model cloud on a broker."""

    def __init__(self, model: ModelCloud, **connection: Any) -> None:
        self.model = model
        self.connection = connection
        self.presences: list[bool] = []
        self.subscribed = asyncio.Event()

    async def run(self) -> None:
        while True:
            with suppress(aiomqtt.MqttError):
                async with aiomqtt.Client(**self.connection) as client:
                    await client.subscribe(up_filter(), qos=1)
                    self.subscribed.set()
                    async for message in client.messages:
                        await self._answer(client, message)
            await asyncio.sleep(0.1)

    async def _answer(self, client: aiomqtt.Client, message: aiomqtt.Message) -> None:
        station, channel = parse_up_topic(str(message.topic))
        assert isinstance(message.payload, bytes)
        if station != STATION:
            return
        if channel is Up.PRESENCE:
            presence = decode_up(channel, message.payload)
            assert isinstance(presence, Presence)
            self.presences.append(presence.online)
            return
        answer = self.model.receive(channel, message.payload)
        if answer:
            await client.publish(down_topic(station, answer[0]), answer[1], qos=1)

    async def command(self, command: Command) -> None:
        async with aiomqtt.Client(**self.connection) as client:
            await client.publish(down_topic(STATION, Down.COMMAND), encode(command), qos=1)


@asynccontextmanager
async def running(*work: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled() and task.exception():
            raise task.exception()  # type: ignore[misc]  # just seen to be one


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    journal = Journal.open(
        tmp_path / "journal", station=STATION, boot=uuid4(), budget=JournalBudget(reserve_bytes=0)
    )
    yield journal
    journal.close()


def uplink(journal: Journal, listener: Heard, **mqtt: Any) -> MqttUplink:
    settings = MqttSettings(first_retry_s=0.2, longest_retry_s=0.5, **mqtt)
    session = SessionSettings(station=STATION, agent_version="1", telemetry_ms=500)
    return MqttUplink(settings, session, journal, listener, FixedClock())


async def test_facts_reach_the_cloud_and_commands_come_back(broker: Any, journal: Journal) -> None:
    secret = secrets.token_urlsafe(12)
    await asyncio.to_thread(broker.admit, escape(STATION), secret)
    heard = Heard()
    link = uplink(
        journal,
        heard,
        host=broker.host,
        port=broker.port,
        ca_file=broker.ca_file,
        password=secret,
    )
    cloud = LiveCloud(
        ModelCloud(),
        hostname=broker.host,
        port=broker.port,
        username=broker.cloud_user,
        password=broker.cloud_secret,
        tls_context=broker.tls(),
    )
    facts = [event(uuid4(), n) for n in range(30)]
    for fact in facts:
        journal.commit(facts=[fact])
    async with running(cloud.run()):
        await cloud.subscribed.wait()
        async with running(link.run()):
            await until(lambda: len(cloud.model.facts) == 30, "all facts committed")
            await until(lambda: journal.pending_billing == 0, "all facts acknowledged")
            assert heard.links == [(True, "welcomed by the cloud")]
            command = Command(uuid4(), Milliseconds(0), Milliseconds(1), RemoteStop(uuid4()))
            await cloud.command(command)
            await until(lambda: heard.commands == [command], "the command")
            live = event(uuid4(), 0)
            journal.commit(facts=[live])
            link.wake()
            await until(lambda: live.id in cloud.model.facts, "a live fact", 2)
            cloud.model = cloud.model.restarted()
            journal.commit(facts=[event(uuid4(), 0)])
            await until(lambda: len(heard.welcomes) == 2, "greeted the restarted cloud")
        await until(lambda: cloud.presences[-1:] == [False], "the goodbye")


async def test_a_killed_broker_costs_nothing(journal: Journal, tmp_path: Path) -> None:
    users = [
        BrokerUser("cloud", hash_secret("c"), ["karvon/1/#"], ["karvon/1/#"]),
        BrokerUser(escape(STATION), hash_secret("s"), ["karvon/1/#"], ["karvon/1/#"]),
    ]
    async with EmbeddedBroker(tmp_path / "broker", users=users) as broker:
        settings = {"port": broker.port, "ca_file": broker.ca_file}
        heard = Heard()
        link = uplink(journal, heard, host="localhost", password="s", **settings)
        cloud = LiveCloud(
            ModelCloud(),
            hostname="localhost",
            port=broker.port,
            username="cloud",
            password="c",
            tls_context=tls_context(MqttSettings(host="localhost", ca_file=broker.ca_file)),
        )
        mine = uuid4()
        async with running(cloud.run(), link.run()):
            for number in range(40):
                journal.commit(facts=[event(mine, number)])
                link.wake()
                await asyncio.sleep(0.02)
                if number in {10, 25}:
                    await until(lambda: heard.links and heard.links[-1][0], "link up", 40)
                    os.kill(broker.pid, signal.SIGKILL)
                    await until(lambda: not heard.links[-1][0], "link down")
            await until(lambda: journal.pending_billing == 0, "all facts acknowledged", 40)
        assert [fact.seq_no for fact in cloud.model.order] == list(range(40))
        assert (heard.links[-2][0], heard.links[-1][0]) == (False, True)


async def test_a_broker_that_stays_silent_is_left_and_tried_again(journal: Journal) -> None:
    connections = closed = 0

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections, closed
        connections += 1
        while await reader.read(4096):
            continue
        writer.close()
        await writer.wait_closed()
        closed += 1

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    heard = Heard()
    link = uplink(journal, heard, host="127.0.0.1", port=port, tls=False, deadline_s=0.3)
    async with server:
        async with running(link.run()):
            await until(lambda: connections >= 3, "three attempts")
        await until(lambda: closed == connections, "no socket left behind")
    assert heard.links == []


async def test_wrong_credentials_are_explained(
    nats_broker: Any, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "edge_agent.uplink.mqtt")
    link = uplink(
        journal,
        Heard(),
        host=nats_broker.host,
        port=nats_broker.port,
        ca_file=nats_broker.ca_file,
        password="wrong",
    )
    async with running(link.run()):
        await until(lambda: "claim it again" in caplog.text, "the remedy")


def test_retries_double_with_jitter_up_to_a_limit() -> None:
    settings = MqttSettings(host="h")
    assert [
        retry_delay(settings.first_retry_s, settings.longest_retry_s, n, 1.0) for n in range(4)
    ] == [1, 2, 4, 8]
    assert retry_delay(settings.first_retry_s, settings.longest_retry_s, 999, 1.0) == 60
    assert retry_delay(settings.first_retry_s, settings.longest_retry_s, 999, 0.0) == 30


def test_tls_is_1_3_at_least() -> None:
    context = tls_context(MqttSettings(host="h"))
    assert context
    assert context.minimum_version.name == "TLSv1_3"
