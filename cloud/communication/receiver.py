"""The MQTT connection of the cloud: paho with manual acknowledgement, its own network thread.

A message is acknowledged to the broker when the house is done with it, so that the broker's
in-flight window is the back-pressure: where the database stands still, the broker stops sending.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from cloud.kernel import faultpoints
from protocols.agent_link import Down, up_filter

logger = logging.getLogger(__name__)
KEEPALIVE_S: Final = 20
QOS: Final = 1
MOST_WAITING: Final = 8192
"""Beyond the broker's window only a flood at QoS 0 or a redelivering broker comes here."""


@dataclass(frozen=True)
class BrokerSettings:
    """`mqtts://host:port` (TLS 1.3 or newer against `ca_pem`) or `mqtt://host:port`."""

    url: str
    username: str
    password: str
    ca_pem: str | None = None
    client_id: str = "karvon-cloud"


@dataclass(frozen=True)
class Received:
    """A message as it came; `token` acknowledges it."""

    topic: str
    payload: bytes
    token: int
    retained: bool = False
    """From the broker's memory, so it may be as old as it likes."""


class Receiver:
    """Subscribes to what agents send; publishes to them. Use as an async context manager.

    `inbox` never holds more than the broker's in-flight window. Everything but the paho callbacks
    runs in the event loop's thread.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        self.inbox: asyncio.Queue[Received] = asyncio.Queue()
        self.online = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection = 0
        self._watched: set[int] = set()
        self.dropped = 0
        self._client = self._make()

    def _make(self) -> paho.Client:
        settings = self._settings
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.client_id,
            clean_session=True,
            manual_ack=True,
            reconnect_on_failure=True,
        )
        client.username_pw_set(settings.username, settings.password)
        if urlsplit(settings.url).scheme == "mqtts":
            context = ssl.create_default_context(cadata=settings.ca_pem)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            client.tls_set_context(context)
        client.reconnect_delay_set(1, 15)
        client.max_inflight_messages_set(1000)
        client.max_queued_messages_set(20_000)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        if faultpoints.ARMED == faultpoints.AFTER_ACK:
            client.on_publish = self._on_publish
        return client

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        address = urlsplit(self._settings.url)
        port = address.port or (8883 if address.scheme == "mqtts" else 1883)
        self._client.connect_async(address.hostname or "", port, KEEPALIVE_S)
        self._client.loop_start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.disconnect()
        await asyncio.to_thread(self._client.loop_stop)

    def publish(self, topic: str, payload: bytes) -> None:
        """Send; what a lost connection swallows is sent again by rule.

        (Acks are repeated for what the agent sends again, commands until they are answered.)
        """
        info = self._client.publish(topic, payload, QOS)
        if faultpoints.ARMED == faultpoints.AFTER_ACK and topic.endswith(f"/{Down.ACK}"):
            self._watched.add(info.mid)

    def done(self, message: Received) -> None:
        """Acknowledge to the broker, unless the message came over an earlier connection."""
        connection, mid = message.token >> 16, message.token & 0xFFFF
        if connection == self._connection:
            self._client.ack(mid, QOS)

    # ------------------------------------------------------------------ paho's thread

    def _call(self, function: Any, *args: Any) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)

    def _on_connect(
        self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _p: Any
    ) -> None:
        if reason.is_failure:
            logger.error("the broker refuses us: %s", reason)
            return
        self._connection += 1
        client.subscribe(up_filter(), QOS)
        logger.info("connected to the broker")
        self._call(self.online.set)

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _p: Any
    ) -> None:
        logger.warning("lost the broker: %s", reason)
        self._call(self.online.clear)

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        if self.inbox.qsize() >= MOST_WAITING:
            self.dropped += 1  # not acknowledged: the agent, or the broker, sends it again
            return
        token = self._connection << 16 | message.mid if message.qos else 0
        received = Received(message.topic, bytes(message.payload), token, message.retain)
        self._call(self.inbox.put_nowait, received)

    def _on_publish(
        self, _client: paho.Client, _data: Any, mid: int, _reason: Any, _p: Any
    ) -> None:
        """The broker has it: only now an ack is out, for publish() merely hands it over."""
        if mid in self._watched:
            faultpoints.reach(faultpoints.AFTER_ACK)
