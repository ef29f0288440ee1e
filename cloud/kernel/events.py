"""The event log: what other parts of the house may react to, in the order it was committed.

Events are written in the transaction that commits what they tell of. A position is unique within
its partition and given under a lock of that partition, because identity values become visible out
of commit order and a reader behind a cursor would step over the late one. One station is always in
one partition: its events are read in order, at least once, and `NOTIFY` wakes the readers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple

import msgspec
import psycopg

from cloud.kernel.database import Cursor, Database, TenantId
from cloud.kernel.errors import Unavailable
from cloud.kernel.paging import Where

PARTITIONS: Final = 16
CHANNEL: Final = "karvon_event"
LAST: Final = 2**62


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
    told = [
        {
            "partition": partition_of(event),
            "tenant_id": event.tenant_id,
            "kind": event.kind,
            "station_id": event.station_id,
            "subject": event.subject,
            "data": event.data,
        }
        for event in events
    ]
    told_text = msgspec.json.encode(told).decode()
    if cursor.holds_back:
        await cursor.at_last(_APPEND_OR_FAIL, (told_text, CHANNEL, len(events)))
        return
    await cursor.execute(_APPEND, (told_text, CHANNEL))
    found = await cursor.fetchone()
    if found is None or found[0] != len(events):
        raise RuntimeError("event partitions are missing: run the migrations")


_APPENDED: Final = """
WITH told AS MATERIALIZED (
    SELECT * FROM ROWS FROM (jsonb_to_recordset(%s::jsonb) AS (
        partition int, tenant_id int, kind text, station_id int, subject text, data jsonb
    )) WITH ORDINALITY AS t (partition, tenant_id, kind, station_id, subject, data, n)
), held AS (
    -- locked in one order by everybody, so that none deadlocks
    SELECT partition FROM kernel.event_partition
    WHERE partition IN (SELECT partition FROM told) ORDER BY partition FOR UPDATE
), taken AS (
    UPDATE kernel.event_partition p SET next = p.next + k.count
    FROM (SELECT partition, count(*) FROM told GROUP BY partition) k JOIN held USING (partition)
    WHERE p.partition = k.partition RETURNING p.partition, p.next - k.count AS first
), put AS (
    INSERT INTO kernel.event (partition, position, tenant_id, kind, station_id, subject, data)
    SELECT partition, first - 1 + row_number() OVER (PARTITION BY partition ORDER BY n),
        tenant_id, kind, station_id, subject, data
    FROM told JOIN taken USING (partition) RETURNING partition
)
"""
_APPEND: Final = f"{_APPENDED} SELECT (SELECT count(*) FROM put), pg_notify(%s, '')"  # noqa: S608  # ours
_APPEND_OR_FAIL: Final = (
    f"{_APPENDED} SELECT pg_notify(%s, ''), 1 / ((SELECT count(*) FROM put) = %s)::int"  # noqa: S608  # ours
)


@dataclass(frozen=True)
class Narrow:
    """Which events are meant; None does not narrow."""

    tenant: TenantId | None = None
    kind: str | None = None
    """What its kind begins with."""
    station_id: int | None = None
    since: datetime | None = None

    def takes(self, logged: Logged) -> bool:
        """The same in memory."""
        event = logged.event
        return (
            self.tenant in {None, event.tenant_id}
            and event.kind.startswith(self.kind or "")
            and self.station_id in {None, event.station_id}
            and (self.since is None or logged.recorded_at >= self.since)
        )

    def where(self) -> Where:
        return (
            Where()
            .add("x.tenant_id = {}", self.tenant)
            .add("starts_with(x.kind, {})", self.kind)
            .add("x.station_id = {}", self.station_id)
            .add("x.recorded_at >= {}", self.since)
        )

    def partitions(self) -> Sequence[int]:
        return range(PARTITIONS) if self.station_id is None else [self.station_id % PARTITIONS]


ALL: Final = Narrow()
_COLUMNS: Final = (
    "e.partition, e.position, e.recorded_at, e.tenant_id, e.kind, e.station_id, e.subject, e.data"
)


async def read(
    cursor: Cursor,
    after: Mapping[int, int],
    limit: int,
    narrow: Narrow = ALL,
    upto: Mapping[int, int] | None = None,
) -> list[Logged]:
    """Events behind the given position of each partition (missing: all), oldest first.

    `upto` ends each partition there, that position included.
    """
    bounds = [
        (part, after.get(part, -1), LAST if upto is None else upto.get(part, -1))
        for part in narrow.partitions()
    ]
    found = await _places(cursor, bounds, limit, narrow, "x.position")
    return await _logged(cursor, _oldest_first(found)[:limit])


async def read_back(
    cursor: Cursor, before: Mapping[int, int], limit: int, narrow: Narrow = ALL
) -> list[Logged]:
    """Events before the given position of each partition (missing: all), newest first."""
    floor = {} if narrow.since is None else await since(cursor, narrow.since)
    bounds = [
        (part, floor.get(part, -1), before.get(part, LAST + 1) - 1) for part in narrow.partitions()
    ]
    found = await _places(cursor, bounds, limit, narrow, "x.position DESC")
    return await _logged(cursor, _oldest_first(found)[-limit:][::-1])


class _Place(NamedTuple):
    """Where an event stands: all that merging needs. Data is read of those that are chosen only."""

    recorded_at: datetime
    partition: int
    position: int


async def _places(
    cursor: Cursor,
    bounds: Sequence[tuple[int, int, int]],
    limit: int,
    narrow: Narrow,
    order: LiteralString,
) -> list[_Place]:
    """At most `limit` events of each (partition, behind, up to)."""
    where = narrow.where()
    sql: LiteralString = (
        "SELECT e.recorded_at, e.partition, e.position"  # noqa: S608  # of literals only
        " FROM unnest(%(parts)s::int[], %(after)s::bigint[], %(upto)s::bigint[])"
        " AS c (partition, after, upto) JOIN LATERAL ("
        " SELECT x.recorded_at, x.partition, x.position FROM kernel.event x"
        " WHERE x.partition = c.partition AND x.position > c.after AND x.position <= c.upto"
        f" AND {where.sql} ORDER BY {order} LIMIT %(limit)s) e ON true"
        " ORDER BY e.partition, e.position"
    )
    parts, after, upto = (list(column) for column in zip(*bounds, strict=True))
    await cursor.execute(
        sql, {**where.params, "parts": parts, "after": after, "upto": upto, "limit": limit}
    )
    return [_Place(*found) for found in await cursor.fetchall()]


async def _logged(cursor: Cursor, places: Sequence[_Place]) -> list[Logged]:
    """The events that stand there, in that order."""
    if not places:
        return []
    await cursor.execute(
        f"SELECT {_COLUMNS} FROM kernel.event e"  # noqa: S608  # of literals only
        " JOIN unnest(%s::int[], %s::bigint[]) AS k (partition, position)"
        " USING (partition, position)",
        ([one.partition for one in places], [one.position for one in places]),
    )
    found = {
        (r[0], r[1]): Logged(r[0], r[1], r[2], Event(TenantId(r[3]), r[4], r[5], r[6], r[7]))
        for r in await cursor.fetchall()
    }
    return [found[one.partition, one.position] for one in places]


async def heads(cursor: Cursor) -> dict[int, int]:
    """The last position of each partition (-1: none); all up to them can be read."""
    await cursor.execute("SELECT partition, next - 1 FROM kernel.event_partition")
    return dict(await cursor.fetchall())


async def since(cursor: Cursor, moment: datetime) -> dict[int, int]:
    """Of each partition the last position before the moment, by halving: times have no index."""
    low = dict.fromkeys(range(PARTITIONS), -1)
    high = {part: head + 1 for part, head in (await heads(cursor)).items()}
    while any(high[part] - low[part] > 1 for part in low):
        middle = {part: (low[part] + high[part]) // 2 for part in low if high[part] - low[part] > 1}
        for part, earlier in (await _earlier(cursor, middle, high, moment)).items():
            (low if earlier else high)[part] = middle[part]
    return low


async def _earlier(
    cursor: Cursor, middle: dict[int, int], high: dict[int, int], moment: datetime
) -> dict[int, bool]:
    """Whether the first event that is seen from `middle` on (below `high`) is before the moment."""
    await cursor.execute(
        "SELECT c.partition, coalesce(e.recorded_at < %s, false)"
        " FROM unnest(%s::int[], %s::bigint[], %s::bigint[]) AS c (partition, middle, high)"
        " LEFT JOIN LATERAL (SELECT x.recorded_at FROM kernel.event x"
        " WHERE x.partition = c.partition AND x.position >= c.middle AND x.position < c.high"
        " ORDER BY x.position LIMIT 1) e ON true",
        (moment, list(middle), list(middle.values()), [high[part] for part in middle]),
    )
    return dict(await cursor.fetchall())


def _oldest_first(found: Sequence[_Place]) -> list[_Place]:
    """Merge partitions by time, never against the order within one: clocks may step back."""
    latest: dict[int, datetime] = {}
    keyed = []
    for place in found:
        floor = max(place.recorded_at, latest.get(place.partition, place.recorded_at))
        latest[place.partition] = floor
        keyed.append((floor, place.partition, place.position, place))
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
            # its own end is no news; that of who waits here, coming just now, is one
            await asyncio.gather(task, return_exceptions=True)

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
