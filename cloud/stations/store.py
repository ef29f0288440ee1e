"""All SQL of stations."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

from psycopg import errors
from psycopg.types.json import Jsonb

from cloud.communication.api import Resident
from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import literal, row, rows
from cloud.kernel.turns import Ask
from cloud.stations.clock import BootClock, Dating
from cloud.stations.registration import ClaimCode
from protocols.agent_link import EvseDescription, SecurityEvent


@dataclass(frozen=True)
class Site:
    id: int
    name: str
    address: str
    latitude: float | None
    longitude: float | None
    time_zone: str
    created_at: datetime


@dataclass(frozen=True)
class Station:
    id: int
    tenant_id: TenantId
    identity: str
    name: str
    site_id: int | None
    registration: str
    created_at: datetime
    registered_at: datetime | None
    updated_at: datetime


@dataclass(frozen=True)
class Filters:
    """What a list of stations is narrowed to; None does not narrow."""

    site: int | None = None
    registration: str | None = None
    online: bool | None = None
    status: str | None = None
    """At least one EVSE has it."""
    model: str | None = None
    version: str | None = None
    text: str | None = None
    updated_since: datetime | None = None


@dataclass(frozen=True)
class NewRow:
    """A station as an import enters it."""

    identity: str
    name: str
    site_id: int | None
    digest: bytes


@dataclass(frozen=True)
class Evse:
    station_id: int
    evse: int
    phases: int | None
    max_ma: int | None
    energy_step_wh: int | None
    billing_grade: bool | None
    gone_at: datetime | None
    connectors: list[int]


@dataclass(frozen=True)
class Connector:
    evse: int
    connector: int
    gone: bool


@dataclass(frozen=True)
class EvseState:
    station_id: int
    evse: int
    outbox: UUID
    seq: int
    at: datetime
    received_at: datetime
    measured_at: datetime | None
    status: str
    charging_state: str
    transaction: UUID | None
    offered_ma: int | None
    limited_by: str
    error: str


@dataclass(frozen=True)
class StationState:
    station_id: int
    outbox: UUID
    seq: int
    at: datetime
    received_at: datetime
    agent_version: str
    boards: dict[str, str]
    local_list_version: int
    pending_billing: int
    pending_telemetry: int
    journal_bytes: int
    alarms: list[str]
    network: dict[str, Any] | None
    hardware: list[str]


@dataclass(frozen=True)
class Hardware:
    """What a station that speaks OCPP said it is when it booted."""

    station_id: int
    vendor: str
    model: str
    serial: str
    firmware: str
    iccid: str
    imsi: str
    meter_type: str
    meter_serial: str
    reason: str
    booted_at: datetime


class Place(NamedTuple):
    """A connector that a station has spoken of."""

    station_id: int
    tenant_id: TenantId
    evse: int
    connector: int


_SITE = "id, name, address, latitude, longitude, time_zone, created_at"
_STATION = (
    "id, tenant_id, identity, name, site_id, registration, created_at, registered_at, updated_at"
)

# --------------------------------------------------------------------------- sites


async def add_site(
    cursor: Cursor, tenant: TenantId, fields: dict[str, Any], now: datetime
) -> Site | None:
    """None when the name is taken."""
    return await row(
        cursor,
        Site,
        "INSERT INTO stations.site (tenant_id, name, address, latitude, longitude, time_zone,"
        " created_at) VALUES (%(tenant)s, %(name)s, %(address)s, %(latitude)s, %(longitude)s,"
        f" %(time_zone)s, %(now)s) ON CONFLICT DO NOTHING RETURNING {_SITE}",
        {**fields, "tenant": tenant, "now": now},
    )


async def site(cursor: Cursor, site_id: int, *, lock: bool = False) -> Site | None:
    locked = " FOR UPDATE" if lock else ""
    sql = f"SELECT {_SITE} FROM stations.site WHERE id = %s{locked}"
    return await row(cursor, Site, sql, (site_id,))


SITES: Final = Sorts(
    "id",
    Column("id", int),
    id=Column("id", int),
    name=Column("lower(name)"),
    created_at=Column("created_at", datetime),
)


async def sites(cursor: Cursor, part: Part, text: str | None) -> Cut[Site]:
    where = Where().add("strpos(lower(name || ' ' || address), lower({})) > 0", text)
    return await select_page(cursor, Site, part, _SITE, "stations.site", where)


async def change_site(cursor: Cursor, site_id: int, changes: dict[str, Any]) -> Site | None:
    """Set the given columns (of name, address, latitude, longitude, time_zone).

    None when the name is taken; the unit of work has failed then.
    """
    known = ("name", "address", "latitude", "longitude", "time_zone")
    sets = ", ".join(f"{name} = %({name})s" for name in known if name in changes)
    try:
        return await row(
            cursor,
            Site,
            f"UPDATE stations.site SET {sets or 'name = name'} WHERE id = %(id)s RETURNING {_SITE}",
            {**changes, "id": site_id},
        )
    except errors.UniqueViolation:
        return None


async def delete_site(cursor: Cursor, site_id: int) -> bool:
    """False while stations belong to it."""
    try:
        await cursor.execute("DELETE FROM stations.site WHERE id = %s", (site_id,))
    except errors.ForeignKeyViolation:
        return False
    return True


# --------------------------------------------------------------------------- stations


async def add_station(
    cursor: Cursor,
    tenant: TenantId,
    identity: str,
    *,
    name: str,
    site_id: int | None,
    registration: str,
    now: datetime,
) -> Station | None:
    """None when the identity is taken, by whatever tenant."""
    return await row(
        cursor,
        Station,
        "INSERT INTO stations.station (tenant_id, identity, name, site_id, registration,"
        " created_at, updated_at) VALUES (%s, %s, %s, %s, %s, %s, %s)"
        f" ON CONFLICT DO NOTHING RETURNING {_STATION}",
        (tenant, identity, name, site_id, registration, now, now),
    )


async def station(cursor: Cursor, identity: str, *, lock: bool = False) -> Station | None:
    locked = " FOR UPDATE" if lock else ""
    sql = f"SELECT {_STATION} FROM stations.station WHERE identity = %s{locked}"
    return await row(cursor, Station, sql, (identity,))


async def residents(cursor: Cursor, identities_: Collection[str]) -> dict[str, Resident]:
    await cursor.execute(
        "SELECT identity, id, tenant_id, registration FROM stations.station"
        " WHERE identity = ANY(%s)",
        (list(identities_),),
    )
    return {found[0]: Resident(*found[1:]) for found in await cursor.fetchall()}


STATIONS: Final = Sorts(
    "station",
    Column("s.id", int),
    station=Column("s.identity"),
    name=Column("lower(s.name)"),
    last_seen=Column("c.last_seen", datetime, nullable=True),
    created_at=Column("s.created_at", datetime),
)
_HAS_STATUS = (
    "s.id IN (SELECT t.station_id FROM stations.evse_state t WHERE t.status = {} AND NOT EXISTS"
    " (SELECT FROM stations.evse e WHERE e.station_id = t.station_id AND e.evse = t.evse"
    "  AND e.gone_at IS NOT NULL))"
)
_ONLINE: Final = "SELECT station_id FROM communication.api_connection WHERE online"
_STATE: Final = "SELECT station_id FROM stations.station_state"
_UPDATED = (
    "s.updated_at >= {} OR s.id IN (SELECT station_id FROM stations.station_state"
    " WHERE received_at >= {}) OR s.id IN (SELECT station_id FROM stations.evse_state"
    " WHERE received_at >= {})"
)
_OF_STATION = ", ".join(f"s.{name.strip()}" for name in _STATION.split(","))


async def stations(cursor: Cursor, part: Part, filters: Filters) -> Cut[Station]:
    """One page; joined is only what the order needs, so that an index can give it."""
    where = (
        Where()
        .add("s.site_id = {}", filters.site)
        .add("s.registration = {}", filters.registration)
        .add(f"(s.id IN ({_ONLINE})) = {{}}", filters.online)
        .add(_HAS_STATUS, filters.status)
        .add(
            f"s.id IN ({_STATE} WHERE strpos(lower(boards::text), lower({{}})) > 0)", filters.model
        )
        .add(
            f"s.id IN ({_STATE} WHERE strpos(lower(agent_version), lower({{}})) > 0)",
            filters.version,
        )
        .add("strpos(s.sought, lower({})) > 0", filters.text)
        .add(_UPDATED, filters.updated_since)
    )
    source: LiteralString = "stations.station s"
    if part.sort.removeprefix("-") == "last_seen":
        source += " LEFT JOIN communication.api_connection c ON c.station_id = s.id"
    return await select_page(cursor, Station, part, _OF_STATION, source, where)


async def identities(cursor: Cursor, stations_: Collection[int]) -> dict[int, str]:
    """Wire identities by key, also of stations that were deleted or are another tenant's now."""
    await cursor.execute(
        "SELECT station_id, identity FROM stations.former WHERE station_id = ANY(%(ids)s)"
        " UNION ALL SELECT id, identity FROM stations.former_station WHERE id = ANY(%(ids)s)"
        " UNION ALL SELECT id, identity FROM stations.station WHERE id = ANY(%(ids)s)",
        {"ids": list(stations_)},
    )
    return dict(await cursor.fetchall())


