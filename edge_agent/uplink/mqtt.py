"""The agent link over MQTT 3.1.1: connects, stays connected, and does what the session says."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

import aiomqtt
from aiomqtt.exceptions import MqttConnectError

from edge_agent import faultpoints
from edge_agent.failover import LinkChooser
from edge_agent.journal import Journal, JournalError
from edge_agent.pulse import beat
from edge_agent.uplink.link import Connected, Disconnected, LinkChanged, Tick
from edge_agent.uplink.pace import retry_delay
from edge_agent.uplink.session import (
    Action,
    Arrived,
    Commanded,
    Event,
    Outbox,
    Send,
    Session,
    SessionSettings,
    Watched,
    Welcomed,
)
from protocols.agent_link import (
    Command,
    Down,
    Presence,
    Stamp,
    UnknownCommand,
    Up,
    Watch,
    Welcome,
    down_filter,
    encode,
    escape,
    up_topic,
)

log = logging.getLogger(__name__)
TICK_S: Final = 0.25
STEADY_S: Final = 30.0
"""A connection that held so long was a good one: the next attempt comes soon."""
MOST_PUBLISHES: Final = 100
MOST_HEARD: Final = 1000
"""Commands that wait to be done. Who sends more is no cloud of ours: acks must not wait for it."""
GOODBYE_S: Final = 2.0
HANDSHAKE_S: Final = 5.0
LINK_TROUBLE: Final = (aiomqtt.MqttError, OSError, ValueError)


@dataclass(frozen=True, kw_only=True)
class MqttSettings:
    """Where the broker is, and what proves who we are."""

    host: str
    port: int = 8883
    password: str | None = None
    tls: bool = True
    """False only towards a broker on this very machine, or in a tunnel."""
    ca_file: Path | None = None
    """None trusts the system's authorities."""
    certificate_file: Path | None = None
    key_file: Path | None = None
    keepalive_s: int = 30
    deadline_s: float = 10.0
    """For the broker's answer to anything, CONNECT included."""
    first_retry_s: float = 1.0
    longest_retry_s: float = 60.0

    @classmethod
    def at(
        cls, url: str, *, password: str, ca_file: Path | None, longest_retry_s: float = 60.0
    ) -> MqttSettings:
        """From `mqtts://host:port` (or `mqtt://`, without TLS); raises ValueError for another."""
        address = urlsplit(url)
        if address.scheme not in {"mqtt", "mqtts"} or not address.hostname:
            raise ValueError(f"{url!r} is not mqtts://host[:port]")
        tls = address.scheme == "mqtts"
        port = address.port or (8883 if tls else 1883)
        return cls(
            host=address.hostname,
            port=port,
            password=password,
            tls=tls,
            ca_file=ca_file,
            longest_retry_s=longest_retry_s,
        )


class Clock(Protocol):
    def now(self) -> Stamp: ...


class Listener(Protocol):
    """Who acts on what the cloud says; calls come one at a time, in order."""

    async def welcomed(self, welcome: Welcome) -> None: ...

    async def command(self, command: Command | UnknownCommand) -> None: ...

    def link_changed(self, up: bool, reason: str) -> None: ...


