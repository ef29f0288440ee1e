"""All SQL of stations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import errors
from psycopg.types.json import Jsonb

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import row, rows
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


@dataclass(frozen=True)
class Evse:
    station_id: int
    evse: int
    phases: int
    max_ma: int
    energy_step_wh: int
    billing_grade: bool
    connectors: list[int]


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


_SITE = "id, name, address, latitude, longitude, time_zone, created_at"
_STATION = "id, tenant_id, identity, name, site_id, registration, created_at, registered_at"

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
        f" created_at) VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING {_STATION}",
        (tenant, identity, name, site_id, registration, now),
    )


async def station(cursor: Cursor, identity: str, *, lock: bool = False) -> Station | None:
    found = await row(
        cursor,
        Station,
        f"SELECT {_STATION} FROM stations.station WHERE identity = %s",
        (identity,),
    )
    if found is not None and lock:
        await cursor.execute("SELECT FROM stations.station WHERE id = %s FOR UPDATE", (found.id,))
    return found


async def stations(
    cursor: Cursor,
    after: str,
    limit: int,
    *,
    site_id: int | None,
    registration: str | None,
    text: str | None,
) -> list[Station]:
    """Stations in order of their identity."""
    return await rows(
        cursor,
        Station,
        f"SELECT {_STATION} FROM stations.station WHERE identity > %(after)s"
        " AND (%(site)s::int IS NULL OR site_id = %(site)s)"
        " AND (%(registration)s::text IS NULL OR registration = %(registration)s)"
        " AND (%(text)s::text IS NULL"
        "      OR strpos(lower(identity || ' ' || name), lower(%(text)s)) > 0)"
        " ORDER BY identity LIMIT %(limit)s",
        {
            "after": after,
            "limit": limit,
            "site": site_id,
            "registration": registration,
            "text": text,
        },
    )


async def identities(cursor: Cursor, stations_: Collection[int]) -> dict[int, str]:
    await cursor.execute(
        "SELECT id, identity FROM stations.station WHERE id = ANY(%s)", (list(stations_),)
    )
    return dict(await cursor.fetchall())


async def change_station(
    cursor: Cursor, station_id: int, *, name: str | None, site_id: int | None
) -> None:
    await cursor.execute(
        "UPDATE stations.station SET name = coalesce(%s, name), site_id = coalesce(%s, site_id)"
        " WHERE id = %s",
        (name, site_id, station_id),
    )


async def set_registration(
    cursor: Cursor, station_id: int, registration: str, registered_at: datetime | None
) -> None:
    await cursor.execute(
        "UPDATE stations.station SET registration = %s, registered_at = coalesce(%s, registered_at)"
        " WHERE id = %s",
        (registration, registered_at, station_id),
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


async def claim(cursor: Cursor, station_id: int) -> ClaimCode | None:
    return await row(
        cursor,
        ClaimCode,
        "SELECT digest, expires_at FROM stations.claim WHERE station_id = %s",
        (station_id,),
    )


async def extend_claim(cursor: Cursor, station_id: int, expires_at: datetime) -> None:
    await cursor.execute(
        "UPDATE stations.claim SET expires_at = %s WHERE station_id = %s",
        (expires_at, station_id),
    )


async def use_claim(cursor: Cursor, station_id: int) -> None:
    await cursor.execute("DELETE FROM stations.claim WHERE station_id = %s", (station_id,))


# --------------------------------------------------------------------------- EVSEs and states


async def describe_evses(
    cursor: Cursor, tenant: TenantId, station_id: int, evses: Sequence[EvseDescription]
) -> None:
    """The station's EVSEs as it tells them now; those it no longer tells are gone."""
    await cursor.execute(
        "DELETE FROM stations.evse WHERE station_id = %s AND NOT evse = ANY(%s)",
        (station_id, [evse.evse for evse in evses]),
    )
    for evse in evses:
        await cursor.execute(
            "INSERT INTO stations.evse (tenant_id, station_id, evse, phases, max_ma,"
            " energy_step_wh, billing_grade) VALUES (%s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT (station_id, evse) DO UPDATE SET phases = excluded.phases,"
            " max_ma = excluded.max_ma, energy_step_wh = excluded.energy_step_wh,"
            " billing_grade = excluded.billing_grade",
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


async def evses(cursor: Cursor, stations_: Collection[int]) -> list[Evse]:
    return await rows(
        cursor,
        Evse,
        "SELECT e.station_id, e.evse, e.phases, e.max_ma, e.energy_step_wh, e.billing_grade,"
        " array(SELECT c.connector FROM stations.connector c WHERE c.station_id = e.station_id"
        "       AND c.evse = e.evse ORDER BY 1) AS connectors"
        " FROM stations.evse e WHERE e.station_id = ANY(%s) ORDER BY e.station_id, e.evse",
        (list(stations_),),
    )


_EVSE_STATE = (
    "station_id, evse, outbox, seq, at, received_at, measured_at, status, charging_state,"
    " transaction, offered_ma, limited_by, error"
)
_STATION_STATE = (
    "station_id, outbox, seq, at, received_at, agent_version, boards, local_list_version,"
    " pending_billing, pending_telemetry, journal_bytes"
)


async def evse_states(cursor: Cursor, stations_: Collection[int]) -> list[EvseState]:
    return await rows(
        cursor,
        EvseState,
        f"SELECT {_EVSE_STATE} FROM stations.evse_state WHERE station_id = ANY(%s)"
        " ORDER BY station_id, evse",
        (list(stations_),),
    )


async def station_states(cursor: Cursor, stations_: Collection[int]) -> list[StationState]:
    return await rows(
        cursor,
        StationState,
        f"SELECT {_STATION_STATE} FROM stations.station_state WHERE station_id = ANY(%s)",
        (list(stations_),),
    )


async def put_evse_states(cursor: Cursor, states: Sequence[tuple[TenantId, EvseState]]) -> None:
    await cursor.executemany(
        f"INSERT INTO stations.evse_state (tenant_id, {_EVSE_STATE})"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (station_id, evse) DO UPDATE SET outbox = excluded.outbox,"
        " seq = excluded.seq, at = excluded.at, received_at = excluded.received_at,"
        " measured_at = excluded.measured_at, status = excluded.status,"
        " charging_state = excluded.charging_state, transaction = excluded.transaction,"
        " offered_ma = excluded.offered_ma, limited_by = excluded.limited_by,"
        " error = excluded.error",
        [(tenant, *astuple(state)) for tenant, state in states],
    )


async def put_station_states(
    cursor: Cursor, states: Sequence[tuple[TenantId, StationState]]
) -> None:
    await cursor.executemany(
        f"INSERT INTO stations.station_state (tenant_id, {_STATION_STATE})"
        " VALUES (%(tenant)s, %(station_id)s, %(outbox)s, %(seq)s, %(at)s, %(received_at)s,"
        " %(agent_version)s, %(boards)s, %(local_list_version)s, %(pending_billing)s,"
        " %(pending_telemetry)s, %(journal_bytes)s)"
        " ON CONFLICT (station_id) DO UPDATE SET outbox = excluded.outbox, seq = excluded.seq,"
        " at = excluded.at, received_at = excluded.received_at,"
        " agent_version = excluded.agent_version, boards = excluded.boards,"
        " local_list_version = excluded.local_list_version,"
        " pending_billing = excluded.pending_billing,"
        " pending_telemetry = excluded.pending_telemetry,"
        " journal_bytes = excluded.journal_bytes",
        [
            {**asdict(state), "tenant": tenant, "boards": Jsonb(state.boards)}
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