async def sites_of(cursor: Cursor, stations_: Collection[int]) -> dict[int, int]:
    """The site of each station that stands at one; a deleted station's is where it stood."""
    await cursor.execute(
        "SELECT id, site_id FROM stations.former_station WHERE id = ANY(%(ids)s)"
        " AND site_id IS NOT NULL UNION ALL SELECT id, site_id FROM stations.station"
        " WHERE id = ANY(%(ids)s) AND site_id IS NOT NULL",
        {"ids": list(stations_)},
    )
    return dict(await cursor.fetchall())


async def stations_by_id(cursor: Cursor, ids: Collection[int]) -> list[Station]:
    sql = f"SELECT {_STATION} FROM stations.station WHERE id = ANY(%s)"
    return await rows(cursor, Station, sql, (list(ids),))


async def change_station(
    cursor: Cursor, station_id: int, changes: dict[str, Any], now: datetime
) -> Station:
    """Set the given columns (of name, site_id) of a station that is locked."""
    sets = "".join(f", {name} = %({name})s" for name in ("name", "site_id") if name in changes)
    (changed,) = await rows(
        cursor,
        Station,
        f"UPDATE stations.station SET updated_at = %(now)s{sets} WHERE id = %(id)s"
        f" RETURNING {_STATION}",
        {**changes, "now": now, "id": station_id},
    )
    return changed


