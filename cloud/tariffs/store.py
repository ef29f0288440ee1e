"""SQL of tariffs, their versions, and where they hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final, NamedTuple

from psycopg import errors

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import row, rows
from cloud.tariffs.pricing import TariffVersion, Terms


@dataclass(frozen=True)
class Tariff:
    id: int
    name: str
    currency: str
    latest: int
    """The highest number among its versions, which may not hold yet."""
    created_at: datetime


@dataclass(frozen=True)
class Assignment:
    """Where a tariff holds; without site and station it is the tenant's default."""

    id: int
    tariff: int
    name: str
    site_id: int | None
    station_id: int | None
    evse: int | None
    since: datetime
    until: datetime | None
    created_by: str


class Start(NamedTuple):
    """Where and when a transaction started."""

    tenant_id: TenantId
    station_id: int
    evse: int
    at: datetime


_TARIFF: Final = "id, name, currency, latest, created_at"
_TERMS: Final = (
    "per_kwh, per_minute, per_session, tax, tax_included, min_total, max_total, shown_digits"
)
_OF_TERMS: Final = (
    "%(per_kwh)s, %(per_minute)s, %(per_session)s, %(tax)s, %(tax_included)s, %(min_total)s,"
    " %(max_total)s, %(shown_digits)s"
)
_VERSION: Final = (
    "v.id, v.tariff_id, v.number, v.valid_from, v.created_by, v.created_at, t.currency, v.per_kwh,"
    " v.per_minute, v.per_session, v.tax, v.tax_included, v.min_total, v.max_total, v.shown_digits"
)
_VERSIONS: Final = "tariffs.version v JOIN tariffs.tariff t ON t.id = v.tariff_id"
_ASSIGNMENT: Final = (
    "a.id, t.id AS tariff, t.name, a.site_id, a.station_id, a.evse, a.since, a.until, a.created_by"
)
_ASSIGNMENTS: Final = "tariffs.assignment a JOIN tariffs.tariff t ON t.id = a.tariff_id"

TARIFFS: Final = Sorts(
    "name",
    Column("id", int),
    name=Column("lower(name)"),
    created_at=Column("created_at", datetime),
)
VERSIONS: Final = Sorts(
    "-number",
    Column("v.id", int),
    number=Column("v.number", int),
    valid_from=Column("v.valid_from", datetime),
)
ASSIGNMENTS: Final = Sorts("since", Column("a.id", int), since=Column("a.since", datetime))

# --------------------------------------------------------------------------- tariffs


async def add_tariff(
    cursor: Cursor, tenant: TenantId, name: str, currency: str, now: datetime
) -> Tariff | None:
    """A tariff without versions; None when the name is taken."""
    return await row(
        cursor,
        Tariff,
        "INSERT INTO tariffs.tariff (tenant_id, name, currency, latest, created_at)"
        f" VALUES (%s, %s, %s, 0, %s) ON CONFLICT DO NOTHING RETURNING {_TARIFF}",
        (tenant, name, currency, now),
    )


async def tariffs(
    cursor: Cursor, part: Part, currency: str | None, text: str | None
) -> Cut[Tariff]:
    where = Where().add("currency = {}", currency).add("strpos(lower(name), lower({})) > 0", text)
    return await select_page(cursor, Tariff, part, _TARIFF, "tariffs.tariff", where)


async def tariff(cursor: Cursor, tariff_id: int, *, lock: bool = False) -> Tariff | None:
    locked = " FOR NO KEY UPDATE" if lock else ""
    sql = f"SELECT {_TARIFF} FROM tariffs.tariff WHERE id = %s{locked}"
    return await row(cursor, Tariff, sql, (tariff_id,))


async def rename_tariff(cursor: Cursor, tariff_id: int, name: str) -> Tariff | None:
    """None when the name is taken; the unit of work has failed then."""
    try:
        return await row(
            cursor,
            Tariff,
            f"UPDATE tariffs.tariff SET name = %s WHERE id = %s RETURNING {_TARIFF}",
            (name, tariff_id),
        )
    except errors.UniqueViolation:
        return None


# --------------------------------------------------------------------------- versions


