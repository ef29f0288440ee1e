"""All SQL of what stations tell of their condition."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from cloud.diagnostics.transfers import Standing
from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import jsonb, literal, rows

TABLES: Final = (
    "security_event",
    "transfer",
    "transfer_status",
    "monitor",
    "display_message",
    "notice",
)


async def hand_over(cursor: Cursor, station_id: int, tenant: TenantId) -> None:
    """What describes the device goes along with it."""
    for table in TABLES:
        await cursor.execute(
            f"UPDATE diagnostics.{table} SET tenant_id = %s WHERE station_id = %s",
            (tenant, station_id),
        )


async def forget_station(cursor: Cursor, station_id: int) -> None:
    for table in TABLES:
        await cursor.execute(
            f"DELETE FROM diagnostics.{table} WHERE station_id = %s", (station_id,)
        )


# --------------------------------------------------------------------------- security events


@dataclass(frozen=True)
class SecurityRow:
    id: UUID
    station_id: int
    tenant_id: int
    at: datetime
    received_at: datetime
    type: str
    text: str


async def put_security_events(cursor: Cursor, told: Sequence[SecurityRow]) -> set[UUID]:
    """Returns those that are new: stations repeat what was not answered."""
    await cursor.execute(
        "INSERT INTO diagnostics.security_event"
        " (id, station_id, tenant_id, at, received_at, type, text)"
        " SELECT * FROM unnest(%s::uuid[], %s::int[], %s::int[], %s::timestamptz[],"
        "  %s::timestamptz[], %s::text[], %s::text[]) ON CONFLICT DO NOTHING RETURNING id",
        (
            literal(one.id for one in told),
            literal(one.station_id for one in told),
            literal(one.tenant_id for one in told),
            [one.at for one in told],
            [one.received_at for one in told],
            [one.type for one in told],
            [one.text for one in told],
        ),
    )
    return {found for (found,) in await cursor.fetchall()}


@dataclass(frozen=True)
class SecurityHeld:
    id: UUID
    at: datetime
    type: str
    text: str
    link: str


SECURITY: Final = Sorts("-at", Column("id", UUID), at=Column("at", datetime))
_BOTH: Final = (
    "(SELECT station_id, id, at, type, text, 'ocpp' AS link FROM diagnostics.security_event"
    " UNION ALL SELECT station_id, id, at, type, text, 'agent' FROM stations.api_security_event)"
    " AS e"
)


async def security_events(
    cursor: Cursor,
    part: Part,
    station_id: int,
    kind: str | None,
    start: datetime | None,
    end: datetime | None,
) -> Cut[SecurityHeld]:
    """Those that the station told itself, and those that its agent told."""
    where = (
        Where("station_id = %(station)s", station=station_id)
        .add("type = {}", kind)
        .add("at >= {}", start)
        .add("at < {}", end)
    )
    return await select_page(cursor, SecurityHeld, part, "id, at, type, text, link", _BOTH, where)


# --------------------------------------------------------------------------- transfers


@dataclass(frozen=True)
class NewTransfer:
    station_id: int
    tenant_id: int
    kind: str
    request_id: int | None
    command: UUID | None
    location: str
    filename: str
    expected_version: str
    status: str
    is_open: bool
    at: datetime


async def add_transfers(cursor: Cursor, asked: Sequence[NewTransfer]) -> None:
    """Enter them, each once, with their first status; earlier ones of the kind are over."""
    await cursor.execute(
        "WITH given AS (SELECT * FROM unnest(%s::int[], %s::int[], %s::text[], %s::bigint[],"
        "  %s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bool[],"
        "  %s::timestamptz[]) AS g (station_id, tenant_id, kind, request_id, command, location,"
        "  filename, expected_version, status, is_open, at)),"
        " made AS (INSERT INTO diagnostics.transfer (station_id, tenant_id, kind, request_id,"
        "  command, location, filename, expected_version, status, is_open, is_concluded,"
        "  asked_at, at) SELECT station_id, tenant_id, kind, request_id, command, location,"
        "  filename, expected_version, status, is_open, false, at, at FROM given"
        "  ON CONFLICT (command) DO NOTHING RETURNING *),"
        " closed AS (UPDATE diagnostics.transfer t SET is_open = false FROM made"
        "  WHERE t.station_id = made.station_id AND t.kind = made.kind AND t.is_open"
        "  AND t.kind = 'firmware')"
        " INSERT INTO diagnostics.transfer_status (transfer_id, station_id, tenant_id, status, at)"
        " SELECT id, station_id, tenant_id, status, at FROM made",
        (
            literal(one.station_id for one in asked),
            literal(one.tenant_id for one in asked),
            [one.kind for one in asked],
            [one.request_id for one in asked],
            [one.command for one in asked],
            [one.location for one in asked],
            [one.filename for one in asked],
            [one.expected_version for one in asked],
            [one.status for one in asked],
            [one.is_open for one in asked],
            [one.at for one in asked],
        ),
    )


async def standings(cursor: Cursor, stations: Collection[int]) -> dict[int, list[Standing]]:
    """The latest transfers of these stations, those asked last first."""
    found = await rows(
        cursor,
        Standing,
        "SELECT t.id, t.station_id, t.kind, t.request_id, t.expected_version, t.status,"
        " t.is_open, t.asked_at FROM unnest(%s::int[]) AS s (id), unnest(%s::text[]) AS k (kind)"
        " CROSS JOIN LATERAL (SELECT * FROM diagnostics.transfer t WHERE t.station_id = s.id"
        "  AND t.kind = k.kind ORDER BY t.asked_at DESC, t.id DESC LIMIT 20) t"
        " ORDER BY t.station_id, t.kind, t.asked_at DESC, t.id DESC",
        (literal(stations), literal(("firmware", "log"))),
    )
    held: dict[int, list[Standing]] = {}
    for one in found:
        held.setdefault(one.station_id, []).append(one)
    return held


@dataclass(frozen=True)
class Step:
    """A transfer's next status."""

    id: int
    station_id: int
    tenant_id: int
    status: str
    is_open: bool
    is_concluded: bool
    at: datetime