async def delete_station(cursor: Cursor, station_: Station, now: datetime, by: str) -> None:
    """Take a station out of the fleet; its key, identity and history stay known."""
    await cursor.execute(
        "INSERT INTO stations.former_station (id, tenant_id, identity, name, site_id, created_at,"
        " deleted_at, deleted_by) SELECT id, tenant_id, identity, name, site_id, created_at,"
        " %s, %s FROM stations.station WHERE id = %s",
        (now, by, station_.id),
    )
    for sql in (
        "DELETE FROM stations.evse_state WHERE station_id = %s",
        "DELETE FROM stations.station_state WHERE station_id = %s",
        "DELETE FROM stations.hardware WHERE station_id = %s",
        "DELETE FROM stations.station WHERE id = %s",
    ):
        await cursor.execute(sql, (station_.id,))


async def existing_stations(cursor: Cursor, stations_: Collection[int]) -> set[int]:
    """Those of the keys whose stations have not been deleted."""
    await cursor.execute("SELECT id FROM stations.station WHERE id = ANY(%s)", (list(stations_),))
    return {found for (found,) in await cursor.fetchall()}


async def known_stations(cursor: Cursor, identities_: Sequence[str]) -> dict[str, Station]:
    """Those of the identities that the tenant has, locked in one order."""
    found = await rows(
        cursor,
        Station,
        f"SELECT {_STATION} FROM stations.station WHERE identity = ANY(%s) ORDER BY id FOR UPDATE",
        (list(identities_),),
    )
    return {one.identity: one for one in found}


async def sites_named(cursor: Cursor, names: Collection[str]) -> dict[str, int]:
    """Keys of sites by their name in lower case."""
    await cursor.execute(
        "SELECT lower(wanted.name), s.id FROM unnest(%s::text[]) AS wanted (name)"
        " JOIN stations.site s ON lower(s.name) = lower(wanted.name)",
        (list(names),),
    )
    return dict(await cursor.fetchall())


