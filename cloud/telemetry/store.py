"""All SQL of telemetry."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.rows import literal, rows
from cloud.telemetry.columns import FIELDS, KINDS, Extra, Few
from cloud.telemetry.tiers import partials
from cloud.telemetry.tiers.plan import HOUR, Marks, Piece, Tier, floor
from protocols.agent_link import Series, SeriesGap

_DECODER = msgspec.json.Decoder(Series)
_EXTRA_TYPES = ("timestamptz", "int4", "int2", "text", "int8")


class Bucket(msgspec.Struct, frozen=True):
    """What was measured in one stretch of time of one EVSE; means are weighted by time.

    A struct, because thousands of them are made for one answer.
    """

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
class Charged:
    """Energy of one bucket (the n-th, from 1) and group: a station's or site's key, or 0."""

    n: int
    key: int
    energy_wh: int
    stations: int
    station: str


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


async def note_late(cursor: Cursor, spans: Collection[tuple[int, datetime, datetime]]) -> int:
    """Mark what is older than the roll-ups' fence, so that they are made again; returns how much.

    A span is a station with its first and last sample's time. To be called before these samples
    are copied, in the same transaction: it also keeps the partitions of closed days in place.
    Live samples cost one reading of one row.
    """
    stations, firsts, lasts = zip(*spans, strict=True) if spans else ((), (), ())
    await cursor.execute(
        "SELECT telemetry.note_late(%s::int[], %s::timestamptz[], %s::timestamptz[])",
        (literal(stations), _quoted(firsts), _quoted(lasts)),
    )
    found = await cursor.fetchone()
    return int(found[0]) if found else 0


async def there(
    cursor: Cursor, samples: Collection[tuple[int, int, datetime]]
) -> set[tuple[int, int, datetime]]:
    """Which of these (station, EVSE, time) have a sample among the hot ones."""
    stations, evses, times = zip(*samples, strict=True) if samples else ((), (), ())
    await cursor.execute(
        "SELECT k.station_id, k.evse, k.time FROM unnest(%s::int[], %s::int[], %s::timestamptz[])"
        " AS k (station_id, evse, time) WHERE EXISTS (SELECT FROM telemetry.sample s"
        " WHERE s.station_id = k.station_id AND s.evse = k.evse AND s.time = k.time)",
        (list(stations), list(evses), list(times)),
    )
    return {(row[0], row[1], row[2]) for row in await cursor.fetchall()}


def _quoted(times: Iterable[datetime]) -> str:
    return literal(f'"{at}"' for at in times)


async def put_live(cursor: Cursor, some: Few) -> bool:
    """Append samples in one turn, if they are live and so need no `note_late`; else nothing.

    Their days' partitions are to be there.
    """
    await cursor.execute(_PUT_LIVE, _few_params(some))
    found = await cursor.fetchone()
    return bool(found and found[0])


async def put_fresh(cursor: Cursor, some: Few) -> None:
    """The same with the commit, which fails if they are not live after all."""
    await cursor.at_last(_PUT_FRESH, _few_params(some))


def _few_params(some: Few) -> tuple[str | list[str], ...]:
    columns = list(zip(*some.rows, strict=True))[1:]
    extras = list(zip(*some.extras, strict=True)) or [()] * len(_EXTRA_TYPES)
    return (
        _quoted(some.times()),
        *(_numbers(column) for column in columns),
        _quoted(extras[0]),
        literal(extras[1]),
        literal(extras[2]),
        list(extras[3]),
        literal(extras[4]),
    )


def _numbers(column: Iterable[int | None]) -> str:
    return literal("NULL" if value is None else value for value in column)


_PUT_FEW: Final = f"""
WITH told AS MATERIALIZED (
    SELECT * FROM unnest(%s::timestamptz[], {", ".join(f"%s::{kind}[]" for kind in KINDS[1:])})
        AS t ({", ".join(f'"{name}"' for name in FIELDS)})
), live AS MATERIALIZED (
    SELECT telemetry.is_live(min("time")) AS yes FROM told
), put AS (
    INSERT INTO telemetry.sample ({", ".join(FIELDS)})
    SELECT told.* FROM live, told WHERE live.yes
), more AS (
    INSERT INTO telemetry.extra (time, station_id, evse, name, value)
    SELECT e.* FROM live, unnest(%s::timestamptz[], %s::int4[], %s::int2[], %s::text[], %s::int8[])
        AS e (time, station_id, evse, name, value) WHERE live.yes
)
"""
_PUT_LIVE: Final = _PUT_FEW + "SELECT yes FROM live"
_PUT_FRESH: Final = _PUT_FEW + "SELECT 1 / coalesce(yes, false)::int FROM live"


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


# --------------------------------------------------------------------------- reading


async def tiers(
    cursor: Cursor, station_id: int, start: datetime, end: datetime
) -> tuple[Marks, list[datetime]]:
    """How far the tiers go, and the station's hours in the span that came late."""
    await cursor.execute(
        "SELECT fence, until, raw_from, minute_from, hour_from, array("
        "  SELECT DISTINCT hour FROM telemetry.api_late WHERE station_id = %(station)s"
        "  AND hour > %(start)s - interval '1 hour' AND hour < %(end)s)"
        " FROM telemetry.tier",
        {"station": station_id, "start": start, "end": end},
    )
    found = await cursor.fetchone()
    assert found is not None, "the migration puts one row there"
    return Marks(*found[:5]), found[5]


