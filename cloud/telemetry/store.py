"""All SQL of telemetry."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

import msgspec

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.rows import rows
from cloud.telemetry.columns import FIELDS, Extra
from protocols.agent_link import COLUMNS, Series, SeriesGap

_DECODER = msgspec.json.Decoder(Series)
_EXTRA_TYPES = ("timestamptz", "int4", "int2", "text", "int8")


@dataclass(frozen=True)
class Bucket:
    """What was measured in one stretch of time of one EVSE; means are weighted by time."""

    evse: int
    at: datetime
    samples: int
    energy_wh: int | None
    power_w: int | None
    power_max_w: int | None
    current_l1_ma: int | None
    current_l2_ma: int | None
    current_l3_ma: int | None
    voltage_l1_mv: int | None
    voltage_l2_mv: int | None
    voltage_l3_mv: int | None
    offered_ma: int | None


@dataclass(frozen=True)
class Gap:
    evse: int
    first_at: datetime
    last_at: datetime
    samples: int
    cause: str


@dataclass(frozen=True)
class Undated:
    tenant_id: TenantId
    received_at: datetime
    series: Series


# --------------------------------------------------------------------------- the commit path


async def ensure_days(cursor: Cursor, days: Collection[date]) -> set[date]:
    """Have partitions for these days; returns those that had theirs before."""
    await cursor.execute("SELECT telemetry.ensure_days(%s::date[])", (sorted(days),))
    found = await cursor.fetchone()
    return set(found[0]) if found else set()


async def copy_samples(cursor: Cursor, data: bytes) -> None:
    """Append rows in binary COPY format, as `columns.pack` makes them."""
    names = ", ".join(FIELDS)
    async with cursor.copy(f"COPY telemetry.sample ({names}) FROM STDIN (FORMAT BINARY)") as copy:
        await copy.write(data)


async def copy_extras(cursor: Cursor, extras: Iterable[Extra]) -> None:
    async with cursor.copy(
        "COPY telemetry.extra (time, station_id, evse, name, value) FROM STDIN (FORMAT BINARY)"
    ) as copy:
        copy.set_types(_EXTRA_TYPES)
        for extra in extras:
            await copy.write_row(extra)


async def put_gap(
    cursor: Cursor,
    tenant: TenantId,
    station_id: int,
    gap: SeriesGap,
    first_at: datetime,
    last_at: datetime,
) -> None:
    await cursor.execute(
        "INSERT INTO telemetry.gap (tenant_id, station_id, id, evse, first_at, last_at, samples,"
        " cause) VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (tenant, station_id, gap.id, gap.evse, first_at, last_at, gap.samples, gap.cause),
    )


async def hand_over(cursor: Cursor, station_id: int, tenant: TenantId) -> None:
    """Gaps and undated series to the tenant, as the samples' view follows the station."""
    await cursor.execute(
        "UPDATE telemetry.gap SET tenant_id = %s WHERE station_id = %s", (tenant, station_id)
    )
    await cursor.execute(
        "UPDATE telemetry.undated SET tenant_id = %s WHERE station_id = %s", (tenant, station_id)
    )


async def park(
    cursor: Cursor, tenant: TenantId, station_id: int, series: Series, received_at: datetime
) -> None:
    """Keep a series until its boot's clock is known."""
    await cursor.execute(
        "INSERT INTO telemetry.undated (tenant_id, station_id, boot, received_at, series)"
        " VALUES (%s, %s, %s, %s, %s)",
        (tenant, station_id, series.boot, received_at, msgspec.json.encode(series).decode()),
    )


async def unpark(cursor: Cursor, station_id: int, boot: UUID) -> list[Undated]:
    """Take out what waited for that boot's clock."""
    await cursor.execute(
        "DELETE FROM telemetry.undated WHERE station_id = %s AND boot = %s"
        " RETURNING tenant_id, received_at, series",
        (station_id, boot),
    )
    return [
        Undated(TenantId(tenant), received_at, _DECODER.decode(series))
        for tenant, received_at, series in await cursor.fetchall()
    ]


async def drop_before(cursor: Cursor, oldest: date) -> int:
    await cursor.execute("SELECT telemetry.drop_before(%s)", (oldest,))
    found = await cursor.fetchone()
    await cursor.execute("DELETE FROM telemetry.gap WHERE last_at < %s", (oldest,))
    return int(found[0]) if found else 0


# --------------------------------------------------------------------------- reading


def _mean(column: str) -> str:
    """A mean weighted by what each row stands for, after thinning too."""
    return (
        f"(sum({column}::numeric * every_ms) / nullif(sum(every_ms)"
        f" FILTER (WHERE {column} IS NOT NULL), 0))::bigint AS {column}"
    )


def _last(column: str) -> str:
    return (
        f"(array_agg({column} ORDER BY time DESC) FILTER (WHERE {column} IS NOT NULL))[1]"
        f" AS {column}"
    )


_MEANS = ", ".join(_mean(name) for name in COLUMNS[2:8])
_AFTER = (
    " AND (%(after_at)s::timestamptz IS NULL"
    "      OR (evse, time) >= (%(after_evse)s::int, %(after_at)s))"
)


async def buckets(
    cursor: Cursor,
    station_id: int,
    *,
    start: datetime,
    end: datetime,
    every: timedelta,
    evse: int | None,
    after: tuple[int, datetime] | None,
    limit: int,
) -> list[Bucket]:
    """Buckets of `every` from `start`, by EVSE and time; `after` is the last one read."""
    return await rows(
        cursor,
        Bucket,
        "SELECT evse::int, date_bin(%(every)s, time, %(start)s) AS at, count(*) AS samples,"
        f" {_last('energy_wh')}, {_mean('power_w')}, max(power_w) AS power_max_w, {_MEANS},"
        f" {_last('offered_ma')} FROM telemetry.api_sample"
        " WHERE station_id = %(station)s AND time >= %(start)s AND time < %(end)s"
        " AND (%(evse)s::int IS NULL OR evse = %(evse)s)"
        f"{_AFTER} GROUP BY 1, 2 ORDER BY 1, 2 LIMIT %(limit)s",
        {
            "every": every,
            "start": start,
            "end": end,
            "station": station_id,
            "evse": evse,
            "after_evse": after[0] if after else None,
            "after_at": after[1] + every if after else None,
            "limit": limit,
        },
    )


async def gaps(
    cursor: Cursor, station_id: int, start: datetime, end: datetime, evse: int | None, limit: int
) -> Sequence[Gap]:
    return await rows(
        cursor,
        Gap,
        "SELECT evse, first_at, last_at, samples, cause FROM telemetry.gap"
        " WHERE station_id = %(station)s AND last_at >= %(start)s AND first_at < %(end)s"
        " AND (%(evse)s::int IS NULL OR evse = %(evse)s)"
        " ORDER BY first_at, evse LIMIT %(limit)s",
        {"station": station_id, "start": start, "end": end, "evse": evse, "limit": limit},
    )