async def known_sites(cursor: Cursor, ids: Collection[int]) -> set[int]:
    await cursor.execute("SELECT id FROM stations.site WHERE id = ANY(%s)", (list(ids),))
    return {site_id for (site_id,) in await cursor.fetchall()}


async def add_stations(
    cursor: Cursor, tenant: TenantId, new: Sequence[NewRow], now: datetime, expires_at: datetime
) -> set[str]:
    """Enter expected stations with their claim codes; returns the identities that were free."""
    await cursor.execute(
        "WITH given AS (SELECT * FROM unnest(%(identities)s::text[], %(names)s::text[],"
        "   %(sites)s::int[], %(digests)s::bytea[]) AS g (identity, name, site_id, digest)),"
        " made AS (INSERT INTO stations.station (tenant_id, identity, name, site_id, registration,"
        "   created_at, updated_at)"
        "   SELECT %(tenant)s, identity, name, site_id, 'expected', %(now)s, %(now)s FROM given"
        "   ON CONFLICT DO NOTHING RETURNING id, identity),"
        " codes AS (INSERT INTO stations.claim (station_id, tenant_id, digest, created_at,"
        "   expires_at) SELECT made.id, %(tenant)s, given.digest, %(now)s, %(expires)s"
        "   FROM made JOIN given USING (identity))"
        " SELECT identity FROM made",
        {
            "identities": [one.identity for one in new],
            "names": [one.name for one in new],
            "sites": [one.site_id for one in new],
            "digests": [one.digest for one in new],
            "tenant": tenant,
            "now": now,
            "expires": expires_at,
        },
    )
    return {identity for (identity,) in await cursor.fetchall()}


async def enlist(
    cursor: Cursor, tenant: TenantId, identities_: Sequence[str], registration: str, now: datetime
) -> None:
    """Enter stations that connected without being announced; those that exist stay as they are."""
    await cursor.execute(
        "INSERT INTO stations.station (tenant_id, identity, registration, created_at, updated_at)"
        " SELECT %s, identity, %s, %s, %s FROM unnest(%s::text[]) AS g (identity)"
        " ON CONFLICT DO NOTHING",
        (tenant, registration, now, now, list(identities_)),
    )


async def joined(cursor: Cursor, stations_: Sequence[int], now: datetime) -> None:
    """Expected stations that are here now; a claim code stays good for an agent."""
    await cursor.execute(
        "UPDATE stations.station SET registration = 'registered', registered_at = %s,"
        " updated_at = %s WHERE id = ANY(%s) AND registration = 'expected'",
        (now, now, list(stations_)),
    )


async def change_stations(
    cursor: Cursor, changes: Sequence[tuple[int, str, int | None]], now: datetime
) -> None:
    """Set name and site of many (key, name, site)."""
    await cursor.execute(
        "UPDATE stations.station s SET name = c.name, site_id = c.site_id, updated_at = %s"
        " FROM unnest(%s::int[], %s::text[], %s::int[]) AS c (id, name, site_id)"
        " WHERE s.id = c.id",
        (now, *(list(column) for column in zip(*changes, strict=True))),
    )


async def set_registration(
    cursor: Cursor,
    station_id: int,
    registration: str,
    registered_at: datetime | None,
    now: datetime,
) -> None:
    await cursor.execute(
        "UPDATE stations.station SET registration = %s, updated_at = %s,"
        " registered_at = coalesce(%s, registered_at) WHERE id = %s",
        (registration, now, registered_at, station_id),
    )


async def forget_pending(cursor: Cursor, station_id: int) -> None:
    await cursor.execute(
        "DELETE FROM stations.station WHERE id = %s AND registration = 'pending'", (station_id,)
    )


async def count_pending(cursor: Cursor) -> int:
    await cursor.execute("SELECT count(*) FROM stations.station WHERE registration = 'pending'")
    found = await cursor.fetchone()
    return int(found[0]) if found else 0


# --------------------------------------------------------------------------- claims


async def set_claim(
    cursor: Cursor, tenant: TenantId, station_id: int, claim: ClaimCode, now: datetime
) -> None:
    """The station's one claim code; an earlier one is void."""
    await cursor.execute(
        "INSERT INTO stations.claim (station_id, tenant_id, digest, created_at, expires_at)"
        " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (station_id) DO UPDATE SET"
        " digest = excluded.digest, created_at = excluded.created_at,"
        " expires_at = excluded.expires_at",
        (station_id, tenant, claim.digest, now, claim.expires_at),
    )
    await _forget_used(cursor, station_id)