async def _evses(cursor: Cursor, station_id: int, pieces: Sequence[Piece]) -> list[int]:
    """The EVSEs that samples must be sought of; by name they are found in the index at once."""
    raw = [piece for piece in pieces if piece.tier is Tier.RAW]
    if not raw:
        return []
    await cursor.execute(
        "SELECT telemetry.api_evses(%s, %s, %s)", (station_id, raw[0].start, raw[-1].end)
    )
    found = await cursor.fetchone()
    return list(found[0] or ()) if found else []


async def buckets(
    cursor: Cursor,
    station_id: int,
    pieces: Sequence[Piece],
    *,
    start: datetime,
    every: timedelta,
    evse: int | None,
    after: tuple[int, datetime] | None,
    limit: int,
) -> list[Bucket]:
    """Buckets of `every` from `start`, by EVSE and time; `after` is the last one read."""
    if not pieces:
        return []
    asked: dict[str, object] = {
        "every": every,
        "start": start,
        "station": station_id,
        "evse": evse,
        "evses": await _evses(cursor, station_id, pieces) if evse is None else [evse],
        "after_evse": after[0] if after else None,
        "after_at": after[1] + every if after else None,
        "limit": limit,
    }
    parts = []
    for number, piece in enumerate(pieces):
        asked |= {f"from{number}": piece.start, f"to{number}": piece.end}
        parts.append(_part(piece.tier, number))
    bucket = f"({' UNION ALL '.join(parts)}) AS part"
    if not _one_part_each(pieces, start, every):
        bucket = f"(SELECT evse, at, {partials.OF_PARTIALS} FROM {bucket} GROUP BY 1, 2) AS bucket"
    await cursor.execute(
        f"SELECT evse::int, at, {partials.SHOWN} FROM {bucket} ORDER BY 1, 2 LIMIT %(limit)s",
        asked,
        prepare=False,  # a plan that is kept from before a day's partition filled scans all of it
        binary=True,
    )
    return [Bucket(*values) for values in await cursor.fetchall()]


def _one_part_each(pieces: Sequence[Piece], start: datetime, every: timedelta) -> bool:
    """Whether each bucket comes whole from one partial, so that there is nothing to combine."""
    return all(
        piece.tier in (Tier.RAW, *(tier for tier in Tier if tier.step == every))
        and not (piece.start - start) % every
        for piece in pieces
    )