def tls_context(settings: MqttSettings) -> ssl.SSLContext | None:
    """TLS 1.3 or nothing; raises OSError (ssl.SSLError) for files that do not read."""
    if not settings.tls:
        return None
    context = ssl.create_default_context(cafile=settings.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if settings.certificate_file is not None:
        context.load_cert_chain(settings.certificate_file, settings.key_file)
    return context


def explain(settings: MqttSettings, error: BaseException) -> str:
    """What happened, why, what to do, for a person."""
    where = f"no link to the broker {settings.host}:{settings.port}: {error}"
    if isinstance(error, MqttConnectError):
        return f"{where}. Check the station's credentials, or claim it again"
    if "certificate" in str(error).lower():
        return f"{where}. Check the CA file, the broker's name, and this controller's clock"
    return f"{where}. Trying again; charging goes on, what matters waits in the journal"


def _close(client: aiomqtt.Client) -> None:
    """Aiomqtt leaves its socket behind when CONNECT is refused, late or cancelled."""
    paho = client._client  # noqa: SLF001  # nothing public closes it
    paho.on_disconnect = None  # aiomqtt's own trips over a cancelled CONNECT
    paho.disconnect()


def _give_socket(client: aiomqtt.Client, connected: socket.socket) -> None:
    """Have it speak over this connection instead of making one itself."""
    connected.settimeout(HANDSHAKE_S)  # paho speaks TLS in a thread of its own, and blocks
    client._client._create_socket_connection = lambda: connected  # type: ignore[method-assign]  # noqa: SLF001  # nothing public takes a socket


class MqttUplink:
    """Drains the journal to the cloud and brings its commands; `run` ends by cancellation only."""

    def __init__(
        self,
        settings: MqttSettings,
        session: SessionSettings,
        journal: Journal,
        listener: Listener,
        clock: Clock,
        *,
        chance: Callable[[], float] = random.random,
        outbox: Outbox | None = None,
        link: LinkChooser | None = None,
    ) -> None:
        """`outbox` is the part of the journal that leaves this way; None: all of it.

        `link` chooses the network link of each connection; None: the system does.
        """
        self.settings = settings
        self.station = session.station
        self.session = Session(session, outbox or journal, clock.now)
        self._journal = journal
        self._listener = listener
        self._clock = clock
        self._chance = chance
        self._something = asyncio.Event()
        self.link = link

    def wake(self) -> None:
        """There may be something new to send."""
        self._something.set()

    def watch(self, watch: Watch) -> None:
        """Somebody looks: telemetry leaves more often from the next tick on."""
        self.session.handle(Watched(watch), int(time.monotonic() * 1000))
        self.wake()

    def thin(self, times: int | None) -> None:
        """Send telemetry so many times as seldom; None: not at all."""
        self.session.thinned = times

    async def run(self) -> None:
        """Stay connected. Every failure is reported to the listener and tried again."""
        failures = 0
        while True:
            beat()
            began = time.monotonic()
            fault: BaseException
            try:
                await self._connection()
            except* LINK_TROUBLE as group:
                fault = _first(group)
            except* Exception as group:  # the loop's root: a fault here must not end the link
                log.exception("the uplink failed and starts again", exc_info=group)
                fault = _first(group)
            else:
                fault = ConnectionError("the broker ended the connection")
            reason = explain(self.settings, fault)
            if self.link is not None:
                self.link.ended(str(fault) or reason)
            await self._do(Disconnected(reason), None)
            failures = 0 if time.monotonic() - began > STEADY_S else failures + 1
            delay = retry_delay(
                self.settings.first_retry_s,
                self.settings.longest_retry_s,
                max(0, failures - 1),
                self._chance(),
            )
            log.info("%s (next attempt in %.1f s)", reason, delay)
            beat(delay)
            await asyncio.sleep(delay)

    def _client(self, tls: ssl.SSLContext | None) -> aiomqtt.Client:
        name = escape(self.station)
        will = encode(Presence(online=False, boot=self._journal.boots[0]))
        client = aiomqtt.Client(
            self.settings.host,
            self.settings.port,
            identifier=f"karvon-{name}",
            username=name,
            password=self.settings.password,
            clean_session=True,
            keepalive=self.settings.keepalive_s,
            timeout=self.settings.deadline_s,
            will=aiomqtt.Will(up_topic(self.station, Up.PRESENCE), will, qos=1, retain=True),
            tls_context=tls,
            max_inflight_messages=MOST_PUBLISHES,
            max_queued_incoming_messages=1000,
        )
        client.pending_calls_threshold = MOST_PUBLISHES
        return client

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[aiomqtt.Client]:
        client = self._client(await asyncio.to_thread(tls_context, self.settings))
        if self.link is not None:
            _give_socket(client, await self.link.connect())
        try:
            async with client:
                yield client
        finally:
            _close(client)

    async def _connection(self) -> None:
        async with self._connected() as client:
            await client.subscribe(down_filter(self.station), qos=1)
            await self._presence(client, online=True)
            try:
                await self._serve(client)
            except asyncio.CancelledError:
                with suppress(TimeoutError, *LINK_TROUBLE):  # then the broker says it: our will
                    async with asyncio.timeout(GOODBYE_S):
                        await self._presence(client, online=False)
                raise

    async def _presence(self, client: aiomqtt.Client, *, online: bool) -> None:
        message = Presence(online=online, boot=self._journal.boots[0])
        topic = up_topic(self.station, Up.PRESENCE)
        await client.publish(topic, encode(message), qos=1, retain=True)

    async def _serve(self, client: aiomqtt.Client) -> None:
        async with asyncio.TaskGroup() as group:
            sender = _Sender(client, self.station, group)
            listening: asyncio.Queue[Welcomed | Commanded] = asyncio.Queue(MOST_HEARD)
            line = _Line(sender, listening)
            group.create_task(self._listen(listening), name="uplink: tell the listener")
            await self._do(Connected(), line)
            group.create_task(self._tick(line), name="uplink: send")
            group.create_task(self._receive(client, line), name="uplink: receive")
            if self.link is not None:
                group.create_task(self.link.watch(), name="uplink: watch the link")

    async def _tick(self, line: _Line) -> None:
        while True:
            beat()
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._something.wait()
            self._something.clear()
            await self._do(Tick(), line)

    async def _receive(self, client: aiomqtt.Client, line: _Line) -> None:
        async for message in client.messages:
            channel = str(message.topic).rsplit("/", 1)[-1]
            if channel in set(Down) and isinstance(message.payload, bytes | bytearray):
                await self._do(Arrived(Down(channel), bytes(message.payload)), line)
                if channel == Down.ACK:
                    faultpoints.reach(faultpoints.AFTER_ACK)
        raise ConnectionError("the broker ended the connection")

    async def _listen(self, messages: asyncio.Queue[Welcomed | Commanded]) -> None:
        """One after the other, and never in the way of acks."""
        while True:
            message = await messages.get()
            try:
                if isinstance(message, Welcomed):
                    await self._listener.welcomed(message.welcome)
                else:
                    await self._listener.command(message.command)
            except Exception:  # a command that fails must not end the link
                log.exception("the agent failed on %s", type(message).__name__)

    async def _do(self, event: Event, line: _Line | None) -> None:
        try:
            actions = self.session.handle(event, int(time.monotonic() * 1000))
        except JournalError as error:
            log.error("the uplink waits for the journal: %s", error)  # noqa: TRY400  # no fault of ours: no trace
            return
        for action in actions:
            await self._carry_out(action, line)

    async def _carry_out(self, action: Action, line: _Line | None) -> None:
        if isinstance(action, LinkChanged):
            log.info("link %s: %s", "up" if action.up else "down", action.reason)
            self._listener.link_changed(action.up, action.reason)
        elif line is None:
            return
        elif isinstance(action, Send):
            await line.sender.send(action)
        elif line.listening.full():
            raise ConnectionError(f"more than {MOST_HEARD} commands wait; the connection is ended")
        else:
            line.listening.put_nowait(action)


class _Sender:
    """Publishes in order, not waiting for each PUBACK; one that stays out ends the connection."""

    def __init__(self, client: aiomqtt.Client, station: str, group: asyncio.TaskGroup) -> None:
        self._client = client
        self._station = station
        self._group = group
        self._room = asyncio.Semaphore(MOST_PUBLISHES)

    async def send(self, action: Send) -> None:
        await self._room.acquire()
        self._group.create_task(self._publish(action))

    async def _publish(self, action: Send) -> None:
        faultpoints.reach(faultpoints.BEFORE_PUBLISH)
        try:
            topic = up_topic(self._station, action.channel)
            await self._client.publish(topic, action.payload, qos=1)
        finally:
            self._room.release()


@dataclass(frozen=True)
class _Line:
    """What hangs on one connection."""

    sender: _Sender
    listening: asyncio.Queue[Welcomed | Commanded]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