async def claim(cursor: Cursor, station_id: int) -> ClaimCode | None:
    """The code that is good, or the one that was used last."""
    return await row(
        cursor,
        ClaimCode,
        "SELECT digest, expires_at, NULL::bytea AS used_by FROM stations.claim"
        " WHERE station_id = %(id)s UNION ALL"
        " SELECT digest, expires_at, used_by FROM stations.used_claim WHERE station_id = %(id)s"
        " ORDER BY used_by NULLS FIRST LIMIT 1",
        {"id": station_id},
    )


async def extend_claim(cursor: Cursor, station_id: int, expires_at: datetime) -> None:
    await cursor.execute(
        "UPDATE stations.claim SET expires_at = %s WHERE station_id = %s",
        (expires_at, station_id),
    )


async def use_claim(
    cursor: Cursor, tenant: TenantId, station_id: int, used: ClaimCode | None, until: datetime
) -> None:
    """The code is used up, but for the owner of `used.used_by`, who may repeat it until then."""
    await cursor.execute("DELETE FROM stations.claim WHERE station_id = %s", (station_id,))
    if used is None or used.used_by is None:
        await _forget_used(cursor, station_id)
        return
    await cursor.execute(
        "INSERT INTO stations.used_claim (station_id, tenant_id, digest, used_by, expires_at)"
        " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (station_id) DO UPDATE SET"
        " digest = excluded.digest, used_by = excluded.used_by, expires_at = CASE"
        " WHEN used_claim.digest = excluded.digest THEN used_claim.expires_at"
        " ELSE excluded.expires_at END",
        (station_id, tenant, used.digest, used.used_by, until),
    )


async def _forget_used(cursor: Cursor, station_id: int) -> None:
    await cursor.execute("DELETE FROM stations.used_claim WHERE station_id = %s", (station_id,))


# --------------------------------------------------------------------------- EVSEs and states


async def describe_evses(
    cursor: Cursor,
    tenant: TenantId,
    station_id: int,
    evses: Sequence[EvseDescription],
    now: datetime,
) -> None:
    """The station's EVSEs as it tells them now; those it no longer tells are gone since then."""
    await cursor.execute(
        "UPDATE stations.evse SET gone_at = %s"
        " WHERE station_id = %s AND NOT evse = ANY(%s) AND gone_at IS NULL",
        (now, station_id, [evse.evse for evse in evses]),
    )
    for evse in evses:
        await cursor.execute(
            "INSERT INTO stations.evse (tenant_id, station_id, evse, phases, max_ma,"
            " energy_step_wh, billing_grade) VALUES (%s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (station_id, evse) DO UPDATE SET phases = excluded.phases,"
            " max_ma = excluded.max_ma, energy_step_wh = excluded.energy_step_wh,"
            " billing_grade = excluded.billing_grade, gone_at = NULL",
            (
                tenant,
                station_id,
                evse.evse,
                evse.phases,
                evse.max_ma,
                evse.energy_step_wh,
                evse.billing_grade,
            ),
        )
        await cursor.execute(
            "DELETE FROM stations.connector WHERE station_id = %s AND evse = %s AND connector > %s",
            (station_id, evse.evse, evse.connectors),
        )
        await cursor.execute(
            "INSERT INTO stations.connector (tenant_id, station_id, evse, connector)"
            " SELECT %s, %s, %s, generate_series(1, %s) ON CONFLICT DO NOTHING",
            (tenant, station_id, evse.evse, evse.connectors),
        )


_EVSE = (
    "e.station_id, e.evse, e.phases, e.max_ma, e.energy_step_wh, e.billing_grade, e.gone_at,"
    " array(SELECT c.connector FROM stations.connector c WHERE c.station_id = e.station_id"
    "       AND c.evse = e.evse ORDER BY 1) AS connectors"
)


async def evses(cursor: Cursor, stations_: Collection[int]) -> list[Evse]:
    return await rows(
        cursor,
        Evse,
        f"SELECT {_EVSE} FROM stations.evse e WHERE e.station_id = ANY(%s)"
        " ORDER BY e.station_id, e.evse",
        (list(stations_),),
    )