async def add_version(
    cursor: Cursor,
    tenant: TenantId,
    tariff_id: int,
    terms: Terms,
    *,
    valid_from: datetime,
    by: str,
    now: datetime,
) -> TariffVersion:
    """The tariff's next version."""
    made = await row(
        cursor,
        TariffVersion,
        "WITH t AS (UPDATE tariffs.tariff SET latest = latest + 1 WHERE id = %(tariff)s"
        "  RETURNING id, currency, latest),"
        f" v AS (INSERT INTO tariffs.version (tenant_id, tariff_id, number, {_TERMS}, valid_from,"
        "  created_by, created_at)"
        f"  SELECT %(tenant)s, id, latest, {_OF_TERMS}, %(valid_from)s, %(by)s, %(now)s FROM t"
        "  RETURNING *)"
        f" SELECT {_VERSION} FROM v, t",
        {
            **asdict(terms),
            "tenant": tenant,
            "tariff": tariff_id,
            "valid_from": valid_from,
            "by": by,
            "now": now,
        },
    )
    assert made is not None
    return made


async def history(cursor: Cursor, part: Part, tariff_id: int) -> Cut[TariffVersion]:
    where = Where().add("v.tariff_id = {}", tariff_id)
    return await select_page(cursor, TariffVersion, part, _VERSION, _VERSIONS, where)


async def version(cursor: Cursor, tariff_id: int, number: int) -> TariffVersion | None:
    sql = f"SELECT {_VERSION} FROM {_VERSIONS} WHERE v.tariff_id = %s AND v.number = %s"
    return await row(cursor, TariffVersion, sql, (tariff_id, number))


async def in_force(
    cursor: Cursor, tariff_ids: Collection[int], at: datetime
) -> dict[int, TariffVersion]:
    """By tariff: of the versions that began by then, the one that began last."""
    found = await rows(
        cursor,
        TariffVersion,
        f"SELECT DISTINCT ON (v.tariff_id) {_VERSION} FROM {_VERSIONS}"
        " WHERE v.tariff_id = ANY(%s) AND v.valid_from <= %s"
        " ORDER BY v.tariff_id, v.valid_from DESC, v.number DESC",
        (list(tariff_ids), at),
    )
    return {one.tariff_id: one for one in found}


async def versions(cursor: Cursor, ids: Collection[int]) -> dict[int, TariffVersion]:
    """Versions by their id, as far as the unit of work sees them."""
    sql = f"SELECT {_VERSION} FROM {_VERSIONS} WHERE v.id = ANY(%s)"
    return {one.id: one for one in await rows(cursor, TariffVersion, sql, (list(ids),))}


# --------------------------------------------------------------------------- assignments


@dataclass(frozen=True)
class Scope:
    """Where an assignment holds."""

    site_id: int | None = None
    station_id: int | None = None
    evse: int | None = None


_SAME_SCOPE: Final = (
    "a.until IS NULL AND a.tenant_id = %(tenant)s"
    " AND coalesce(a.site_id, 0) = coalesce(%(site_id)s::int, 0)"
    " AND coalesce(a.station_id, 0) = coalesce(%(station_id)s::int, 0)"
    " AND coalesce(a.evse, 0) = coalesce(%(evse)s::int, 0)"
)


async def hold_assignments(cursor: Cursor, tenant: TenantId) -> None:
    """Let nobody else change where the tenant's tariffs hold until this transaction ends."""
    await cursor.execute(
        "SELECT pg_advisory_xact_lock(hashtext('tariffs.assignment'), %s)", (tenant,)
    )


async def assigned(cursor: Cursor, tenant: TenantId, scope: Scope) -> Assignment | None:
    """What holds at exactly that place."""
    sql = f"SELECT {_ASSIGNMENT} FROM {_ASSIGNMENTS} WHERE {_SAME_SCOPE}"
    return await row(cursor, Assignment, sql, {**asdict(scope), "tenant": tenant})


async def assign(
    cursor: Cursor, tenant: TenantId, tariff_id: int, scope: Scope, since: datetime, by: str
) -> Assignment:
    made = await row(
        cursor,
        Assignment,
        "WITH a AS (INSERT INTO tariffs.assignment (tenant_id, tariff_id, site_id, station_id,"
        "  evse, since, created_by) VALUES (%(tenant)s, %(tariff)s, %(site_id)s, %(station_id)s,"
        "  %(evse)s, %(since)s, %(by)s) RETURNING *)"
        f" SELECT {_ASSIGNMENT} FROM a JOIN tariffs.tariff t ON t.id = a.tariff_id",
        {**asdict(scope), "tenant": tenant, "tariff": tariff_id, "since": since, "by": by},
    )
    assert made is not None
    return made


