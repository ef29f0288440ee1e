"""All SQL of the tiers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

from cloud.kernel.database import Cursor
from cloud.kernel.rows import row, rows
from cloud.telemetry.tiers.partials import COLUMNS, OF_PARTIALS, OF_SAMPLES
from cloud.telemetry.tiers.plan import DAY, HOUR, Marks, floor

_MARKS: Final = "fence, until, raw_from, minute_from, hour_from"


@dataclass(frozen=True)
class HotDay:
    day: date
    bytes: int


async def begin(cursor: Cursor, statement_s: float, lock_ms: int = 300) -> bool:
    """Whether this transaction is the keeper's; false while another process keeps the tiers.

    The lock timeout bounds for how long those behind us in a table's queue may have to wait.
    """
    await cursor.execute(
        "SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', %s, true),"
        " set_config('work_mem', '64MB', true),"
        " pg_try_advisory_xact_lock(hashtext('telemetry.keeper'))",
        (f"{statement_s}s", f"{lock_ms}ms"),
    )
    found = await cursor.fetchone()
    return bool(found and found[3])


async def marks(cursor: Cursor) -> Marks:
    found = await row(cursor, Marks, f"SELECT {_MARKS} FROM telemetry.tier")
    assert found is not None, "the migration puts one row there"
    return found


# --------------------------------------------------------------------------- the fence


async def raise_fence(cursor: Cursor, to: datetime) -> None:
    await cursor.execute(
        "UPDATE telemetry.tier SET fence = %(to)s WHERE fence < %(to)s", {"to": to}
    )


async def next_transaction(cursor: Cursor) -> int:
    """A number that no transaction has been given yet."""
    await cursor.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
    found = await cursor.fetchone()
    return int(found[0]) if found else 0


async def all_ended(cursor: Cursor, before: int) -> bool:
    """Whether every transaction with a lower number has ended."""
    await cursor.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint")
    found = await cursor.fetchone()
    return found is not None and int(found[0]) >= before


# --------------------------------------------------------------------------- roll-ups


async def roll(cursor: Cursor, start: datetime, end: datetime) -> None:
    """Minutes from hot samples, of one UTC day at most, then the hours that became whole.

    EVSEs are found by hopping from one to the next in the index, because a scan for the time alone
    would read the whole day every time.
    """
    day = floor(start, DAY)
    await ensure(cursor, {day.date()})
    await cursor.execute(
        "WITH RECURSIVE pair AS ("
        "  (SELECT station_id, evse FROM telemetry.sample"
        "   WHERE time >= %(day)s AND time < %(next)s ORDER BY station_id, evse LIMIT 1)"
        "  UNION ALL"
        "  SELECT n.station_id, n.evse FROM pair p, LATERAL ("
        "   SELECT s.station_id, s.evse FROM telemetry.sample s"
        "   WHERE (s.station_id, s.evse) > (p.station_id, p.evse)"
        "   AND s.time >= %(day)s AND s.time < %(next)s"
        "   ORDER BY s.station_id, s.evse LIMIT 1) n"
        ")"
        f" INSERT INTO telemetry.minute (station_id, evse, at, {COLUMNS})"
        " SELECT p.station_id, p.evse, m.* FROM pair p, LATERAL ("
        "  SELECT date_bin('1 minute', s.time, '1970-01-01 00:00+00') AS at,"
        f" {OF_SAMPLES} FROM telemetry.sample s"
        "  WHERE s.station_id = p.station_id AND s.evse = p.evse"
        "  AND s.time >= %(start)s AND s.time < %(end)s GROUP BY 1) m",
        {"day": day, "next": day + DAY, "start": start, "end": end},
        prepare=False,
    )
    first, last = floor(start, HOUR), floor(end, HOUR)
    if first < last:
        await _roll_hours(cursor, first, last)


async def _roll_hours(cursor: Cursor, first: datetime, last: datetime) -> None:
    await cursor.execute(
        f"INSERT INTO telemetry.hour (station_id, evse, at, {COLUMNS})"
        f" SELECT station_id, evse, telemetry.hour_of(at), {OF_PARTIALS} FROM telemetry.minute"
        " WHERE at >= %s AND at < %s GROUP BY 1, 2, 3",
        (first, last),
        prepare=False,
    )


async def set_until(cursor: Cursor, until: datetime) -> None:
    await cursor.execute("UPDATE telemetry.tier SET until = %s", (until,))


async def take_late(cursor: Cursor, most: int) -> set[tuple[int, datetime]]:
    """Take out marks; whoever writes late after this statement makes a mark of its own."""
    await cursor.execute(
        "DELETE FROM telemetry.late WHERE id IN"
        " (SELECT id FROM telemetry.late ORDER BY id LIMIT %s) RETURNING station_id, hour",
        (most,),
    )
    return {(station, hour) for station, hour in await cursor.fetchall()}


_KEYS: Final = "unnest(%(stations)s::int[], %(hours)s::timestamptz[]) AS k (station_id, hour)"
_THEIR_EVSES: Final = (
    "LATERAL unnest(telemetry.evses(k.station_id, k.hour, k.hour + interval '1 hour')) AS e (evse)"
)
_THEIR_SAMPLES: Final = (
    "telemetry.every_sample s WHERE s.station_id = k.station_id AND s.evse = e.evse"
    " AND s.hour = k.hour AND s.time >= k.hour"
    " AND s.time < least(k.hour + interval '1 hour', %(until)s)"
)
_DELETE_MINUTES: Final = (
    f"DELETE FROM telemetry.minute m USING (SELECT * FROM {_KEYS}) k"
    " WHERE m.station_id = k.station_id"
    " AND m.at >= k.hour AND m.at < k.hour + interval '1 hour'"
)
_INSERT_MINUTES: Final = (
    f"INSERT INTO telemetry.minute (station_id, evse, at, {COLUMNS})"
    f" SELECT k.station_id, m.* FROM {_KEYS}, {_THEIR_EVSES},"
    " LATERAL (SELECT s.evse,"
    f" date_bin('1 minute', s.time, '1970-01-01 00:00+00') AS at, {OF_SAMPLES}"
    f" FROM {_THEIR_SAMPLES} GROUP BY 1, 2) m WHERE k.hour >= %(minute_from)s"
)
_DELETE_HOURS: Final = (
    f"DELETE FROM telemetry.hour h USING (SELECT * FROM {_KEYS}) k"
    " WHERE h.station_id = k.station_id AND h.at = k.hour"
)
_INSERT_HOURS: Final = (
    f"INSERT INTO telemetry.hour (station_id, evse, at, {COLUMNS})"
    f" SELECT k.station_id, m.* FROM {_KEYS}, {_THEIR_EVSES},"
    f" LATERAL (SELECT s.evse, k.hour, {OF_SAMPLES}"
    f" FROM {_THEIR_SAMPLES} GROUP BY 1) m WHERE k.hour + interval '1 hour' <= %(until)s"
)


async def roll_again(cursor: Cursor, keys: Collection[tuple[int, datetime]], tiers: Marks) -> None:
    """Replace the roll-ups of these stations' hours by what their samples say now."""
    await ensure(cursor, {hour.date() for _, hour in keys})
    asked = {
        "stations": [station for station, _ in keys],
        "hours": [hour for _, hour in keys],
        "until": tiers.until,
        "minute_from": tiers.minute_from,
    }
    await cursor.execute(_DELETE_MINUTES, asked, prepare=False)
    await cursor.execute(_INSERT_MINUTES, asked, prepare=False)
    await cursor.execute(_DELETE_HOURS, asked, prepare=False)
    await cursor.execute(_INSERT_HOURS, asked, prepare=False)