EVSES: Final = Sorts(
    "station",
    Column("(e.station_id::bigint << 32) + e.evse", int),
    station=Column("s.identity"),
    status=Column("t.status", nullable=True),
    at=Column("t.at", datetime, nullable=True),
)


async def fleet_evses(
    cursor: Cursor,
    part: Part,
    *,
    station_id: int | None,
    site: int | None,
    status: str | None,
    gone: bool | None,
) -> Cut[Evse]:
    """EVSEs of the whole fleet, or of one station or site."""
    where = (
        Where()
        .add("e.station_id = {}", station_id)
        .add("s.site_id = {}", site)
        .add("t.status = {}", status)
        .add("(e.gone_at IS NOT NULL) = {}", gone)
    )
    source: LiteralString = "stations.evse e"
    if site is not None or part.sort.removeprefix("-") == "station":
        source += " JOIN stations.station s ON s.id = e.station_id"
    if status is not None or part.sort.removeprefix("-") != "station":
        source += (
            " LEFT JOIN stations.evse_state t ON t.station_id = e.station_id AND t.evse = e.evse"
        )
    return await select_page(cursor, Evse, part, _EVSE, source, where)


CONNECTORS: Final = Sorts(
    "connector", Column("c.connector", int), connector=Column("c.connector", int)
)


async def connectors(cursor: Cursor, part: Part, station_id: int, evse: int) -> Cut[Connector]:
    where = Where().add("station_id = {}", station_id).add("evse = {}", evse)
    source = "stations.connector c JOIN stations.evse e USING (station_id, evse)"
    columns = "evse, c.connector, e.gone_at IS NOT NULL AS gone"
    return await select_page(cursor, Connector, part, columns, source, where)


_EVSE_STATE = (
    "station_id, evse, outbox, seq, at, received_at, measured_at, status, charging_state,"
    " transaction, offered_ma, limited_by, error"
)
_EVSE_STATES: Final = (
    f"SELECT {_EVSE_STATE} FROM stations.evse_state WHERE station_id = ANY(%s::int[])"
    " ORDER BY station_id, evse"
)
_evse_state = attrgetter(*_EVSE_STATE.split(", "))
_STATION_STATE = (
    "station_id, outbox, seq, at, received_at, agent_version, boards, local_list_version,"
    " pending_billing, pending_telemetry, journal_bytes, alarms, network, hardware"
)


def evse_states_ask(stations_: Iterable[int]) -> Ask:
    """What `evse_states` asks."""
    return Ask(_EVSE_STATES, (literal(sorted(stations_)),))


async def evse_states(cursor: Cursor, stations_: Iterable[int]) -> list[EvseState]:
    return [EvseState(*values) for values in await cursor.ask(*evse_states_ask(stations_))]


async def station_states(cursor: Cursor, stations_: Collection[int]) -> list[StationState]:
    return await rows(
        cursor,
        StationState,
        f"SELECT {_STATION_STATE} FROM stations.station_state WHERE station_id = ANY(%s)",
        (list(stations_),),
    )


async def put_evse_states(cursor: Cursor, states: Sequence[tuple[TenantId, EvseState]]) -> None:
    if not states:
        return
    ordered = sorted(states, key=lambda one: (one[1].station_id, one[1].evse))
    columns = zip(*((tenant, *_evse_state(state)) for tenant, state in ordered), strict=True)
    await cursor.at_last(
        f"INSERT INTO stations.evse_state (tenant_id, {_EVSE_STATE})"
        " SELECT * FROM unnest(%s::int[], %s::int[], %s::int[], %s::uuid[], %s::bigint[],"
        " %s::timestamptz[], %s::timestamptz[], %s::timestamptz[], %s::text[], %s::text[],"
        " %s::uuid[], %s::int[], %s::text[], %s::text[])"
        " ON CONFLICT (station_id, evse) DO UPDATE SET outbox = excluded.outbox,"
        " seq = excluded.seq, at = excluded.at, received_at = excluded.received_at,"
        " measured_at = excluded.measured_at, status = excluded.status,"
        " charging_state = excluded.charging_state, transaction = excluded.transaction,"
        " offered_ma = excluded.offered_ma, limited_by = excluded.limited_by,"
        " error = excluded.error",
        [list(column) for column in columns],
    )