async def take_steps(cursor: Cursor, steps: Sequence[Step]) -> None:
    """The last step of each is where it stands; all of them are its history."""
    last = {one.id: one for one in steps}
    await cursor.execute(
        "UPDATE diagnostics.transfer t SET status = s.status, is_open = s.is_open,"
        " is_concluded = s.is_concluded, at = s.at"
        " FROM unnest(%s::bigint[], %s::text[], %s::bool[], %s::bool[], %s::timestamptz[])"
        " AS s (id, status, is_open, is_concluded, at) WHERE t.id = s.id",
        (
            literal(last),
            [one.status for one in last.values()],
            [one.is_open for one in last.values()],
            [one.is_concluded for one in last.values()],
            [one.at for one in last.values()],
        ),
    )
    await cursor.execute(
        "INSERT INTO diagnostics.transfer_status (transfer_id, station_id, tenant_id, status, at)"
        " SELECT * FROM unnest(%s::bigint[], %s::int[], %s::int[], %s::text[], %s::timestamptz[])",
        (
            literal(one.id for one in steps),
            literal(one.station_id for one in steps),
            literal(one.tenant_id for one in steps),
            [one.status for one in steps],
            [one.at for one in steps],
        ),
    )


@dataclass(frozen=True)
class TransferHeld:
    id: int
    request_id: int | None
    command: UUID | None
    location: str
    filename: str
    expected_version: str
    status: str
    is_open: bool
    is_concluded: bool
    asked_at: datetime
    at: datetime


@dataclass(frozen=True)
class StatusHeld:
    transfer_id: int
    status: str
    at: datetime


