"""The agent link's SQL: outboxes, connections, credentials, commands."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from psycopg.types.json import Jsonb
from psycopg.types.multirange import Int8Multirange
from psycopg.types.range import Range

from cloud.communication import gateway_store, security_store
from cloud.communication.api import ListPortion, Presence
from cloud.communication.greeting import KnownOutbox
from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.facts import to_ranges
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import jsonb, literal, row, rows
from protocols.agent_link import Action, CommandStatus, Hello, Ranges, Stream
from protocols.ocpp.asks import AnyAsk

COMMAND_CHANNEL: Final = "karvon_command"
SET_LOCAL_LIST: Final = "set_local_list"

# --------------------------------------------------------------------------- outboxes


async def outbox(
    cursor: Cursor, station_id: int, outbox_id: UUID
) -> tuple[KnownOutbox | None, bool]:
    """What is known of the outbox, locked; and whether it belongs to another station."""
    await cursor.execute(
        "SELECT station_id, last_boot FROM kernel.outbox WHERE outbox = %s FOR UPDATE",
        (outbox_id,),
    )
    boots: dict[int, UUID] = {row[0]: row[1] for row in await cursor.fetchall()}
    if station_id not in boots:
        return None, bool(boots)
    return KnownOutbox(boots[station_id], await committed(cursor, station_id, outbox_id)), False


async def committed(cursor: Cursor, station_id: int, outbox_id: UUID) -> dict[Stream, Ranges]:
    await cursor.execute(
        "SELECT stream, committed FROM kernel.outbox_mark WHERE station_id = %s AND outbox = %s",
        (station_id, outbox_id),
    )
    return {Stream(stream): to_ranges(marks) for stream, marks in await cursor.fetchall()}


async def greet_outbox(cursor: Cursor, tenant: TenantId, station_id: int, hello: Hello) -> None:
    """Enter or renew the outbox, and settle what the agent can no longer send of it."""
    await cursor.execute(
        "INSERT INTO kernel.outbox (station_id, outbox, tenant_id, last_boot)"
        " VALUES (%s, %s, %s, %s) ON CONFLICT (station_id, outbox) DO UPDATE"
        " SET last_boot = excluded.last_boot, tenant_id = excluded.tenant_id,"
        " greeted_at = clock_timestamp()",
        (station_id, hello.outbox, tenant, hello.boots[0]),
    )
    await cursor.executemany(
        "INSERT INTO kernel.outbox_mark AS m (station_id, outbox, stream, committed)"
        " VALUES (%s, %s, %s, %s) ON CONFLICT (station_id, outbox, stream)"
        " DO UPDATE SET committed = m.committed + excluded.committed",
        [(station_id, hello.outbox, str(s), _settled(hello, s)) for s in Stream],
    )


def _settled(hello: Hello, stream: Stream) -> Int8Multirange:
    """Below the floor nothing will come any more; of billing nothing is ever given up."""
    mark = hello.marks.get(stream)
    if stream is Stream.BILLING or mark is None or mark.floor <= 1:
        return Int8Multirange()
    return Int8Multirange([Range(1, mark.floor)])


# --------------------------------------------------------------------------- connections


async def connected(
    cursor: Cursor, tenant: TenantId, station_id: int, hello: Hello, now: datetime
) -> None:
    """The station's newest connection; a higher epoch fences the ones before."""
    await cursor.execute(
        "INSERT INTO communication.connection AS c (station_id, tenant_id, epoch, online, boot,"
        " agent_version, connected_at, last_seen) VALUES (%s, %s, 1, true, %s, %s, %s, %s)"
        " ON CONFLICT (station_id) DO UPDATE SET epoch = c.epoch + 1, online = true,"
        " tenant_id = excluded.tenant_id, boot = excluded.boot,"
        " agent_version = excluded.agent_version, link = 'agent', security_profile = NULL,"
        " address = NULL, closed_at = NULL, closed_because = NULL,"
        " connected_at = CASE WHEN c.online AND c.boot = excluded.boot"
        " THEN c.connected_at ELSE excluded.connected_at END, last_seen = excluded.last_seen",
        (station_id, tenant, hello.boots[0], hello.agent_version, now, now),
    )