async def discover(cursor: Cursor, places: Collection[Place]) -> None:
    """Enter EVSEs and connectors that were not known; nothing is known of them but that."""
    if not places:
        return
    unique = sorted(set(places))
    columns = [list(column) for column in zip(*unique, strict=True)]
    await cursor.at_last(
        "WITH told AS (SELECT t.* FROM unnest(%s::int[], %s::int[], %s::int[], %s::int[])"
        "   AS t (station_id, tenant_id, evse, connector)"
        "   JOIN stations.station s ON s.id = t.station_id"
        "   WHERE NOT EXISTS (SELECT FROM stations.connector c WHERE c.station_id = t.station_id"
        "     AND c.evse = t.evse AND c.connector = t.connector)),"
        " evse AS (INSERT INTO stations.evse (tenant_id, station_id, evse)"
        "   SELECT DISTINCT tenant_id, station_id, evse FROM told ON CONFLICT DO NOTHING)"
        " INSERT INTO stations.connector (tenant_id, station_id, evse, connector)"
        " SELECT tenant_id, station_id, evse, connector FROM told ON CONFLICT DO NOTHING",
        columns,
    )


_HARDWARE = (
    "station_id, vendor, model, serial, firmware, iccid, imsi, meter_type, meter_serial, reason,"
    " booted_at"
)


async def put_hardware(cursor: Cursor, booted: Sequence[tuple[TenantId, Hardware]]) -> None:
    ordered = sorted(booted, key=lambda one: one[1].station_id)
    columns = zip(*((tenant, *astuple(hardware)) for tenant, hardware in ordered), strict=True)
    await cursor.execute(
        f"INSERT INTO stations.hardware (tenant_id, {_HARDWARE})"
        " SELECT * FROM unnest(%s::int[], %s::int[], %s::text[], %s::text[], %s::text[],"
        " %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],"
        " %s::timestamptz[]) ON CONFLICT (station_id) DO UPDATE SET vendor = excluded.vendor,"
        " model = excluded.model, serial = excluded.serial, firmware = excluded.firmware,"
        " iccid = excluded.iccid, imsi = excluded.imsi, meter_type = excluded.meter_type,"
        " meter_serial = excluded.meter_serial, reason = excluded.reason,"
        " booted_at = excluded.booted_at",
        [list(column) for column in columns],
    )


async def hardware(cursor: Cursor, stations_: Collection[int]) -> list[Hardware]:
    return await rows(
        cursor,
        Hardware,
        f"SELECT {_HARDWARE} FROM stations.hardware WHERE station_id = ANY(%s)",
        (list(stations_),),
    )


async def note_charging(
    cursor: Cursor, states: Collection[tuple[int, int, UUID | None, str | None]]
) -> None:
    """What transactions tell of EVSEs: (station, EVSE, its open transaction, charging state)."""
    if not states:
        return
    latest = {(station, evse): (tx, state) for station, evse, tx, state in states}
    rows_ = [(*key, *latest[key]) for key in sorted(latest)]
    await cursor.at_last(
        "UPDATE stations.evse_state t SET transaction = k.transaction,"
        " charging_state = coalesce(k.charging_state, t.charging_state)"
        " FROM unnest(%s::int[], %s::int[], %s::uuid[], %s::text[])"
        " AS k (station_id, evse, transaction, charging_state)"
        " WHERE t.station_id = k.station_id AND t.evse = k.evse",
        [list(column) for column in zip(*rows_, strict=True)],
    )


async def put_station_states(
    cursor: Cursor, states: Sequence[tuple[TenantId, StationState]]
) -> None:
    await cursor.executemany(
        f"INSERT INTO stations.station_state (tenant_id, {_STATION_STATE})"
        " VALUES (%(tenant)s, %(station_id)s, %(outbox)s, %(seq)s, %(at)s, %(received_at)s,"
        " %(agent_version)s, %(boards)s, %(local_list_version)s, %(pending_billing)s,"
        " %(pending_telemetry)s, %(journal_bytes)s, %(alarms)s, %(network)s, %(hardware)s)"
        " ON CONFLICT (station_id) DO UPDATE SET outbox = excluded.outbox, seq = excluded.seq,"
        " at = excluded.at, received_at = excluded.received_at,"
        " agent_version = excluded.agent_version, boards = excluded.boards,"
        " local_list_version = excluded.local_list_version,"
        " pending_billing = excluded.pending_billing,"
        " pending_telemetry = excluded.pending_telemetry,"
        " journal_bytes = excluded.journal_bytes, alarms = excluded.alarms,"
        " network = excluded.network, hardware = excluded.hardware",
        [
            {
                **asdict(state),
                "tenant": tenant,
                "boards": Jsonb(state.boards),
                "alarms": Jsonb(state.alarms),
                "network": None if state.network is None else Jsonb(state.network),
            }
            for tenant, state in states
        ],
    )


