"""The MQTT connection of the cloud: our own receiver over the protocol in `protocols.mqtt`.

A message is acknowledged to the broker when the house is done with it, so that the broker's
in-flight window is the back-pressure; where a broker sends more than that, reading pauses. Messages
come and are acknowledged many at a time, for one wake-up and one system call each would cost more
than reading them (docs/decisions/0013).
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self, cast
from urllib.parse import urlsplit

from cloud.kernel import faultpoints
from protocols import mqtt
from protocols.agent_link import up_filter

logger = logging.getLogger(__name__)
KEEPALIVE_S: Final = 20
DEADLINE_S: Final = 10.0
"""For the broker's answer to CONNECT and SUBSCRIBE."""
FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 15.0
MOST_WAITING: Final = 8192
"""Messages taken and not yet done; beyond it nothing is read until half of them are."""
PACKET_IDS: Final = 0xFFFF
LINK_TROUBLE: Final = (OSError, mqtt.MqttError, TimeoutError)


@dataclass(frozen=True)
class BrokerSettings:
    """`mqtts://host:port` (TLS 1.3 or newer against `ca_pem`) or `mqtt://host:port`."""

    url: str
    username: str
    password: str
    ca_pem: str | None = None
    client_id: str = "karvon-cloud"
    topics: tuple[str, ...] = (up_filter(),)
    """What to subscribe to: all shards, or those of this process."""

    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or (8883 if parts.scheme == "mqtts" else 1883)

    def tls(self) -> ssl.SSLContext | None:
        if urlsplit(self.url).scheme != "mqtts":
            return None
        context = ssl.create_default_context(cadata=self.ca_pem)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context


class Received(NamedTuple):
    """A message as it came; `token` acknowledges it."""

    topic: str
    payload: bytes
    token: int
    retained: bool = False
    """From the broker's memory, so it may be as old as it likes."""


class Receiver:
    """Subscribes to what agents send; publishes to them. Use as an async context manager."""

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        self.inbox: asyncio.Queue[Sequence[Received]] = asyncio.Queue()
        self.online = asyncio.Event()
        self._connection: _Connection | None = None
        self._generation = 0
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self._run(), name="mqtt receiver")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def publish(self, topic: str, payload: bytes, *, surely: bool = True) -> None:
        """Send, at QoS 1 if `surely`; what a lost connection swallows is sent again by rule.

        (Acks are repeated for what the agent sends again, commands until they are answered.)
        """
        if self._connection is not None:
            self._connection.publish(topic, payload, surely=surely)

    def done(self, messages: Iterable[Received]) -> None:
        """Acknowledge to the broker what came over the connection that is up now."""
        if self._connection is None:
            return
        tokens = [message.token for message in messages]
        self._connection.done(
            [token & PACKET_IDS for token in tokens if token >> 16 == self._generation]
        )

    async def _run(self) -> None:
        pause = FIRST_RETRY_S
        while True:
            try:
                await self._connected()
                pause = FIRST_RETRY_S
            except LINK_TROUBLE as error:
                logger.warning("no link to the broker: %s", str(error) or type(error).__name__)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, no secret
            pause = min(pause * 2, LONGEST_RETRY_S)

    async def _connected(self) -> None:
        """One connection from its beginning to its end."""
        self._generation += 1
        host, port = self._settings.address()
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE_S):
            transport, connection = await loop.create_connection(
                lambda: _Connection(self.inbox, self._generation),
                host,
                port,
                ssl=self._settings.tls(),
            )
        try:
            async with asyncio.timeout(DEADLINE_S):
                await connection.open(self._settings)
            self._connection = connection
            self.online.set()
            logger.info("connected to the broker")
            await connection.keep_alive()
        finally:
            self._connection = None
            self.online.clear()
            transport.write(mqtt.DISCONNECT)
            transport.close()


class _Connection(asyncio.Protocol):
    """One TCP connection: hands messages on, notices silence, pauses when too many wait."""

    def __init__(self, inbox: asyncio.Queue[Sequence[Received]], generation: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._inbox = inbox
        self._generation = generation << 16
        self._decoder = mqtt.Decoder()
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._answers: asyncio.Queue[mqtt.Packet] = asyncio.Queue()
        self._waiting = 0
        self._paused = False
        self._heard = self._loop.time()
        self._packet_id = 0
        self._watched: set[int] = set()
        self._outgoing: list[bytes] = []

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derive from nothing

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or ConnectionError("the broker ended the connection"))

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            packets = self._decoder.feed(data)
        except mqtt.MqttError as error:
            self._fail(error)
            return
        messages = [
            Received(p.topic, p.payload, self._generation | p.packet_id, p.retained)
            for p in packets
            if isinstance(p, mqtt.Message)
        ]
        if len(messages) < len(packets):
            for packet in packets:
                self._note(packet)
        if messages:
            self._waiting += len(messages)
            self._inbox.put_nowait(messages)
            if self._waiting > MOST_WAITING and not self._paused:
                self._paused = True
                self._transport.pause_reading()

    def _note(self, packet: mqtt.Packet) -> None:
        if isinstance(packet, mqtt.Connected | mqtt.Subscribed):
            self._answers.put_nowait(packet)
        elif isinstance(packet, mqtt.Acknowledged) and packet.packet_id in self._watched:
            faultpoints.reach(faultpoints.AFTER_ACK)

    def _fail(self, error: BaseException) -> None:
        if not self._lost.done():
            self._lost.set_exception(error)
            self._lost.exception()  # somebody may have left before it was told

    # ------------------------------------------------------------------ what the receiver does

    async def open(self, settings: BrokerSettings) -> None:
        """CONNECT and SUBSCRIBE, each answered. Raises MqttError or OSError."""
        self._transport.write(
            mqtt.connect(settings.client_id, settings.username, settings.password, KEEPALIVE_S)
        )
        await self._answer()
        self._transport.write(mqtt.subscribe(self._next_id(), settings.topics, 1))
        await self._answer()

    async def _answer(self) -> None:
        answer = asyncio.create_task(self._answers.get())
        waited: set[asyncio.Future[Any]] = {answer, self._lost}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                await self._lost
        finally:
            answer.cancel()

    async def keep_alive(self) -> None:
        """Ping for as long as the broker answers. Raises OSError or MqttError at the end."""
        while True:
            await asyncio.wait({self._lost}, timeout=KEEPALIVE_S / 2)
            if self._lost.done():
                return await self._lost
            silent = self._loop.time() - self._heard
            if silent > 1.5 * KEEPALIVE_S and not self._paused:
                raise ConnectionError(f"the broker has been silent for {silent:.0f} s")
            self._transport.write(mqtt.PINGREQ)

    def publish(self, topic: str, payload: bytes, *, surely: bool) -> None:
        watched = not surely and faultpoints.ARMED == faultpoints.AFTER_ACK
        packet_id = self._next_id() if surely or watched else 0
        if watched:  # only the broker's answer tells that an ack is out
            self._watched.add(packet_id)
        self._send(mqtt.publish(topic, payload, packet_id))

    def done(self, packet_ids: Sequence[int]) -> None:
        self._send(mqtt.pubacks(number for number in packet_ids if number))
        self._waiting -= len(packet_ids)
        if self._paused and self._waiting < MOST_WAITING // 2:
            self._paused = False
            self._heard = self._loop.time()
            self._transport.resume_reading()

    def _send(self, data: bytes) -> None:
        """Goes out with all else of this turn of the loop: a TLS record each would cost more."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(data)

    def _flush(self) -> None:
        self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _next_id(self) -> int:
        self._packet_id = self._packet_id % PACKET_IDS + 1
        return self._packet_id
