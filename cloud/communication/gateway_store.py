"""The gateways' SQL: connections, who is alive, frames, deviations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final, LiteralString, NamedTuple
from uuid import UUID

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import rows

LIVE_CHANNEL: Final = "karvon_live"
"""Told `<station>:<epoch>` when a station has connected anew: older sockets of it are closed."""

# --------------------------------------------------------------------------- connections


class Arrived(NamedTuple):
    """A connection that took over its station."""

    station_id: int
    tenant_id: TenantId
    epoch: int
    gateway: UUID
    link: str
    security_profile: int
    address: str
    at: datetime


async def arrived(
    cursor: Cursor, connections: Sequence[Arrived]
) -> dict[int, tuple[str | None, datetime]]:
    """Enter the newest connections.

    Returns whence those stations that were thought to be online were connected, and when they were
    heard of last.
    """
    columns = [list(column) for column in zip(*sorted(connections), strict=True)]
    await cursor.execute(
        "WITH given AS (SELECT * FROM unnest(%s::int[], %s::int[], %s::bigint[], %s::uuid[],"
        "   %s::text[], %s::int[], %s::text[], %s::timestamptz[])"
        "   AS g (station_id, tenant_id, epoch, gateway, link, profile, address, at)),"
        " before AS (SELECT station_id, address, last_seen FROM communication.connection"
        "   WHERE station_id IN (SELECT station_id FROM given) AND online),"
        " told AS (SELECT pg_notify(%s, station_id || ':' || epoch) FROM given"
        "   WHERE station_id IN (SELECT station_id FROM before)),"
        " put AS (INSERT INTO communication.connection AS c (station_id, tenant_id, epoch, online,"
        "   boot, agent_version, connected_at, last_seen, link, security_profile, address)"
        "   SELECT station_id, tenant_id, epoch, true, gateway, '', at, at, link, profile, address"
        "   FROM given ON CONFLICT (station_id) DO UPDATE SET epoch = excluded.epoch,"
        "   online = true, boot = excluded.boot, tenant_id = excluded.tenant_id,"
        "   agent_version = '', connected_at = excluded.connected_at,"
        "   last_seen = excluded.last_seen, link = excluded.link,"
        "   security_profile = excluded.security_profile, address = excluded.address,"
        "   closed_at = NULL, closed_because = NULL)"
        " SELECT station_id, address, last_seen FROM before LEFT JOIN told ON true",
        [*columns, LIVE_CHANNEL],
    )
    return {station: (address, seen) for station, address, seen in await cursor.fetchall()}


async def departed(
    cursor: Cursor, gone: Sequence[tuple[int, int, str]], at: datetime
) -> list[tuple[int, TenantId]]:
    """Those (station, epoch, reason) are offline, unless they are back; returns whom it changed."""
    stations, epochs, reasons = zip(*gone, strict=True)
    await cursor.execute(
        "UPDATE communication.connection c SET online = false, closed_at = %s,"
        " closed_because = k.reason"
        " FROM unnest(%s::int[], %s::bigint[], %s::text[]) AS k (station_id, epoch, reason)"
        " WHERE c.station_id = k.station_id AND c.epoch = k.epoch AND c.link <> 'agent'"
        " AND c.online RETURNING c.station_id, c.tenant_id",
        (at, list(stations), list(epochs), list(reasons)),
    )
    return [(row[0], TenantId(row[1])) for row in await cursor.fetchall()]


async def heard(cursor: Cursor, times: Sequence[tuple[int, int, datetime]]) -> None:
    """When stations were heard of last: (station, epoch, time)."""
    stations, epochs, ats = zip(*sorted(times), strict=True)
    await cursor.execute(
        "UPDATE communication.connection c SET last_seen = k.at"
        " FROM unnest(%s::int[], %s::bigint[], %s::timestamptz[]) AS k (station_id, epoch, at)"
        " WHERE c.station_id = k.station_id AND c.epoch = k.epoch AND c.last_seen < k.at",
        (list(stations), list(epochs), list(ats)),
    )


# --------------------------------------------------------------------------- gateways


async def beat(cursor: Cursor, gateway: UUID, started_at: datetime, now: datetime) -> None:
    """Tell that the gateway is alive."""
    await cursor.execute(
        "INSERT INTO communication.gateway (id, started_at, seen_at) VALUES (%s, %s, %s)"
        " ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at",
        (gateway, started_at, now),
    )


async def bury_gateways(
    cursor: Cursor, silent_since: datetime, now: datetime
) -> list[tuple[int, TenantId]]:
    """Gateways that died: their stations are offline until they come back; returns these."""
    await cursor.execute(
        "WITH dead AS (DELETE FROM communication.gateway WHERE seen_at < %s RETURNING id),"
        " freed AS (UPDATE kernel.live SET gateway = NULL WHERE gateway IN (SELECT id FROM dead)"
        "   OR gateway IS NOT NULL AND NOT EXISTS (SELECT FROM communication.gateway g"
        "     WHERE g.id = gateway) RETURNING station_id, epoch)"
        " UPDATE communication.connection c SET online = false, closed_at = %s,"
        " closed_because = 'the gateway ended' FROM freed f"
        " WHERE c.station_id = f.station_id AND c.epoch = f.epoch AND c.link <> 'agent'"
        " AND c.online RETURNING c.station_id, c.tenant_id",
        (silent_since, now),
    )
    return [(row[0], TenantId(row[1])) for row in await cursor.fetchall()]


async def forget_gateway(cursor: Cursor, gateway: UUID) -> None:
    await cursor.execute("DELETE FROM communication.gateway WHERE id = %s", (gateway,))


# --------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class ConnectionRow:
    station_id: int
    link: str
    online: bool
    connected_at: datetime
    last_seen: datetime
    security_profile: int | None
    address: str | None
    closed_at: datetime | None
    closed_because: str | None


_CONNECTION: Final = (
    "station_id, link, online, connected_at, last_seen, security_profile, address, closed_at,"
    " closed_because"
)
CONNECTIONS: Final = Sorts(
    "-connected_at",
    Column("station_id", int),
    connected_at=Column("connected_at", datetime),
    last_seen=Column("last_seen", datetime),
)


async def connections(
    cursor: Cursor,
    part: Part,
    *,
    online: bool | None,
    link: str | None,
    station_id: int | None,
) -> Cut[ConnectionRow]:
    where = (
        Where().add("online = {}", online).add("link = {}", link).add("station_id = {}", station_id)
    )
    source: LiteralString = "communication.connection"
    return await select_page(cursor, ConnectionRow, part, _CONNECTION, source, where)


# --------------------------------------------------------------------------- frames


async def ensure_frame_days(cursor: Cursor, days: Sequence[date]) -> None:
    await cursor.execute("SELECT communication.ensure_frame_days(%s::date[])", (list(days),))


async def forget_frames(cursor: Cursor, before: date) -> int:
    """Drop whole days; returns how many."""
    await cursor.execute("SELECT communication.forget_frames(%s)", (before,))
    found = await cursor.fetchone()
    return int(found[0]) if found else 0


async def copy_frames(cursor: Cursor, data: bytes) -> None:
    async with cursor.copy(
        "COPY communication.frame (at, tenant_id, station_id, direction, frame, action)"
        " FROM STDIN (FORMAT BINARY)"
    ) as copy:
        await copy.write(data)


@dataclass(frozen=True)
class FrameRow:
    at: datetime
    station_id: int
    direction: int
    frame: bytes
    action: str | None
    place: str


FRAMES: Final = Sorts(
    "-at", Column("tableoid::bigint || ':' || ctid::text", str), at=Column("at", datetime)
)
_FRAME: Final = (
    "at, station_id, direction, frame, action, tableoid::bigint || ':' || ctid::text AS place"
)


@dataclass(frozen=True)
class FrameFilters:
    """What a list of frames is narrowed by; None does not narrow."""

    station_id: int
    direction: int | None = None
    action: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None


async def frames(cursor: Cursor, part: Part, filters: FrameFilters) -> Cut[FrameRow]:
    where = (
        Where()
        .add("station_id = {}", filters.station_id)
        .add("direction = {}", filters.direction)
        .add("lower(action) = lower({})", filters.action)
        .add("at >= {}", filters.since)
        .add("at < {}", filters.until)
        .add("position(convert_to({}, 'UTF8') in frame) > 0", filters.text)
    )
    return await select_page(cursor, FrameRow, part, _FRAME, "communication.frame", where)


# --------------------------------------------------------------------------- deviations


class Deviated(NamedTuple):
    """How often a station broke the standard in one way, since the last time."""

    station_id: int
    name: str
    tenant_id: TenantId
    times: int
    example: str


async def note_deviations(cursor: Cursor, told: Sequence[Deviated], now: datetime) -> None:
    columns = [list(column) for column in zip(*sorted(told), strict=True)]
    await cursor.execute(
        "INSERT INTO communication.deviation AS d (station_id, name, tenant_id, count, first_at,"
        " last_at, example) SELECT station_id, name, tenant_id, count, %(now)s, %(now)s, example"
        " FROM unnest(%(stations)s::int[], %(names)s::text[], %(tenants)s::int[],"
        " %(counts)s::bigint[], %(examples)s::text[])"
        " AS k (station_id, name, tenant_id, count, example)"
        " ON CONFLICT (station_id, name) DO UPDATE SET count = d.count + excluded.count,"
        " last_at = excluded.last_at, example = excluded.example",
        {
            "now": now,
            **dict(
                zip(("stations", "names", "tenants", "counts", "examples"), columns, strict=True)
            ),
        },
    )


@dataclass(frozen=True)
class DeviationRow:
    station_id: int
    name: str
    count: int
    first_at: datetime
    last_at: datetime
    example: str


async def deviations(cursor: Cursor, stations: Collection[int]) -> list[DeviationRow]:
    return await rows(
        cursor,
        DeviationRow,
        "SELECT station_id, name, count, first_at, last_at, example FROM communication.deviation"
        " WHERE station_id = ANY(%s) ORDER BY station_id, name",
        (list(stations),),
    )


# --------------------------------------------------------------------------- as a whole


async def hand_over(cursor: Cursor, station_id: int, tenant: TenantId) -> None:
    """What describes the station's link to the tenant; frames stay, since they name people."""
    await cursor.execute(
        "UPDATE communication.deviation SET tenant_id = %s WHERE station_id = %s",
        (tenant, station_id),
    )


async def forget_station(cursor: Cursor, station_id: int) -> None:
    await cursor.execute("DELETE FROM communication.deviation WHERE station_id = %s", (station_id,))
    await cursor.execute("DELETE FROM kernel.live WHERE station_id = %s", (station_id,))
