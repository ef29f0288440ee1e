"""All SQL of what stations hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from cloud.configuration.changes import (
    OUR_SOURCE,
    Ended,
    LimitRow,
    ListRow,
    ProfileRow,
    ReservationRow,
    VariableKey,
    VariableRow,
)
from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import jsonb, literal, row, rows
from protocols.ocpp.effects import ProfilesCleared

TABLES: Final = (
    "variable",
    "charging_profile",
    "external_limit",
    "reservation",
    "local_list",
    "desired_settings",
    "reported_settings",
)


async def hand_over(cursor: Cursor, station_id: int, tenant: TenantId) -> None:
    """What describes the device goes along with it."""
    for table in TABLES:
        await cursor.execute(
            f"UPDATE configuration.{table} SET tenant_id = %s WHERE station_id = %s",
            (tenant, station_id),
        )


async def forget_station(cursor: Cursor, station_id: int) -> None:
    for table in TABLES:
        await cursor.execute(
            f"DELETE FROM configuration.{table} WHERE station_id = %s", (station_id,)
        )


# --------------------------------------------------------------------------- variables


async def put_variables(cursor: Cursor, told: Mapping[VariableKey, VariableRow]) -> None:
    """Put in or renew; what was not told this time of a variable's nature stays."""
    ordered = sorted(told.items())
    keys, values = [key for key, _ in ordered], [value for _, value in ordered]
    await cursor.execute(
        "INSERT INTO configuration.variable AS v (station_id, component, component_instance,"
        " evse, connector, variable, variable_instance, attribute, tenant_id, value, mutability,"
        " characteristics, at)"
        " SELECT * FROM unnest(%s::int[], %s::text[], %s::text[], %s::int[], %s::int[],"
        "  %s::text[], %s::text[], %s::text[], %s::int[], %s::text[], %s::text[], %s::jsonb[],"
        "  %s::timestamptz[])"
        " ON CONFLICT (station_id, component, component_instance, evse, connector, variable,"
        "  variable_instance, attribute) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " value = excluded.value, at = excluded.at,"
        " mutability = CASE WHEN excluded.mutability = '' THEN v.mutability"
        "  ELSE excluded.mutability END,"
        " characteristics = CASE WHEN excluded.characteristics = '{}' THEN v.characteristics"
        "  ELSE excluded.characteristics END",
        (
            literal(key.station for key in keys),
            [key.component for key in keys],
            [key.component_instance for key in keys],
            literal(key.evse for key in keys),
            literal(key.connector for key in keys),
            [key.variable for key in keys],
            [key.variable_instance for key in keys],
            [key.attribute for key in keys],
            literal(value.tenant for value in values),
            [value.value for value in values],
            [value.mutability if value.described else "" for value in values],
            [jsonb(value.characteristics) for value in values],
            [value.at for value in values],
        ),
    )


@dataclass(frozen=True)
class VariableHeld:
    component: str
    component_instance: str
    evse: int
    connector: int
    variable: str
    variable_instance: str
    attribute: str
    value: str | None
    mutability: str
    characteristics: dict[str, Any]
    at: datetime


VARIABLES: Final = Sorts(
    "variable",
    Column("id", int),
    variable=Column("variable"),
    component=Column("component"),
    at=Column("at", datetime),
)


async def variables(
    cursor: Cursor,
    part: Part,
    station_id: int,
    component: str | None,
    evse: int | None,
    text: str | None,
) -> Cut[VariableHeld]:
    where = (
        Where("station_id = %(station)s", station=station_id)
        .add("component = {}", component)
        .add("evse = {}", evse)
        .add("strpos(lower(component || ' ' || variable), lower({})) > 0", text)
    )
    return await select_page(
        cursor,
        VariableHeld,
        part,
        "component, component_instance, evse, connector, variable, variable_instance, attribute,"
        " value, mutability, characteristics, at",
        "configuration.variable",
        where,
    )


# --------------------------------------------------------------------------- profiles, limits


async def clear_profiles(cursor: Cursor, cleared: Sequence[tuple[int, ProfilesCleared]]) -> None:
    """Take out what the criteria name; a profile that others set goes by its id only."""
    await cursor.execute(
        "DELETE FROM configuration.charging_profile p"
        " USING unnest(%s::int[], %s::bigint[], %s::int[], %s::text[], %s::int[])"
        " AS c (station_id, id, evse, purpose, stack_level)"
        " WHERE p.station_id = c.station_id AND CASE WHEN c.id IS NOT NULL"
        " THEN p.profile_id = c.id ELSE p.source = %s"
        " AND p.evse = coalesce(c.evse, p.evse) AND p.purpose = coalesce(c.purpose, p.purpose)"
        " AND p.stack_level = coalesce(c.stack_level, p.stack_level) END",
        (
            literal(station for station, _ in cleared),
            [one.id for _, one in cleared],
            [one.evse for _, one in cleared],
            [one.purpose for _, one in cleared],
            [one.stack_level for _, one in cleared],
            OUR_SOURCE,
        ),
    )


