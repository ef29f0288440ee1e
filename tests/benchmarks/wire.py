"""wire.vs_json_per_sample: bytes on the wire per measured value, against one JSON message a sample.

Both go through the embedded broker with TLS 1.3 and QoS 1, past a proxy that counts every byte in
both directions after the handshake: TLS records, MQTT packets, PUBACKs, and for ours the cloud's
application acks too. The baseline is what an ordinary integration sends: one JSON object per EVSE
and second with all nine values. Ours is the agent's telemetry batch of one minute.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import aiomqtt
from counting_proxy import CountingProxy
from figure import Figure
from signal_model import VALUES_PER_SAMPLE, samples

from cloud.kernel.embedded import BrokerUser, EmbeddedBroker, hash_secret
from protocols.agent_link import (
    COLUMNS,
    Ack,
    Down,
    Sample,
    Stream,
    TelemetryBatch,
    Up,
    down_filter,
    down_topic,
    encode,
    up_topic,
)
from protocols.series import to_series

STATION = "UZ-TAS-0001"
PASSWORD = "only-on-loopback"  # a broker that lives for this run
OUTBOX = UUID("6f1d2c3b-0000-7000-8000-000000000002")
EVSES = 4
SECONDS = 600
BATCH_S = 60


async def measure(runs: int) -> list[Figure]:
    """Bytes are exact, so one run serves; `runs` does not matter here."""
    del runs
    with tempfile.TemporaryDirectory() as folder:
        user = BrokerUser(STATION, hash_secret(PASSWORD), ("karvon/#", "json/#"), ("karvon/#",))
        async with EmbeddedBroker(Path(folder) / "broker", users=[user]) as broker:
            rows = list(samples(SECONDS, EVSES))
            values = SECONDS * EVSES * VALUES_PER_SAMPLE
            ours = await _bytes(broker, lambda c: _batches(c, rows))
            baseline = await _bytes(broker, lambda c: _json_each(c, rows))
    return [
        Figure(
            name="wire.vs_json_per_sample",
            value=baseline / ours,
            unit="ratio",
            at_least=10,
            detail={
                "bytes_per_value": round(ours / values, 3),
                "baseline_bytes_per_value": round(baseline / values, 3),
                "values": values,
            },
        )
    ]


async def _bytes(broker: EmbeddedBroker, send) -> int:
    proxy = CountingProxy(broker.host, broker.port)
    async with proxy, _client(broker, proxy) as client:
        await client.subscribe(down_filter(STATION), qos=1)
        proxy.reset()
        await send(client)
        return proxy.total


@asynccontextmanager
async def _client(broker: EmbeddedBroker, proxy: CountingProxy) -> AsyncIterator[aiomqtt.Client]:
    context = ssl.create_default_context(cafile=str(broker.ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    async with aiomqtt.Client(
        "localhost",
        proxy.port,
        identifier="bench",
        username=STATION,
        password=PASSWORD,
        tls_context=context,
    ) as client:
        yield client


async def _json_each(client: aiomqtt.Client, rows: list[list[Sample]]) -> None:
    for second in rows:
        for sample in second:
            when = datetime.fromtimestamp(sample.at.wall_ms / 1000, UTC).isoformat()
            body = {"station": STATION, "evse": sample.evse, "timestamp": when}
            body.update({name: getattr(sample, name) for name in COLUMNS})
            topic = f"json/{STATION}/{sample.evse}/sample"
            await client.publish(topic, json.dumps(body, separators=(",", ":")), qos=1)


async def _batches(client: aiomqtt.Client, rows: list[list[Sample]]) -> None:
    for seq, start in enumerate(range(0, len(rows), BATCH_S), start=1):
        minute = [sample for second in rows[start : start + BATCH_S] for sample in second]
        batch = TelemetryBatch(
            outbox=OUTBOX, seq=seq, floor=seq, sent=minute[-1].at, series=to_series(minute)
        )
        await client.publish(up_topic(STATION, Up.TELEMETRY), encode(batch), qos=1)
        ack = Ack(OUTBOX, OUTBOX, Stream.TELEMETRY, ((seq, seq),))
        await client.publish(down_topic(STATION, Down.ACK), encode(ack), qos=1)
        async with asyncio.timeout(5):
            await anext(aiter(client.messages))