async def list_versions(cursor: Cursor, tenant: TenantId) -> dict[int, int]:
    """The local list's version of every station that has told one."""
    await cursor.execute(
        "SELECT station_id, local_list_version FROM stations.station_state WHERE tenant_id = %s",
        (tenant,),
    )
    return dict(await cursor.fetchall())


# --------------------------------------------------------------------------- boot clocks


async def put_boot_clock(
    cursor: Cursor, tenant: TenantId, station_id: int, boot: UUID, clock: BootClock
) -> None:
    """Keep what is known of a boot's clock; a cloud-given offset does not replace an exact one."""
    await cursor.execute(
        "INSERT INTO stations.boot_clock AS b (tenant_id, station_id, boot, offset_ms, quality)"
        " VALUES (%s, %s, %s, %s, %s) ON CONFLICT (station_id, boot) DO UPDATE SET"
        " offset_ms = excluded.offset_ms, quality = excluded.quality"
        " WHERE b.quality <> 'synced' OR excluded.quality = 'synced'",
        (tenant, station_id, boot, clock.offset_ms, str(clock.quality)),
    )


async def boot_clocks(
    cursor: Cursor, boots: Collection[tuple[int, UUID]]
) -> dict[tuple[int, UUID], BootClock]:
    """The clocks that are known of these (station, boot) pairs."""
    if not boots:
        return {}
    await cursor.execute(
        "SELECT b.station_id, b.boot, b.offset_ms, b.quality FROM stations.boot_clock b"
        " JOIN unnest(%s::int[], %s::uuid[]) AS wanted (station_id, boot)"
        " USING (station_id, boot)",
        ([station_id for station_id, _ in boots], [boot for _, boot in boots]),
    )
    return {
        (station_id, boot): BootClock(offset_ms, Dating(quality))
        for station_id, boot, offset_ms, quality in await cursor.fetchall()
    }


# --------------------------------------------------------------------------- security events


async def put_security_event(
    cursor: Cursor, tenant: TenantId, station_id: int, fact: SecurityEvent, at: datetime
) -> None:
    await cursor.execute(
        "INSERT INTO stations.security_event (tenant_id, station_id, id, at, type, text)"
        " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (tenant, station_id, fact.id, at, fact.type, fact.text),
    )


# --------------------------------------------------------------------------- the fleet at a glance


@dataclass(frozen=True)
class FleetStation:
    """A station, and what it runs as far as it has told."""

    id: int
    identity: str
    site_id: int | None
    agent_version: str
    boards: dict[str, str]
    model: str
    firmware: str
    """Of a station that speaks OCPP itself."""
    hardware: list[str]
    """Hardware ids that its agent has told."""


async def fleet(cursor: Cursor) -> list[FleetStation]:
    """Every station of the unit of work's tenant."""
    return await rows(
        cursor,
        FleetStation,
        "SELECT s.id, s.identity, s.site_id, coalesce(a.agent_version, '') AS agent_version,"
        " coalesce(a.boards, '{}') AS boards, coalesce(h.model, '') AS model,"
        " coalesce(h.firmware, '') AS firmware, coalesce(a.hardware, '{}') AS hardware"
        " FROM stations.station s"
        " LEFT JOIN stations.station_state a ON a.station_id = s.id"
        " LEFT JOIN stations.hardware h ON h.station_id = s.id ORDER BY s.id",
    )


async def agent_versions(cursor: Cursor, stations_: Collection[int]) -> dict[int, str]:
    """What the stations' agents run, as they told last."""
    await cursor.execute(
        "SELECT station_id, agent_version FROM stations.station_state WHERE station_id = ANY(%s)",
        (list(stations_),),
    )
    return dict(await cursor.fetchall())