async def set_online(
    cursor: Cursor, station_id: int, *, online: bool, boot: UUID
) -> TenantId | None:
    """Take over a presence of the boot that holds the connection; whose it is, if it changed."""
    await cursor.execute(
        "UPDATE communication.connection SET online = %s"
        " WHERE station_id = %s AND boot = %s AND online <> %s RETURNING tenant_id",
        (online, station_id, boot, online),
    )
    found = await cursor.fetchone()
    return TenantId(found[0]) if found else None


async def seen(cursor: Cursor, times: Iterable[tuple[int, datetime]]) -> None:
    """Note who spoke; that also outdoes the last will of an earlier connection that came late."""
    await cursor.executemany(
        "UPDATE communication.connection SET last_seen = greatest(last_seen, %s), online = true"
        " WHERE station_id = %s",
        [(at, station_id) for station_id, at in sorted(times)],
    )


async def presence(cursor: Cursor, stations: Collection[int]) -> dict[int, Presence]:
    await cursor.execute(
        "SELECT station_id, online, last_seen, link, connected_at FROM communication.connection"
        " WHERE station_id = ANY(%s)",
        (list(stations),),
    )
    return {row[0]: Presence(*row[1:]) for row in await cursor.fetchall()}


async def hand_over(cursor: Cursor, station_id: int, tenant: TenantId, now: datetime) -> None:
    """The station's ways to connect to the tenant; withdraw what it was still to do."""
    await security_store.hand_over(cursor, station_id, tenant)
    await gateway_store.hand_over(cursor, station_id, tenant)
    await cursor.execute(
        "UPDATE communication.connection SET tenant_id = %s WHERE station_id = %s",
        (tenant, station_id),
    )
    await cursor.execute(
        "UPDATE communication.credential SET tenant_id = %s WHERE station_id = %s",
        (tenant, station_id),
    )
    await cursor.execute(
        "UPDATE communication.ocpp_link SET tenant_id = %s WHERE station_id = %s",
        (tenant, station_id),
    )
    await cursor.execute(
        "UPDATE communication.command SET status = 'cancelled', finished_at = %s,"
        " result = 'the station went to another tenant'"
        " WHERE station_id = %s AND status IN ('requested', 'sent')",
        (now, station_id),
    )


async def online(cursor: Cursor, tenant: TenantId) -> list[int]:
    """Agents, which all take the local list; a station that speaks OCPP is given it on request."""
    await cursor.execute(
        "SELECT station_id FROM communication.connection WHERE tenant_id = %s AND online"
        " AND link = 'agent' ORDER BY station_id",
        (tenant,),
    )
    return [row[0] for row in await cursor.fetchall()]


# --------------------------------------------------------------------------- credentials


@dataclass(frozen=True)
class StoredCredential:
    username: str
    bcrypt: str
    mosquitto: str


@dataclass(frozen=True)
class OwnedCredential:
    """Whose credential it is."""

    station_id: int
    tenant_id: TenantId
    bcrypt: str


async def credential(cursor: Cursor, username: str) -> OwnedCredential | None:
    return await row(
        cursor,
        OwnedCredential,
        "SELECT station_id, tenant_id, bcrypt FROM communication.credential WHERE username = %s",
        (username,),
    )


async def put_credential(
    cursor: Cursor, tenant: TenantId, station_id: int, credential: StoredCredential, now: datetime
) -> None:
    await cursor.execute(
        "INSERT INTO communication.credential"
        " (station_id, tenant_id, username, bcrypt, mosquitto, issued_at)"
        " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (station_id) DO UPDATE SET"
        " username = excluded.username, bcrypt = excluded.bcrypt,"
        " mosquitto = excluded.mosquitto, issued_at = excluded.issued_at",
        (
            station_id,
            tenant,
            credential.username,
            credential.bcrypt,
            credential.mosquitto,
            now,
        ),
    )


async def forget_station(cursor: Cursor, station_id: int) -> None:
    """Void the station's credentials and forget its connection; its commands stay as history."""
    await security_store.forget_station(cursor, station_id)
    await gateway_store.forget_station(cursor, station_id)
    for sql in (
        "DELETE FROM communication.credential WHERE station_id = %s",
        "DELETE FROM communication.connection WHERE station_id = %s",
        "DELETE FROM communication.ocpp_link WHERE station_id = %s",
    ):
        await cursor.execute(sql, (station_id,))
    await cursor.execute(
        "UPDATE communication.command SET expires_at = least(expires_at, now())"
        " WHERE station_id = %s AND status IN ('requested', 'sent')",
        (station_id,),
    )


