"""The same isolation on each kind of broker, seen through the cloud's own eyes."""

from __future__ import annotations

import queue
import secrets
import time

import paho.mqtt.client as mqtt
import pytest

from protocols.agent_link import Down, Up, down_topic, escape, up_topic

THIEF, VICTIM = "UZ/THIEF 1", "UZ/VICTIM 1"
REFUSED = 128


class Client:
    """One MQTT session that remembers what it receives."""

    def __init__(self, broker, name: str, secret: str) -> None:
        self.received: list[str] = []
        self._queue: queue.Queue = queue.Queue()
        self._mqtt = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"test-{name}")
        self._mqtt.username_pw_set(name, secret)
        self._mqtt.tls_set_context(broker.tls())
        self._mqtt.on_connect = lambda *args: self._queue.put(args[3])
        self._mqtt.on_subscribe = lambda *args: self._queue.put([c.value for c in args[3]])
        self._mqtt.on_message = lambda *args: self.received.append(args[2].topic)
        self._mqtt.connect(broker.host, broker.port)
        self._mqtt.loop_start()
        assert not self._queue.get(timeout=10).is_failure

    def subscribe(self, topic: str) -> int:
        self._mqtt.subscribe(topic, 1)
        return self._queue.get(timeout=10)[0]

    def publish(self, topic: str) -> None:
        self._mqtt.publish(topic, b"{}", 1)

    def close(self) -> None:
        self._mqtt.disconnect()
        self._mqtt.loop_stop()


@pytest.fixture
def clients(broker):
    """The cloud, the thief and the victim, connected."""
    opened = [Client(broker, broker.cloud_user, broker.cloud_secret)]
    for station in (THIEF, VICTIM):
        secret = secrets.token_urlsafe(32)
        broker.admit(escape(station), secret)
        opened.append(Client(broker, escape(station), secret))
    yield opened
    for client in opened:
        client.close()


def _until(seen: list[str], topic: str) -> None:
    end = time.monotonic() + 10
    while topic not in seen:
        assert time.monotonic() < end, f"{topic} never arrived: {seen}"
        time.sleep(0.02)


def test_nobody_reads_a_neighbours_topics(clients) -> None:
    cloud, thief, victim = clients
    for wish in (
        down_topic(VICTIM, Down.COMMAND),
        f"karvon/1/+/{escape(VICTIM)}/#",
        "karvon/1/+/+/down/command",
        "#",
        "$SYS/#",
    ):
        thief.subscribe(wish)
    assert victim.subscribe(down_topic(VICTIM, Down.COMMAND)) != REFUSED
    for topic in (down_topic(VICTIM, Down.COMMAND), up_topic(VICTIM, Up.BILLING)):
        cloud.publish(topic)
    _until(victim.received, down_topic(VICTIM, Down.COMMAND))
    thief.subscribe(down_topic(THIEF, Down.COMMAND))
    cloud.publish(down_topic(THIEF, Down.COMMAND))
    _until(thief.received, down_topic(THIEF, Down.COMMAND))
    assert [topic for topic in thief.received if escape(VICTIM) in topic] == []
    assert [topic for topic in thief.received if topic.startswith("$")] == []


def test_nobody_publishes_as_a_neighbour(broker, clients) -> None:
    cloud, thief, _ = clients
    assert cloud.subscribe("karvon/1/+/+/up/+") != REFUSED
    thief.publish(up_topic(VICTIM, Up.BILLING))
    thief.publish(down_topic(VICTIM, Down.COMMAND))
    _reconnect_where_the_broker_hung_up(thief)
    thief.publish(up_topic(THIEF, Up.BILLING))
    _until(cloud.received, up_topic(THIEF, Up.BILLING))
    assert up_topic(VICTIM, Up.BILLING) not in cloud.received


def _reconnect_where_the_broker_hung_up(client: Client) -> None:
    """paho reconnects by itself; what was queued before goes out first."""
    time.sleep(0.5)
    assert client._mqtt.is_connected() or client._queue.get(timeout=10) is not None
