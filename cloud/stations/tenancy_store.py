"""SQL of stations that change hands: who owns one, who owned it when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.rows import literal, row
from cloud.kernel.turns import Ask


@dataclass(frozen=True)
class Owned:
    id: int
    tenant_id: TenantId
    identity: str


_FORMER: Final = (
    "SELECT station_id, tenant_id, until FROM stations.former WHERE station_id = ANY(%s::int[])"
    " ORDER BY station_id, until"
)


@dataclass(frozen=True)
class Former:
    """A tenant that owned the station until then."""

    station_id: int
    tenant_id: TenantId
    until: datetime


async def owner_held(cursor: Cursor, identity: str) -> Owned | None:
    """The station; it stays with its tenant until this transaction ends."""
    return await row(
        cursor,
        Owned,
        "SELECT id, tenant_id, identity FROM stations.station WHERE identity = %s FOR SHARE",
        (identity,),
    )


async def take(cursor: Cursor, identity: str) -> Owned | None:
    """The station, held against greetings and other moves, not against facts (foreign keys)."""
    return await row(
        cursor,
        Owned,
        "SELECT id, tenant_id, identity FROM stations.station WHERE identity = %s"
        " FOR NO KEY UPDATE",
        (identity,),
    )


async def site_id(cursor: Cursor, tenant: TenantId, name: str) -> int | None:
    await cursor.execute(
        "SELECT id FROM stations.site WHERE tenant_id = %s AND lower(name) = lower(%s)",
        (tenant, name),
    )
    found = await cursor.fetchone()
    return int(found[0]) if found else None


async def give(
    cursor: Cursor, station: Owned, tenant: TenantId, site: int | None, now: datetime
) -> None:
    """The station and what describes it to the tenant; open claim codes are void."""
    await cursor.execute(
        "UPDATE stations.station SET tenant_id = %s, site_id = %s WHERE id = %s",
        (tenant, site, station.id),
    )
    await cursor.execute("DELETE FROM stations.claim WHERE station_id = %s", (station.id,))
    await cursor.execute("DELETE FROM stations.used_claim WHERE station_id = %s", (station.id,))
    await cursor.execute(
        "WITH one AS (SELECT %(station)s::int AS station_id, %(tenant)s::int AS tenant_id),"
        " evse AS (UPDATE stations.evse t SET tenant_id = one.tenant_id FROM one"
        "   WHERE t.station_id = one.station_id),"
        " connector AS (UPDATE stations.connector t SET tenant_id = one.tenant_id FROM one"
        "   WHERE t.station_id = one.station_id),"
        " evse_state AS (UPDATE stations.evse_state t SET tenant_id = one.tenant_id FROM one"
        "   WHERE t.station_id = one.station_id),"
        " station_state AS (UPDATE stations.station_state t SET tenant_id = one.tenant_id"
        "   FROM one WHERE t.station_id = one.station_id),"
        " hardware AS (UPDATE stations.hardware t SET tenant_id = one.tenant_id FROM one"
        "   WHERE t.station_id = one.station_id),"
        " boot_clock AS (UPDATE stations.boot_clock t SET tenant_id = one.tenant_id FROM one"
        "   WHERE t.station_id = one.station_id)"
        " UPDATE stations.security_event t SET tenant_id = one.tenant_id FROM one"
        " WHERE t.station_id = one.station_id",
        {"station": station.id, "tenant": tenant},
    )
    await cursor.execute(
        "INSERT INTO stations.former (station_id, tenant_id, identity, until)"
        " VALUES (%s, %s, %s, %s)",
        (station.id, station.tenant_id, station.identity, now),
    )


async def keys_of(cursor: Cursor, identity: str) -> list[int]:
    """Keys of all stations that the caller's tenant ever had under the identity."""
    await cursor.execute(
        "SELECT id FROM stations.station WHERE identity = %(identity)s"
        " UNION SELECT station_id FROM stations.former WHERE identity = %(identity)s"
        " UNION SELECT id FROM stations.former_station WHERE identity = %(identity)s",
        {"identity": identity},
    )
    return [station for (station,) in await cursor.fetchall()]


async def stations_at(cursor: Cursor, site: int) -> list[int]:
    await cursor.execute("SELECT id FROM stations.station WHERE site_id = %s", (site,))
    return [station for (station,) in await cursor.fetchall()]


def former_owners_ask(stations: Iterable[int]) -> Ask:
    """What `former_owners` asks."""
    return Ask(_FORMER, (literal(sorted(stations)),))


async def former_owners(cursor: Cursor, stations: Iterable[int]) -> dict[int, list[Former]]:
    """Who owned these stations before, the earliest first; those that never moved are left out."""
    found: dict[int, list[Former]] = {}
    for values in await cursor.ask(*former_owners_ask(stations)):
        one = Former(*values)
        found.setdefault(one.station_id, []).append(one)
    return found