async def credentials(cursor: Cursor) -> list[StoredCredential]:
    return await rows(
        cursor,
        StoredCredential,
        "SELECT username, bcrypt, mosquitto FROM communication.credential ORDER BY username",
    )


# --------------------------------------------------------------------------- commands


@dataclass(frozen=True)
class CommandRow:
    id: UUID
    tenant_id: int
    station_id: int
    action: dict[str, Any]
    actor: str
    status: str
    requested_at: datetime
    expires_at: datetime
    sent_at: datetime | None
    accepted_at: datetime | None
    finished_at: datetime | None
    result: str
    transaction_id: UUID | None
    link: str | None
    ocpp_action: str | None
    request: dict[str, Any] | None
    response: dict[str, Any] | None
    error: str


_COLUMNS: Final = (
    "id, tenant_id, station_id, action, actor, status, requested_at, expires_at, sent_at,"
    " accepted_at, finished_at, result, transaction_id, link, ocpp_action, request, response, error"
)
_COMMAND: Final = f"SELECT {_COLUMNS} FROM communication.command "


async def add_command(
    cursor: Cursor,
    command_id: UUID,
    tenant: TenantId,
    station_id: int,
    action: Action | AnyAsk | ListPortion,
    actor: str,
    requested_at: datetime,
    expires_at: datetime,
) -> None:
    """Store a command, and wake the deliverer when this transaction commits."""
    await cursor.execute(
        "INSERT INTO communication.command"
        " (id, tenant_id, station_id, action, actor, status, requested_at, expires_at, link)"
        " VALUES (%s, %s, %s, %s, %s, 'requested', %s, %s, %s)",
        (
            command_id,
            tenant,
            station_id,
            Jsonb(_kept(action)),
            actor,
            requested_at,
            expires_at,
            _link_of(action),
        ),
    )
    await cursor.execute("SELECT pg_notify(%s, %s)", (COMMAND_CHANNEL, str(station_id)))


async def add_commands(
    cursor: Cursor,
    tenant: TenantId,
    given: Sequence[tuple[UUID, int, Action | AnyAsk | ListPortion, datetime]],
    actor: str,
    now: datetime,
) -> None:
    """The same for many at once: id, station, action and end of each."""
    if not given:
        return
    await cursor.execute(
        "INSERT INTO communication.command"
        " (id, tenant_id, station_id, action, actor, status, requested_at, expires_at, link)"
        " SELECT c.id, %s, c.station_id, c.action, %s, 'requested', %s, c.expires_at, c.link"
        " FROM unnest(%s::uuid[], %s::int[], %s::jsonb[], %s::timestamptz[], %s::text[])"
        " AS c (id, station_id, action, expires_at, link)",
        (
            tenant,
            actor,
            now,
            literal(command for command, _, _, _ in given),
            literal(station for _, station, _, _ in given),
            [jsonb(_kept(do)) for _, _, do, _ in given],
            [until for _, _, _, until in given],
            literal(_link_of(do) or "NULL" for _, _, do, _ in given),
        ),
    )
    stations = literal(station for _, station, _, _ in given)
    await cursor.execute(
        "SELECT pg_notify(%s, station) FROM unnest(%s::text[]) AS t (station)",
        (COMMAND_CHANNEL, stations),
    )


def _link_of(action: Action | AnyAsk | ListPortion) -> str | None:
    """Which link alone has words for it; None: any."""
    return "ocpp" if isinstance(action, AnyAsk | ListPortion) else None


def _kept(action: Action | AnyAsk | ListPortion) -> dict[str, Any]:
    """The action as it is kept: a local list only by its version, a thousand stations share it."""
    fields: dict[str, Any] = msgspec.to_builtins(action)
    if fields["action"] == SET_LOCAL_LIST:
        del fields["entries"]
    return fields


async def command(cursor: Cursor, command_id: UUID) -> CommandRow | None:
    return await row(cursor, CommandRow, _COMMAND + "WHERE id = %s", (command_id,))


COMMANDS: Final = Sorts(
    "-requested_at", Column("id", UUID), requested_at=Column("requested_at", datetime)
)


@dataclass(frozen=True)
class CommandFilters:
    """What a list of commands is narrowed by; None does not narrow."""

    station_id: int | None = None
    status: str | None = None
    kind: str | None = None
    requested_from: datetime | None = None
    requested_to: datetime | None = None