async def put_profiles(cursor: Cursor, told: Mapping[tuple[int, int], ProfileRow]) -> None:
    ordered = sorted(told.items(), key=lambda one: one[0])
    await cursor.execute(
        "INSERT INTO configuration.charging_profile AS p (station_id, profile_id, tenant_id, evse,"
        " purpose, stack_level, source, profile, command, at)"
        " SELECT * FROM unnest(%s::int[], %s::bigint[], %s::int[], %s::int[], %s::text[],"
        "  %s::int[], %s::text[], %s::jsonb[], %s::uuid[], %s::timestamptz[])"
        " ON CONFLICT (station_id, profile_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " evse = excluded.evse, purpose = excluded.purpose, stack_level = excluded.stack_level,"
        " source = excluded.source, profile = excluded.profile, at = excluded.at,"
        " command = coalesce(excluded.command, p.command)",
        (
            literal(station for (station, _), _ in ordered),
            literal(number for (_, number), _ in ordered),
            literal(one.tenant for _, one in ordered),
            literal(one.evse for _, one in ordered),
            [one.purpose for _, one in ordered],
            literal(one.stack_level for _, one in ordered),
            [one.source for _, one in ordered],
            [jsonb(one.profile) for _, one in ordered],
            [one.command for _, one in ordered],
            [one.at for _, one in ordered],
        ),
    )


@dataclass(frozen=True)
class ProfileHeld:
    profile_id: int
    evse: int
    purpose: str
    stack_level: int
    source: str
    profile: dict[str, Any]
    command: UUID | None
    at: datetime


PROFILES: Final = Sorts(
    "evse",
    Column("profile_id", int),
    evse=Column("evse", int),
    stack_level=Column("stack_level", int),
    at=Column("at", datetime),
)


async def profiles(
    cursor: Cursor, part: Part, station_id: int, evse: int | None, purpose: str | None
) -> Cut[ProfileHeld]:
    where = (
        Where("station_id = %(station)s", station=station_id)
        .add("evse = {}", evse)
        .add("purpose = {}", purpose)
    )
    return await select_page(
        cursor,
        ProfileHeld,
        part,
        "profile_id, evse, purpose, stack_level, source, profile, command, at",
        "configuration.charging_profile",
        where,
    )


async def lift_limits(cursor: Cursor, lifted: Sequence[tuple[int, int | None, str]]) -> None:
    await cursor.execute(
        "DELETE FROM configuration.external_limit l"
        " USING unnest(%s::int[], %s::int[], %s::text[]) AS g (station_id, evse, source)"
        " WHERE l.station_id = g.station_id AND l.source = g.source"
        " AND l.evse = coalesce(g.evse, l.evse)",
        (
            literal(station for station, _, _ in lifted),
            [evse for _, evse, _ in lifted],
            [source for _, _, source in lifted],
        ),
    )


async def put_limits(cursor: Cursor, told: Mapping[tuple[int, int, str], LimitRow]) -> None:
    ordered = sorted(told.items(), key=lambda one: one[0])
    await cursor.execute(
        "INSERT INTO configuration.external_limit (station_id, evse, source, tenant_id,"
        " is_grid_critical, schedules, at)"
        " SELECT * FROM unnest(%s::int[], %s::int[], %s::text[], %s::int[], %s::bool[],"
        "  %s::jsonb[], %s::timestamptz[])"
        " ON CONFLICT (station_id, evse, source) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " is_grid_critical = excluded.is_grid_critical, schedules = excluded.schedules,"
        " at = excluded.at",
        (
            literal(station for (station, _, _), _ in ordered),
            literal(evse for (_, evse, _), _ in ordered),
            [source for (_, _, source), _ in ordered],
            literal(one.tenant for _, one in ordered),
            [one.is_grid_critical for _, one in ordered],
            [jsonb(one.schedules) for _, one in ordered],
            [one.at for _, one in ordered],
        ),
    )


@dataclass(frozen=True)
class LimitHeld:
    evse: int
    source: str
    is_grid_critical: bool
    schedules: list[Any]
    at: datetime


LIMITS: Final = Sorts("evse", Column("source"), evse=Column("evse", int), at=Column("at", datetime))


async def limits(cursor: Cursor, part: Part, station_id: int) -> Cut[LimitHeld]:
    where = Where("station_id = %(station)s", station=station_id)
    return await select_page(
        cursor,
        LimitHeld,
        part,
        "evse, source, is_grid_critical, schedules, at",
        "configuration.external_limit",
        where,
    )