# --------------------------------------------------------------------------- compaction, retention


async def ensure(cursor: Cursor, days: Collection[date]) -> None:
    """Have partitions for these days' minutes and blocks."""
    await cursor.execute("SELECT telemetry.ensure_tiers(%s::date[])", (sorted(days),))


async def hot_days(cursor: Cursor) -> list[HotDay]:
    return await rows(cursor, HotDay, "SELECT day, bytes FROM telemetry.hot_days()")


async def compact(cursor: Cursor, start: datetime, end: datetime) -> int:
    """Move the hot samples of these whole hours into blocks; returns how many."""
    await cursor.execute("SELECT telemetry.compact(%s, %s)", (start, end))
    found = await cursor.fetchone()
    return int(found[0]) if found else 0


async def drop_hot(cursor: Cursor, day: date) -> bool:
    """Drop a day's hot partitions if nothing is in them, nor on its way."""
    await cursor.execute("SELECT telemetry.drop_hot(%s)", (day,))
    found = await cursor.fetchone()
    return bool(found and found[0])


async def compress_hot(cursor: Cursor, day: date) -> bool:
    """Let TimescaleDB compress that day; false when its licence does not."""
    await cursor.execute("SELECT telemetry.compress_hot(%s)", (day,))
    found = await cursor.fetchone()
    return bool(found and found[0])


async def retain(cursor: Cursor, raw: datetime, minutes: datetime, hours: datetime) -> None:
    """Hide what is older from readers; never shows again what was hidden."""
    await cursor.execute(
        "UPDATE telemetry.tier SET raw_from = greatest(raw_from, %s),"
        " minute_from = greatest(minute_from, %s), hour_from = greatest(hour_from, %s)",
        (raw, minutes, hours),
    )


async def drop_hidden(cursor: Cursor, tiers: Marks) -> int:
    """Remove what is hidden from readers; returns how many partitions went."""
    await cursor.execute(
        "SELECT telemetry.drop_before(%s) + telemetry.drop_tiers(%s, %s)",
        (tiers.raw_from.date(), tiers.raw_from.date(), tiers.minute_from.date()),
    )
    found = await cursor.fetchone()
    await cursor.execute("DELETE FROM telemetry.hour WHERE at < %s", (tiers.hour_from,))
    await cursor.execute("DELETE FROM telemetry.gap WHERE last_at < %s", (tiers.hour_from,))
    await cursor.execute("DELETE FROM telemetry.undated WHERE received_at < %s", (tiers.raw_from,))
    return int(found[0]) if found else 0


ROWS_PER_BYTE: Final = 1 / 95
"""About what a hot row takes in its table."""


def slices(hot: HotDay, most_rows: int) -> list[timedelta]:
    """A day's offsets between which about so many rows lie: whole hours."""
    hours = 24
    while hours > 1 and hot.bytes * ROWS_PER_BYTE * hours / 24 > most_rows:
        hours //= 2
    return [timedelta(hours=n) for n in range(0, 25, hours)]