async def commands(cursor: Cursor, part: Part, filters: CommandFilters) -> Cut[CommandRow]:
    where = (
        Where()
        .add("station_id = {}", filters.station_id)
        .add("status = {}", filters.status)
        .add("action ->> 'action' = {}", filters.kind)
        .add("requested_at >= {}", filters.requested_from)
        .add("requested_at < {}", filters.requested_to)
    )
    return await select_page(cursor, CommandRow, part, _COLUMNS, "communication.command", where)


async def cancel_command(cursor: Cursor, command_id: UUID, now: datetime) -> CommandRow | None:
    """Withdraw it if it has not gone out yet; None when it has."""
    return await row(
        cursor,
        CommandRow,
        "UPDATE communication.command SET status = 'cancelled', finished_at = %s,"
        " result = 'withdrawn before it was sent' WHERE id = %s AND status = 'requested'"
        f" RETURNING {_COLUMNS}",
        (now, command_id),
    )


async def due_commands(
    cursor: Cursor, now: datetime, sent_before: datetime, station_id: int | None, limit: int
) -> list[CommandRow]:
    """Commands to (re)send: alive, of a connected station, not sent since `sent_before`.

    They are locked: nobody else sends them, or cancels them, until this transaction ends.
    """
    return await rows(
        cursor,
        CommandRow,
        _COMMAND + "WHERE status IN ('requested', 'sent') AND expires_at > %(now)s"
        " AND (sent_at IS NULL OR sent_at < %(before)s)"
        " AND (%(station)s::int IS NULL OR station_id = %(station)s)"
        " AND station_id IN (SELECT station_id FROM communication.connection WHERE online)"
        " AND link IS DISTINCT FROM 'ocpp' AND NOT EXISTS"
        "  (SELECT FROM kernel.live l WHERE l.station_id = command.station_id"
        "   AND l.gateway IS NOT NULL)"
        " ORDER BY requested_at, id LIMIT %(limit)s FOR UPDATE SKIP LOCKED",
        {"now": now, "before": sent_before, "station": station_id, "limit": limit},
    )


async def note_sent(cursor: Cursor, ids: Sequence[UUID], now: datetime) -> None:
    await cursor.execute(
        "UPDATE communication.command SET sent_at = %s, link = 'agent',"
        " status = CASE status WHEN 'requested' THEN 'sent' ELSE status END WHERE id = ANY(%s)",
        (now, list(ids)),
    )


async def expire_commands(cursor: Cursor, before: datetime, now: datetime) -> list[CommandRow]:
    """Give up the commands that died before the given time without an answer."""
    return await rows(
        cursor,
        CommandRow,
        "UPDATE communication.command SET status = 'expired', finished_at = %s,"
        " result = 'the station did not answer in time'"
        " WHERE status IN ('requested', 'sent', 'accepted') AND expires_at < %s"
        f" RETURNING {_COLUMNS}",
        (now, before),
    )


async def answer_command(
    cursor: Cursor,
    station_id: int,
    command_id: UUID,
    status: CommandStatus,
    text: str,
    transaction: UUID | None,
    at: datetime,
) -> TenantId | None:
    """Take over an agent's answer; a late `accepted` never hides how it ended.

    An answer that comes after we gave up still tells the truth and replaces `expired` and
    `cancelled`. Returns whose command it changed, which may be a former owner of the station.
    """
    accepted = status is CommandStatus.ACCEPTED
    await cursor.execute(
        "UPDATE communication.command SET status = %(status)s, result = %(text)s,"
        " accepted_at = CASE WHEN %(accepted)s THEN %(at)s ELSE accepted_at END,"
        " finished_at = CASE WHEN %(accepted)s THEN NULL ELSE %(at)s END,"
        " transaction_id = coalesce(%(transaction)s::uuid, transaction_id)"
        " WHERE id = %(id)s AND station_id = %(station)s AND (status IN ('requested', 'sent')"
        " OR status IN ('accepted', 'expired', 'cancelled') AND NOT %(accepted)s)"
        " RETURNING tenant_id",
        {
            "status": str(status),
            "text": text,
            "accepted": accepted,
            "at": at,
            "transaction": transaction,
            "id": command_id,
            "station": station_id,
        },
    )
    found = await cursor.fetchone()
    return TenantId(found[0]) if found else None
