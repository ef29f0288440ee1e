"""All SQL of agents' settings: what is desired, what was reported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import jsonb, literal, row, rows


@dataclass(frozen=True)
class Desired:
    """What an agent shall run on."""

    station_id: int
    tenant_id: TenantId
    version: int
    document: dict[str, Any]
    set_by: str
    set_at: datetime
    pushed_at: datetime


@dataclass(frozen=True)
class Reported:
    """What an agent said of it last; `since` it says so."""

    station_id: int
    version: int
    told: int
    state: str
    reason: str
    since: datetime
    outbox: UUID
    seq: int


@dataclass(frozen=True)
class Compared:
    """Both, of a station that has either."""

    station_id: int
    version: int | None
    document: dict[str, Any] | None
    set_by: str | None
    set_at: datetime | None
    running: int | None
    told: int | None
    state: str | None
    reason: str | None
    since: datetime | None


_DESIRED = "station_id, tenant_id, version, document, set_by, set_at, pushed_at"
_REPORTED = "station_id, version, told, state, reason, since, outbox, seq"
_BOTH: Final = (
    "configuration.desired_settings d FULL JOIN configuration.reported_settings r"
    " ON r.station_id = d.station_id"
)
_COMPARED: Final = (
    "coalesce(d.station_id, r.station_id) AS station_id, d.version, d.document, d.set_by, d.set_at,"
    " r.version AS running, r.told, r.state, r.reason, r.since"
)
_IN_SYNC: Final = "(d.version IS NULL OR d.version = r.version AND r.state = 'applied')"
COMPARED: Final = Sorts(
    "station",
    Column("coalesce(d.station_id, r.station_id)", int),
    station=Column("coalesce(d.station_id, r.station_id)", int),
    set_at=Column("d.set_at", datetime, nullable=True),
)


async def desired(cursor: Cursor, station_id: int, *, lock: bool = False) -> Desired | None:
    sql = f"SELECT {_DESIRED} FROM configuration.desired_settings WHERE station_id = %s"
    return await row(cursor, Desired, f"{sql} FOR UPDATE" if lock else sql, (station_id,))


async def desired_of(cursor: Cursor, stations: Collection[int]) -> list[Desired]:
    """Of these stations, locked in one order: each is pushed by one at a time."""
    return await rows(
        cursor,
        Desired,
        f"SELECT {_DESIRED} FROM configuration.desired_settings"
        " WHERE station_id = ANY(%s::int[]) ORDER BY station_id FOR UPDATE",
        (literal(stations),),
    )


async def reported(cursor: Cursor, stations: Collection[int]) -> dict[int, Reported]:
    found = await rows(
        cursor,
        Reported,
        f"SELECT {_REPORTED} FROM configuration.reported_settings"
        " WHERE station_id = ANY(%s::int[])",
        (literal(stations),),
    )
    return {one.station_id: one for one in found}


async def put_desired(cursor: Cursor, one: Desired) -> None:
    await cursor.execute(
        f"INSERT INTO configuration.desired_settings ({_DESIRED})"
        " VALUES (%s, %s, %s, %s::jsonb, %s, %s, %s) ON CONFLICT (station_id) DO UPDATE SET"
        " version = excluded.version, document = excluded.document, set_by = excluded.set_by,"
        " set_at = excluded.set_at, pushed_at = excluded.pushed_at",
        (
            one.station_id,
            one.tenant_id,
            one.version,
            jsonb(one.document),
            one.set_by,
            one.set_at,
            one.pushed_at,
        ),
    )


async def note_pushed(cursor: Cursor, stations: Collection[int], now: datetime) -> None:
    await cursor.execute(
        "UPDATE configuration.desired_settings SET pushed_at = %s"
        " WHERE station_id = ANY(%s::int[])",
        (now, literal(stations)),
    )


async def put_reported(cursor: Cursor, told: Sequence[tuple[TenantId, Reported]]) -> None:
    ordered = sorted(told, key=lambda one: one[1].station_id)
    await cursor.execute(
        f"INSERT INTO configuration.reported_settings (tenant_id, {_REPORTED})"
        " SELECT * FROM unnest(%s::int[], %s::int[], %s::bigint[], %s::bigint[], %s::text[],"
        " %s::text[], %s::timestamptz[], %s::uuid[], %s::bigint[])"
        " ON CONFLICT (station_id) DO UPDATE SET version = excluded.version,"
        " told = excluded.told, state = excluded.state, reason = excluded.reason,"
        " since = excluded.since, outbox = excluded.outbox, seq = excluded.seq",
        (
            literal(tenant for tenant, _ in ordered),
            literal(one.station_id for _, one in ordered),
            literal(one.version for _, one in ordered),
            literal(one.told for _, one in ordered),
            [one.state for _, one in ordered],
            [one.reason for _, one in ordered],
            [one.since for _, one in ordered],
            literal(one.outbox for _, one in ordered),
            literal(one.seq for _, one in ordered),
        ),
    )


async def compared(cursor: Cursor, station_id: int) -> Compared | None:
    return await row(
        cursor,
        Compared,
        f"SELECT {_COMPARED} FROM {_BOTH} WHERE coalesce(d.station_id, r.station_id) = %s",
        (station_id,),
    )


async def all_compared(
    cursor: Cursor, part: Part, stations: Collection[int] | None, *, in_sync: bool | None
) -> Cut[Compared]:
    where = Where().add(f"{_IN_SYNC} = {{}}", in_sync)
    if stations is not None:
        where = where.add(
            "coalesce(d.station_id, r.station_id) = ANY({}::int[])", literal(stations)
        )
    return await select_page(cursor, Compared, part, _COMPARED, _BOTH, where)
