"""The event log: what other parts of the house may react to, in the order it was committed.

Events are written in the transaction that commits what they tell of. A position is unique within
its partition and given under a lock of that partition, because identity values become visible out
of commit order and a reader behind a cursor would step over the late one. One station is always in
one partition: its events are read in order, at least once, and `NOTIFY` wakes the readers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.errors import Unavailable

PARTITIONS: Final = 16
CHANNEL: Final = "karvon_event"


@dataclass(frozen=True)
class Event:
    """Something that was committed: `kind` is `<noun>.<past participle>`, `subject` its id."""

    tenant_id: TenantId
    kind: str
    station_id: int | None
    subject: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Logged:
    """An event with its place in the log."""

    partition: int
    position: int
    recorded_at: datetime
    event: Event


def partition_of(event: Event) -> int:
    return (event.station_id or 0) % PARTITIONS


async def append(cursor: Cursor, events: Sequence[Event]) -> None:
    """Log the events in the caller's transaction (commit role) and wake the readers at commit."""
    if not events:
        return
    counts: dict[int, int] = {}
    for event in events:
        counts[partition_of(event)] = counts.get(partition_of(event), 0) + 1
    first: dict[int, int] = {}
    for partition in sorted(counts):  # one order for all, so that appenders never deadlock
        await cursor.execute(
            "UPDATE kernel.event_partition SET next = next + %s WHERE partition = %s"
            " RETURNING next - %s",
            (counts[partition], partition, counts[partition]),
        )
        row = await cursor.fetchone()
        if row is None:
            raise RuntimeError(f"event partition {partition} is missing: run the migrations")
        first[partition] = row[0]
    await cursor.executemany(
        "INSERT INTO kernel.event"
        " (partition, position, tenant_id, kind, station_id, subject, data)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        [_row(event, first) for event in events],
    )
    await cursor.execute("SELECT pg_notify(%s, '')", (CHANNEL,))


def _row(event: Event, first: dict[int, int]) -> tuple[Any, ...]:
    partition = partition_of(event)
    position = first[partition]
    first[partition] += 1
    return (
        partition,
        position,
        event.tenant_id,
        event.kind,
        event.station_id,
        event.subject,
        Jsonb(event.data),
    )


async def read(
    cursor: Cursor, after: Mapping[int, int], limit: int, tenant: TenantId | None = None
) -> list[Logged]:
    """Events behind the given position of each partition (missing: all), oldest first."""
    await cursor.execute(
        "SELECT e.partition, e.position, e.recorded_at, e.tenant_id, e.kind, e.station_id,"
        " e.subject, e.data FROM unnest(%s::int[], %s::bigint[]) AS c(partition, position)"
        " JOIN LATERAL (SELECT * FROM kernel.event x WHERE x.partition = c.partition"
        " AND x.position > c.position AND (%s::int IS NULL OR x.tenant_id = %s)"
        " ORDER BY x.position LIMIT %s) e ON true ORDER BY e.partition, e.position",
        (
            list(range(PARTITIONS)),
            [after.get(partition, -1) for partition in range(PARTITIONS)],
            tenant,
            tenant,
            limit,
        ),
    )
    found = [
        Logged(r[0], r[1], r[2], Event(TenantId(r[3]), r[4], r[5], r[6], r[7]))
        for r in await cursor.fetchall()
    ]
    return _oldest_first(found)[:limit]


def _oldest_first(found: Sequence[Logged]) -> list[Logged]:
    """Merge partitions by time, never against the order within one: clocks may step back."""
    latest: dict[int, datetime] = {}
    keyed = []
    for logged in found:
        floor = max(logged.recorded_at, latest.get(logged.partition, logged.recorded_at))
        latest[logged.partition] = floor
        keyed.append((floor, logged.partition, logged.position, logged))
    return [entry[-1] for entry in sorted(keyed, key=lambda entry: entry[:3])]


class EventLog:
    """Readers of the log with stored cursors."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def take(self, consumer: str, limit: int = 200) -> list[Logged]:
        """The consumer's next events; the same again until `done` was called for them."""
        async with self._database.commit_unit() as cursor:
            return await read(cursor, await self._cursor(cursor, consumer), limit)

    async def done(self, consumer: str, events: Sequence[Logged]) -> None:
        """Move the consumer's cursor behind these events."""
        last: dict[int, int] = {}
        for logged in events:
            last[logged.partition] = max(logged.position, last.get(logged.partition, -1))
        async with self._database.commit_unit() as cursor:
            await cursor.executemany(
                "INSERT INTO kernel.event_consumer (consumer, partition, position)"
                " VALUES (%s, %s, %s) ON CONFLICT (consumer, partition)"
                " DO UPDATE SET position = greatest(event_consumer.position, excluded.position)",
                [(consumer, partition, position) for partition, position in sorted(last.items())],
            )

    async def _cursor(self, cursor: Cursor, consumer: str) -> dict[int, int]:
        await cursor.execute(
            "SELECT partition, position FROM kernel.event_consumer WHERE consumer = %s", (consumer,)
        )
        return {row[0]: row[1] for row in await cursor.fetchall()}

    @asynccontextmanager
    async def woken(self) -> AsyncIterator[asyncio.Event]:
        """An asyncio.Event that is set whenever something was appended (and once at the start)."""
        wake = asyncio.Event()
        wake.set()
        task = asyncio.create_task(self._listen(wake))
        try:
            yield wake
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _listen(self, wake: asyncio.Event) -> None:
        while True:
            try:
                async with self._database.listener() as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    wake.set()
                    async for _ in connection.notifies():
                        wake.set()
            except (psycopg.Error, Unavailable):
                await asyncio.sleep(1)
