"""link.publish_to_visible_p99_ms: from an agent's PUBLISH to its fact committed and acknowledged.

The real cloud with everything embedded; twenty stations, each on its own TLS connection, publish
transaction events at the times an open-loop schedule gives. The clock runs from the due time to
the arrival of the cloud's ack, which goes out after the commit: an upper bound of when a reader
sees it. The floor of the same run is one PUBLISH with PUBACK to the same broker.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
import statistics
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Self
from urllib.parse import urlsplit
from uuid import uuid4

import aiomqtt
from cloud_process import CloudProcess, Joined, cloud_process
from figure import Figure

from protocols.agent_link import (
    Ack,
    BillingBatch,
    ChargingState,
    ClockQuality,
    Down,
    Hello,
    Mark,
    Stamp,
    Stream,
    TransactionEvent,
    TransactionEventType,
    Trigger,
    Up,
    Welcome,
    decode_down,
    down_filter,
    encode,
    escape,
    up_topic,
)

STATIONS = 20
RATE = 100.0
SECONDS = 15.0
LINGER_MS = 20.0
"""The group committer's, in production configuration."""


async def measure(runs: int) -> list[Figure]:
    """The median of the runs' p99."""
    with cloud_process() as cloud:
        joined = [cloud.join(f"BENCH-{n:03}") for n in range(STATIONS)]
        results = [await _run(cloud, joined) for _ in range(runs)]
    middle = sorted(results, key=lambda r: r["p99_ms"])[len(results) // 2]
    return [
        Figure(
            name="link.publish_to_visible_p99_ms",
            value=middle["p99_ms"],
            unit="ms",
            at_most=LINGER_MS + 50,
            detail={
                "p50_ms": middle["p50_ms"],
                "puback_p50_ms": middle["puback_p50_ms"],
                "ratio_p50_to_puback": round(middle["p50_ms"] / middle["puback_p50_ms"], 1),
                "messages": int(middle["messages"]),
                "runs": runs,
            },
        )
    ]


async def _run(_cloud: CloudProcess, joined: list[Joined]) -> dict[str, float]:
    async with AsyncExitStack() as stack:
        stations = [await stack.enter_async_context(Station(one)) for one in joined]
        began = time.monotonic() + 0.5
        turns = itertools.cycle(stations)
        async with asyncio.TaskGroup() as group:
            for number in range(int(RATE * SECONDS)):
                group.create_task(next(turns).send_at(began + number / RATE))
        late = [ms for station in stations for ms in station.acked_ms]
        pubacks = [ms for station in stations for ms in station.puback_ms]
    late.sort()
    return {
        "p50_ms": round(statistics.median(late), 2),
        "p99_ms": round(late[int(len(late) * 0.99)], 2),
        "puback_p50_ms": round(statistics.median(pubacks), 2),
        "messages": float(len(late)),
    }


class Station:
    """The least of an agent: greets, publishes events of one transaction, awaits its acks."""

    def __init__(self, joined: Joined) -> None:
        self.acked_ms: list[float] = []
        self.puback_ms: list[float] = []
        self._joined = joined
        self._outbox = uuid4()
        self._boot = uuid4()
        self._transaction = uuid4()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[float]] = {}
        self._welcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        address = urlsplit(self._joined.mqtt_url)
        self._client = aiomqtt.Client(
            address.hostname or "",
            address.port or 8883,
            identifier=f"karvon-{escape(self._joined.station)}",
            username=self._joined.username,
            password=self._joined.password,
            tls_context=ssl.create_default_context(cadata=self._joined.ca_pem),
        )
        await self._client.__aenter__()
        await self._client.subscribe(down_filter(self._joined.station), qos=1)
        self._listening = asyncio.create_task(self._listen())
        await self._publish(Up.HELLO, encode(self._hello()))
        await asyncio.wait_for(self._welcome, 15)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        await self._client.__aexit__(None, None, None)

    def _stamp(self) -> Stamp:
        now = time.time_ns() // 1_000_000
        return Stamp(now, time.monotonic_ns() // 1_000_000, self._boot, ClockQuality.SYNCED)

    def _hello(self) -> Hello:
        marks = {stream: Mark(1, 1) for stream in Stream}
        return Hello(self._outbox, (self._boot,), self._stamp(), marks, "bench", (), (), 0)

    async def _publish(self, channel: Up, payload: bytes) -> None:
        await self._client.publish(up_topic(self._joined.station, channel), payload, qos=1)

    async def _listen(self) -> None:
        async for message in self._client.messages:
            heard = decode_down(Down(str(message.topic).rsplit("/", 1)[-1]), message.payload)
            if isinstance(heard, Welcome):
                self._welcome.set_result(None)
            elif isinstance(heard, Ack):
                now = time.monotonic()
                for number in _numbers(heard):
                    if (waiting := self._waiting.pop(number, None)) is not None:
                        waiting.set_result(now)

    async def send_at(self, due: float) -> None:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        acked = self._waiting[number]
        sent = time.monotonic()
        await self._publish(Up.BILLING, encode(self._batch(number)))
        self.puback_ms.append((time.monotonic() - sent) * 1000)
        self.acked_ms.append((await asyncio.wait_for(acked, 30) - due) * 1000)

    def _batch(self, number: int) -> BillingBatch:
        now = self._stamp()
        event = TransactionEvent(
            id=uuid4(),
            transaction=self._transaction,
            type=TransactionEventType.STARTED if number == 1 else TransactionEventType.UPDATED,
            seq_no=number - 1,
            at=now,
            trigger=Trigger.METER_VALUE_PERIODIC,
            evse=1,
            started=now,
            charging_state=ChargingState.CHARGING,
            energy_wh=number * 10,
            meter_wh=100_000 + number * 10,
        )
        return BillingBatch(outbox=self._outbox, seq=number, floor=1, sent=now, facts=(event,))


def _numbers(ack: Ack) -> Iterator[int]:
    for first, last in ack.ranges:
        yield from range(first, last + 1)