TRANSFERS: Final = Sorts(
    "-asked_at",
    Column("id", int),
    asked_at=Column("asked_at", datetime),
    at=Column("at", datetime),
)


async def transfers(
    cursor: Cursor, part: Part, station_id: int, kind: str, status: str | None
) -> tuple[Cut[TransferHeld], dict[int, list[StatusHeld]]]:
    """One page, and the history of each of its transfers, the earliest first."""
    where = Where(
        "station_id = %(station)s AND kind = %(kind)s", station=station_id, kind=kind
    ).add("status = {}", status)
    cut = await select_page(
        cursor,
        TransferHeld,
        part,
        "id, request_id, command, location, filename, expected_version, status, is_open,"
        " is_concluded, asked_at, at",
        "diagnostics.transfer",
        where,
    )
    history: dict[int, list[StatusHeld]] = {one.id: [] for one in cut.rows}
    for one in await rows(
        cursor,
        StatusHeld,
        "SELECT transfer_id, status, at FROM diagnostics.transfer_status"
        " WHERE transfer_id = ANY(%s::bigint[]) ORDER BY transfer_id, id",
        (literal(history),),
    ):
        history[one.transfer_id].append(one)
    return cut, history


# --------------------------------------------------------------------------- monitors, messages


@dataclass(frozen=True)
class MonitorRow:
    tenant_id: int
    component: dict[str, Any]
    variable: dict[str, Any]
    type: str
    value: float
    severity: int
    only_in_transaction: bool
    at: datetime


async def put_monitors(cursor: Cursor, told: Mapping[tuple[int, int], MonitorRow]) -> None:
    ordered = sorted(told.items(), key=lambda one: one[0])
    await cursor.execute(
        "INSERT INTO diagnostics.monitor (station_id, monitor_id, tenant_id, component, variable,"
        " type, value, severity, only_in_transaction, at)"
        " SELECT * FROM unnest(%s::int[], %s::bigint[], %s::int[], %s::jsonb[], %s::jsonb[],"
        "  %s::text[], %s::float8[], %s::int[], %s::bool[], %s::timestamptz[])"
        " ON CONFLICT (station_id, monitor_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " component = excluded.component, variable = excluded.variable, type = excluded.type,"
        " value = excluded.value, severity = excluded.severity,"
        " only_in_transaction = excluded.only_in_transaction, at = excluded.at",
        (
            literal(station for (station, _), _ in ordered),
            literal(number for (_, number), _ in ordered),
            literal(one.tenant_id for _, one in ordered),
            [jsonb(one.component) for _, one in ordered],
            [jsonb(one.variable) for _, one in ordered],
            [one.type for _, one in ordered],
            [one.value for _, one in ordered],
            literal(one.severity for _, one in ordered),
            [one.only_in_transaction for _, one in ordered],
            [one.at for _, one in ordered],
        ),
    )


async def remove_monitors(cursor: Cursor, gone: Collection[tuple[int, int]]) -> None:
    await cursor.execute(
        "DELETE FROM diagnostics.monitor m USING unnest(%s::int[], %s::bigint[])"
        " AS g (station_id, id) WHERE m.station_id = g.station_id AND m.monitor_id = g.id",
        (literal(station for station, _ in gone), literal(number for _, number in gone)),
    )


@dataclass(frozen=True)
class MonitorHeld:
    monitor_id: int
    component: dict[str, Any]
    variable: dict[str, Any]
    type: str
    value: float
    severity: int
    only_in_transaction: bool
    at: datetime


MONITORS: Final = Sorts(
    "severity",
    Column("monitor_id", int),
    severity=Column("severity", int),
    at=Column("at", datetime),
)


async def monitors(
    cursor: Cursor, part: Part, station_id: int, component: str | None, severity: int | None
) -> Cut[MonitorHeld]:
    where = (
        Where("station_id = %(station)s", station=station_id)
        .add("component ->> 'name' = {}", component)
        .add("severity <= {}", severity)
    )
    return await select_page(
        cursor,
        MonitorHeld,
        part,
        "monitor_id, component, variable, type, value, severity, only_in_transaction, at",
        "diagnostics.monitor",
        where,
    )