# --------------------------------------------------------------------------- reservations


async def put_reservations(cursor: Cursor, told: Mapping[tuple[int, int], ReservationRow]) -> None:
    ordered = sorted(told.items(), key=lambda one: one[0])
    await cursor.execute(
        "INSERT INTO configuration.reservation AS r (station_id, reservation_id, tenant_id, evse,"
        " connector_type, status, expires_at, command, at)"
        " SELECT k.station_id, k.reservation_id, k.tenant_id, k.evse, k.connector_type, 'active',"
        "  k.expires_at, k.command, k.at"
        " FROM unnest(%s::int[], %s::bigint[], %s::int[], %s::int[], %s::text[],"
        "  %s::timestamptz[], %s::uuid[], %s::timestamptz[]) AS k (station_id, reservation_id,"
        "  tenant_id, evse, connector_type, expires_at, command, at)"
        " ON CONFLICT (station_id, reservation_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " evse = excluded.evse, connector_type = excluded.connector_type, status = 'active',"
        " expires_at = excluded.expires_at, command = excluded.command, at = excluded.at"
        " WHERE r.command IS DISTINCT FROM excluded.command",
        (
            literal(station for (station, _), _ in ordered),
            literal(number for (_, number), _ in ordered),
            literal(one.tenant for _, one in ordered),
            literal(one.evse for _, one in ordered),
            [one.connector_type for _, one in ordered],
            [one.expires_at for _, one in ordered],
            literal(one.command for _, one in ordered),
            [one.at for _, one in ordered],
        ),
    )


@dataclass(frozen=True)
class ReservationEnd:
    station_id: int
    tenant_id: int
    reservation_id: int
    status: str


async def end_reservations(
    cursor: Cursor, ended: Mapping[tuple[int, int], Ended]
) -> list[ReservationEnd]:
    """Those that were active; a second end changes nothing."""
    ordered = sorted(ended.items(), key=lambda one: one[0])
    return await rows(
        cursor,
        ReservationEnd,
        "UPDATE configuration.reservation r SET status = e.status, at = e.at"
        " FROM unnest(%s::int[], %s::bigint[], %s::text[], %s::timestamptz[])"
        " AS e (station_id, reservation_id, status, at)"
        " WHERE r.station_id = e.station_id AND r.reservation_id = e.reservation_id"
        " AND r.status = 'active'"
        " RETURNING r.station_id, r.tenant_id, r.reservation_id, r.status",
        (
            literal(station for (station, _), _ in ordered),
            literal(number for (_, number), _ in ordered),
            [one.status for _, one in ordered],
            [one.at for _, one in ordered],
        ),
    )


@dataclass(frozen=True)
class ReservationHeld:
    reservation_id: int
    evse: int
    connector_type: str
    status: str
    expires_at: datetime
    command: UUID | None
    at: datetime


RESERVATIONS: Final = Sorts(
    "-expires_at",
    Column("reservation_id", int),
    expires_at=Column("expires_at", datetime),
    at=Column("at", datetime),
)
_STATUS: Final = (
    "CASE WHEN status = 'active' AND expires_at < %(now)s THEN 'expired' ELSE status END"
)


async def reservations(
    cursor: Cursor, part: Part, station_id: int, status: str | None, now: datetime
) -> Cut[ReservationHeld]:
    """A station that is away does not tell that one has expired: the time does."""
    where = Where("station_id = %(station)s", station=station_id, now=now).add(
        _STATUS + " = {}", status
    )
    return await select_page(
        cursor,
        ReservationHeld,
        part,
        f"reservation_id, evse, connector_type, {_STATUS} AS status, expires_at, command, at",
        "configuration.reservation",
        where,
    )


# --------------------------------------------------------------------------- local lists


async def put_lists(cursor: Cursor, told: Mapping[int, ListRow]) -> None:
    ordered = sorted(told.items())
    await cursor.execute(
        "INSERT INTO configuration.local_list (station_id, tenant_id, version, command, at)"
        " SELECT * FROM unnest(%s::int[], %s::int[], %s::bigint[], %s::uuid[],"
        "  %s::timestamptz[])"
        " ON CONFLICT (station_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " version = excluded.version, command = excluded.command, at = excluded.at",
        (
            literal(station for station, _ in ordered),
            literal(one.tenant for _, one in ordered),
            literal(one.version for _, one in ordered),
            literal(one.command for _, one in ordered),
            [one.at for _, one in ordered],
        ),
    )


@dataclass(frozen=True)
class ListStands:
    version: int
    command: UUID | None
    at: datetime


async def local_list(cursor: Cursor, station_id: int) -> ListStands | None:
    return await row(
        cursor,
        ListStands,
        "SELECT version, command, at FROM configuration.local_list WHERE station_id = %s",
        (station_id,),
    )