async def end(cursor: Cursor, assignment_id: int, until: datetime) -> None:
    await cursor.execute(
        "UPDATE tariffs.assignment SET until = greatest(since, %s) WHERE id = %s",
        (until, assignment_id),
    )


async def end_of_station(
    cursor: Cursor, tenant: TenantId, station_id: int, until: datetime
) -> None:
    """What the tenant assigned to the station and its EVSEs."""
    await cursor.execute(
        "UPDATE tariffs.assignment SET until = greatest(since, %s)"
        " WHERE tenant_id = %s AND station_id = %s AND until IS NULL",
        (until, tenant, station_id),
    )


@dataclass(frozen=True)
class AssignmentFilters:
    """What a list of assignments is narrowed by; None does not narrow."""

    tariff: int | None = None
    site: int | None = None
    stations: Sequence[int] | None = None
    ended: bool = False


async def assignments(cursor: Cursor, part: Part, filters: AssignmentFilters) -> Cut[Assignment]:
    held = Where("a.until IS NOT NULL" if filters.ended else "a.until IS NULL")
    where = (
        held.add("a.tariff_id = {}", filters.tariff)
        .add("a.site_id = {}", filters.site)
        .add("a.station_id = ANY({})", filters.stations)
    )
    return await select_page(cursor, Assignment, part, _ASSIGNMENT, _ASSIGNMENTS, where)


async def assignment(
    cursor: Cursor, assignment_id: int, *, lock: bool = False
) -> Assignment | None:
    """One that holds; those that have ended are in the list alone."""
    locked = " FOR UPDATE OF a" if lock else ""
    sql = f"SELECT {_ASSIGNMENT} FROM {_ASSIGNMENTS} WHERE a.id = %s AND a.until IS NULL{locked}"
    return await row(cursor, Assignment, sql, (assignment_id,))


# --------------------------------------------------------------------------- which one holds

_HELD_THEN: Final = (
    "a.tenant_id = s.tenant_id AND a.since <= s.at AND (a.until IS NULL OR a.until > s.at)"
)
_PINS: Final = f"""
    SELECT s.n, found.id
    FROM unnest(%s::int[], %s::int[], %s::int[], %s::int[], %s::timestamptz[]) WITH ORDINALITY
        AS s (tenant_id, station_id, site_id, evse, at, n)
    CROSS JOIN LATERAL (
        SELECT v.id FROM (
            SELECT a.tariff_id, 1 + (a.evse IS NULL)::int AS breadth FROM tariffs.assignment a
            WHERE a.station_id = s.station_id AND (a.evse IS NULL OR a.evse = s.evse)
                AND {_HELD_THEN}
            UNION ALL
            SELECT a.tariff_id, 3 FROM tariffs.assignment a
            WHERE a.site_id = s.site_id AND {_HELD_THEN}
            UNION ALL
            SELECT a.tariff_id, 4 FROM tariffs.assignment a
            WHERE a.site_id IS NULL AND a.station_id IS NULL AND {_HELD_THEN}
        ) held
        CROSS JOIN LATERAL (
            SELECT v.id FROM tariffs.version v
            WHERE v.tariff_id = held.tariff_id AND v.valid_from <= s.at
            ORDER BY v.valid_from DESC, v.number DESC LIMIT 1
        ) v
        ORDER BY held.breadth LIMIT 1
    ) found
"""


async def any_assigned(cursor: Cursor) -> bool:
    """Whether any tariff holds, or has held, anywhere that the unit of work sees."""
    await cursor.execute("SELECT EXISTS (SELECT FROM tariffs.assignment)")
    found = await cursor.fetchone()
    return found is not None and bool(found[0])


async def pins(
    cursor: Cursor, starts: Sequence[Start], sites: Mapping[int, int]
) -> list[int | None]:
    """For each start the version that was in force there and then; stations' sites are given."""
    columns = [
        [start.tenant_id for start in starts],
        [start.station_id for start in starts],
        [sites.get(start.station_id) for start in starts],
        [start.evse for start in starts],
        [start.at for start in starts],
    ]
    await cursor.execute(_PINS, columns)
    found = {int(n): int(version_id) for n, version_id in await cursor.fetchall()}
    return [found.get(n) for n in range(1, len(starts) + 1)]