@dataclass(frozen=True)
class MessageRow:
    tenant_id: int
    message: dict[str, Any]
    at: datetime


async def put_messages(cursor: Cursor, told: Mapping[tuple[int, int], MessageRow]) -> None:
    ordered = sorted(told.items(), key=lambda one: one[0])
    await cursor.execute(
        "INSERT INTO diagnostics.display_message (station_id, message_id, tenant_id, message, at)"
        " SELECT * FROM unnest(%s::int[], %s::bigint[], %s::int[], %s::jsonb[],"
        "  %s::timestamptz[])"
        " ON CONFLICT (station_id, message_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " message = excluded.message, at = excluded.at",
        (
            literal(station for (station, _), _ in ordered),
            literal(number for (_, number), _ in ordered),
            literal(one.tenant_id for _, one in ordered),
            [jsonb(one.message) for _, one in ordered],
            [one.at for _, one in ordered],
        ),
    )


async def remove_messages(cursor: Cursor, gone: Collection[tuple[int, int]]) -> None:
    await cursor.execute(
        "DELETE FROM diagnostics.display_message m USING unnest(%s::int[], %s::bigint[])"
        " AS g (station_id, id) WHERE m.station_id = g.station_id AND m.message_id = g.id",
        (literal(station for station, _ in gone), literal(number for _, number in gone)),
    )


@dataclass(frozen=True)
class MessageHeld:
    message_id: int
    message: dict[str, Any]
    at: datetime


MESSAGES: Final = Sorts(
    "message",
    Column("message_id", int),
    message=Column("message_id", int),
    at=Column("at", datetime),
)


async def messages(cursor: Cursor, part: Part, station_id: int) -> Cut[MessageHeld]:
    where = Where("station_id = %(station)s", station=station_id)
    return await select_page(
        cursor, MessageHeld, part, "message_id, message, at", "diagnostics.display_message", where
    )


# --------------------------------------------------------------------------- notices


@dataclass(frozen=True)
class NoticeRow:
    station_id: int
    tenant_id: int
    at: datetime
    action: str
    payload: Any


async def add_notices(cursor: Cursor, told: Sequence[NoticeRow]) -> None:
    await cursor.execute(
        "INSERT INTO diagnostics.notice (station_id, tenant_id, at, action, payload)"
        " SELECT * FROM unnest(%s::int[], %s::int[], %s::timestamptz[], %s::text[], %s::jsonb[])",
        (
            literal(one.station_id for one in told),
            literal(one.tenant_id for one in told),
            [one.at for one in told],
            [one.action for one in told],
            [jsonb(one.payload) for one in told],
        ),
    )


@dataclass(frozen=True)
class NoticeHeld:
    id: int
    at: datetime
    action: str
    payload: dict[str, Any]


NOTICES: Final = Sorts("-at", Column("id", int), at=Column("at", datetime))


async def notices(
    cursor: Cursor,
    part: Part,
    station_id: int,
    action: str | None,
    start: datetime | None,
    end: datetime | None,
) -> Cut[NoticeHeld]:
    where = (
        Where("station_id = %(station)s", station=station_id)
        .add("action = {}", action)
        .add("at >= {}", start)
        .add("at < {}", end)
    )
    return await select_page(
        cursor, NoticeHeld, part, "id, at, action, payload", "diagnostics.notice", where
    )


async def forget_notices(cursor: Cursor, before: datetime, limit: int) -> int:
    """Forget some of the oldest; returns how many went."""
    await cursor.execute(
        "DELETE FROM diagnostics.notice WHERE id IN (SELECT id FROM diagnostics.notice"
        " WHERE at < %s ORDER BY at LIMIT %s FOR UPDATE SKIP LOCKED)",
        (before, limit),
    )
    return cursor.rowcount
