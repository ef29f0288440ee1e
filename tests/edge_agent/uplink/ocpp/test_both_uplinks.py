"""MQTT to our cloud and OCPP to a backend at once, each with its own facts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from edge_agent.uplink.testing import ModelCloud
from protocols.agent_link import (
    Down,
    Presence,
    Up,
    decode_up,
    down_topic,
    parse_up_topic,
    up_filter,
)
from tests.edge_agent.uplink.ocpp.charging_site import site, until
from tests.edge_agent.uplink.ocpp.test_peers import TOKEN, Books, backend

STATION = "KRV-BOTH"


class Cloud:
    """A model of our cloud at a real broker."""

    def __init__(self) -> None:
        self.model = ModelCloud()
        self.channels: set[Up] = set()

    async def run(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            station, channel = parse_up_topic(str(message.topic))
            assert isinstance(message.payload, bytes)
            if station != STATION or isinstance(decode_up(channel, message.payload), Presence):
                continue
            self.channels.add(channel)
            answer = self.model.receive(channel, message.payload)
            if answer is not None:
                down: Down = answer[0]
                await client.publish(down_topic(station, down), answer[1], qos=1)


@asynccontextmanager
async def listening(broker: Any) -> AsyncIterator[Cloud]:
    cloud = Cloud()
    async with aiomqtt.Client(
        broker.host,
        broker.port,
        username=broker.cloud_user,
        password=broker.cloud_secret,
        tls_context=broker.tls(),
    ) as client:
        await client.subscribe(up_filter(), qos=1)
        running = asyncio.create_task(cloud.run(client))
        try:
            yield cloud
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_transactions_go_to_the_backend_and_values_to_the_cloud(
    nats_broker: Any, tmp_path: Path
) -> None:
    nats_broker.admit(STATION, "secret")
    credentials = {"password": "secret", "mqtt_url": f"mqtts://localhost:{nats_broker.port}"}
    (tmp_path / "credentials.json").write_text(json.dumps(credentials))
    (tmp_path / "ca.pem").write_bytes(nats_broker.ca_file.read_bytes())
    books = Books()
    async with (
        listening(nats_broker) as cloud,
        backend("1.6", books) as port,
        site(tmp_path, STATION) as here,
    ):
        mqtt = (
            '[uplink]\ncarries = ["status", "telemetry"]\ntelemetry_every_s = 0.5\n'
            'ca = "ca.pem"\nlongest_retry_s = 1\n'
        )
        here.configure(f"ws://127.0.0.1:{port}", "1.6", mqtt=mqtt, carries=["transactions"])
        await here.start()
        await here.connected()
        await here.session(TOKEN)
        await until(lambda: len(books.energy) == 1, "the transaction at the backend")
        await until(lambda: len(cloud.model.samples) > 3, "samples in the cloud")
        await until(lambda: 1 in cloud.model.state, "a status in the cloud")
        await here.delivered()
        assert sum(books.energy.values()) == pytest.approx(here.true_wh, abs=1)
        assert books.statuses == []
        assert cloud.model.order == []
        assert {Up.HELLO, Up.STATE, Up.TELEMETRY} <= cloud.channels