def _part(tier: Tier, number: int) -> str:
    """The partials of one piece by EVSE and bucket."""
    if tier is Tier.RAW:
        columns, table, at = partials.OF_SAMPLES, "api_sample", "time"
        more = (
            f" AND hour > %(from{number})s - interval '1 hour' AND hour < %(to{number})s"
            " AND evse = ANY(%(evses)s::smallint[])"
        )
    else:
        columns, table, at = partials.COLUMNS, f"api_{tier}", "at"
        more = " AND (%(evse)s::int IS NULL OR evse = %(evse)s)"
    return (
        f"SELECT evse, date_bin(%(every)s, {at}, %(start)s) AS at, {columns}"
        f" FROM telemetry.{table} WHERE station_id = %(station)s"
        f" AND {at} >= %(from{number})s AND {at} < %(to{number})s{more}"
        " AND (%(after_at)s::timestamptz IS NULL"
        f"      OR (evse, {at}) >= (%(after_evse)s::int, %(after_at)s))"
        f"{' GROUP BY 1, 2' if tier is Tier.RAW else ''}"
    )


_ENERGY_PART = (
    "SELECT station_id, evse, width_bucket(at, %(bounds)s::timestamptz[]) AS n, energy_wh,"
    " energy_min FROM telemetry.api_{tier} WHERE at >= %(from{n})s AND at < %(to{n})s AND evse > 0"
    " AND energy_wh IS NOT NULL AND (%(site)s::int IS NULL"
    " OR station_id IN (SELECT id FROM stations.api_station WHERE site_id = %(site)s))"
)
_GROUPS = {None: "0", "station": "s.id", "site": "coalesce(s.site_id, 0)"}


async def energy(
    cursor: Cursor,
    pieces: Sequence[Piece],
    bounds: Sequence[datetime],
    *,
    site: int | None,
    group: str | None,
    after: tuple[int, int],
    limit: int,
) -> list[Charged]:
    """Energy of EVSEs per bucket between the bounds and group, from the roll-ups.

    A bucket's energy is the lifetime register's last value in it less the last one before, however
    long before: what was charged in a hole counts where the register is seen again. An EVSE
    that is seen for the first time counts from its first value. EVSE 0 is the site's own meter.
    """
    if not pieces:
        return []
    asked: dict[str, object] = {
        "bounds": list(bounds),
        "site": site,
        "start": bounds[0],
        "after": after[0],
        "after_key": after[1],
        "limit": limit,
    }
    parts = []
    for n, piece in enumerate(pieces):
        asked |= {f"from{n}": piece.start, f"to{n}": piece.end}
        parts.append(_ENERGY_PART.format(tier=piece.tier, n=n))
    return await rows(
        cursor,
        Charged,
        f"WITH part AS ({' UNION ALL '.join(parts)}), last AS ("
        "  SELECT station_id, evse, n, max(energy_wh) AS register, min(energy_min) AS first"
        "  FROM part GROUP BY 1, 2, 3"
        "), step AS ("
        "  SELECT *, lag(register) OVER (PARTITION BY station_id, evse ORDER BY n) AS before"
        "  FROM last"
        "), charged AS ("
        "  SELECT station_id, n, greatest(0, register - coalesce(before,"
        "   telemetry.api_register(station_id, evse, %(start)s), first)) AS energy_wh FROM step"
        f") SELECT n, {_GROUPS[group]} AS key, sum(energy_wh)::bigint AS energy_wh,"
        "  count(DISTINCT s.id)::int AS stations, min(s.identity) AS station"
        "  FROM charged JOIN stations.api_station s ON s.id = station_id"
        "  GROUP BY 1, 2 HAVING (n, {key}) > (%(after)s, %(after_key)s)"
        "  ORDER BY 1, 2 LIMIT %(limit)s".replace("{key}", _GROUPS[group]),
        asked,
    )


async def late_hours(cursor: Cursor, start: datetime, end: datetime) -> int:
    """How many hours of stations got late samples that the roll-ups do not hold yet."""
    await cursor.execute(
        "SELECT count(DISTINCT (station_id, hour)) FROM telemetry.api_late"
        " WHERE hour >= %s AND hour < %s",
        (floor(start, HOUR), end),
    )
    found = await cursor.fetchone()
    return int(found[0]) if found else 0


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
