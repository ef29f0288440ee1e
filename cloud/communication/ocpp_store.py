"""SQL of commands that are OCPP calls, and of the links that carry them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from cloud.communication.api import Begun, Speaking
from cloud.communication.store import COMMAND_CHANNEL
from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.http import Caller
from cloud.kernel.rows import jsonb, literal, row, rows

OCPP_CALL: Final = "ocpp"
"""The action of a command that is a call in the station's own words."""
ANSWER_CHANNEL: Final = "karvon_answer"


@dataclass(frozen=True)
class OcppLink:
    """What commands depend on of how a station spoke OCPP last."""

    station_id: int
    version: str
    live: bool
    """A gateway holds its connection now."""


@dataclass(frozen=True)
class Waiting:
    """A command that is claimed for its station's gateway."""

    id: UUID
    tenant_id: int
    station_id: int
    action: dict[str, Any]
    ocpp_action: str | None
    request: dict[str, Any] | None
    number: int
    expires_at: datetime
    epoch: int
    version: str
    learned: dict[str, str]


@dataclass(frozen=True)
class Ended:
    """A command that came to its end just now."""

    id: UUID
    tenant_id: int
    station_id: int
    action: dict[str, Any]
    request: dict[str, Any] | None
    status: str
    result: str


@dataclass(frozen=True)
class Sent:
    """How a command goes out."""

    id: UUID
    epoch: int
    action: str
    payload: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What became of a call."""

    id: UUID
    station_id: int
    status: str
    text: str
    action: str
    request: dict[str, Any]
    response: dict[str, Any] | None
    at: datetime


# --------------------------------------------------------------------------- links


async def link(cursor: Cursor, station_id: int) -> OcppLink | None:
    """None for a station that never spoke OCPP here."""
    return await row(
        cursor,
        OcppLink,
        "SELECT k.station_id, k.version, l.gateway IS NOT NULL AS live"
        " FROM communication.ocpp_link k JOIN kernel.live l USING (station_id)"
        " WHERE k.station_id = %s",
        (station_id,),
    )


async def speaking(
    cursor: Cursor, tenants: Collection[int], stations: Collection[int]
) -> list[Speaking]:
    """Those of these tenants and of these stations whose connection a gateway holds now."""
    return await rows(
        cursor,
        Speaking,
        "SELECT k.station_id, k.tenant_id, k.version FROM communication.ocpp_link k"
        " JOIN kernel.live l USING (station_id) WHERE l.gateway IS NOT NULL"
        " AND (k.tenant_id = ANY(%s) OR k.station_id = ANY(%s))",
        (list(tenants), list(stations)),
    )


async def is_agent(cursor: Cursor, station_id: int) -> bool:
    """Whether an agent spoke for the station last."""
    await cursor.execute(
        "SELECT FROM communication.connection WHERE station_id = %s AND link = 'agent'",
        (station_id,),
    )
    return await cursor.fetchone() is not None


async def note_versions(
    cursor: Cursor, spoken: Mapping[int, tuple[TenantId, str, datetime]]
) -> None:
    """Which version each station's newest connection speaks."""
    ordered = sorted(spoken.items())
    await cursor.execute(
        "INSERT INTO communication.ocpp_link AS k (station_id, tenant_id, version, since)"
        " SELECT * FROM unnest(%s::int[], %s::int[], %s::text[], %s::timestamptz[])"
        " ON CONFLICT (station_id) DO UPDATE SET tenant_id = excluded.tenant_id,"
        " version = excluded.version, since = excluded.since",
        (
            literal(station for station, _ in ordered),
            literal(tenant for _, (tenant, _, _) in ordered),
            [version for _, (_, version, _) in ordered],
            [at for _, (_, _, at) in ordered],
        ),
    )


async def note_firmwares(cursor: Cursor, booted: Mapping[int, str]) -> None:
    """What each station runs; another firmware may take what the last one refused."""
    await cursor.execute(
        "UPDATE communication.ocpp_link k SET firmware = b.firmware, learned = '{}'"
        " FROM unnest(%s::int[], %s::text[]) AS b (station_id, firmware)"
        " WHERE k.station_id = b.station_id AND k.firmware <> b.firmware",
        (literal(booted), list(booted.values())),
    )


async def note_learned(cursor: Cursor, learned: Mapping[int, Mapping[str, str]]) -> None:
    """Which of several ways each station took."""
    await cursor.execute(
        "UPDATE communication.ocpp_link k SET learned = k.learned || n.learned::jsonb"
        " FROM unnest(%s::int[], %s::text[]) AS n (station_id, learned)"
        " WHERE k.station_id = n.station_id",
        (literal(learned), [jsonb(ways) for ways in learned.values()]),
    )


# --------------------------------------------------------------------------- asking


async def next_number(cursor: Cursor) -> int:
    await cursor.execute("SELECT nextval('communication.ocpp_number')")
    found = await cursor.fetchone()
    assert found is not None
    return int(found[0])


async def add_call(
    cursor: Cursor,
    command: UUID,
    caller: Caller,
    station_id: int,
    action: str,
    request: dict[str, Any],
    requested_at: datetime,
    expires_at: datetime,
) -> None:
    """Store a call, and wake its gateway when this transaction commits."""
    await cursor.execute(
        "INSERT INTO communication.command (id, tenant_id, station_id, action, actor, status,"
        " requested_at, expires_at, link, ocpp_action, request)"
        " VALUES (%s, %s, %s, %s, %s, 'requested', %s, %s, 'ocpp', %s, %s)"
        " ON CONFLICT (id) DO NOTHING",
        (
            command,
            caller.tenant_id,
            station_id,
            jsonb({"action": OCPP_CALL, "ocpp": action}),
            caller.subject,
            requested_at,
            expires_at,
            action,
            jsonb(request),
        ),
    )
    await cursor.execute("SELECT pg_notify(%s, %s)", (COMMAND_CHANNEL, str(station_id)))


# --------------------------------------------------------------------------- delivery


async def give_up_lost(
    cursor: Cursor, gateway: UUID, once: Collection[str], now: datetime
) -> list[Ended]:
    """Settle what an earlier connection took along: its answer can no longer be taken.

    What may be done twice is asked again; what must not (`once`) has failed.
    """
    return await rows(
        cursor,
        Ended,
        "WITH lost AS (SELECT c.id FROM communication.command c JOIN kernel.live l USING"
        "   (station_id) WHERE c.status = 'sent' AND c.link = 'ocpp' AND c.epoch < l.epoch"
        "   AND l.gateway = %(gateway)s ORDER BY c.id FOR UPDATE OF c SKIP LOCKED),"
        " again AS (UPDATE communication.command c SET status = 'requested', sent_at = NULL"
        "   FROM lost WHERE c.id = lost.id AND NOT c.ocpp_action = ANY(%(once)s)"
        "   AND c.expires_at > %(now)s)"
        " UPDATE communication.command c SET status = 'failed', finished_at = %(now)s,"
        " error = 'ConnectionLost', result = 'the connection was lost before the answer: it"
        " is not known whether it was done' FROM lost"
        " WHERE c.id = lost.id AND c.ocpp_action = ANY(%(once)s)"
        " RETURNING c.id, c.tenant_id, c.station_id, c.action, c.request, c.status, c.result",
        {"gateway": gateway, "once": list(once), "now": now},
    )


async def claim(cursor: Cursor, gateway: UUID, now: datetime, limit: int) -> list[Waiting]:
    """The oldest command of each station that this gateway holds and that nothing is asked of.

    They are locked until this transaction ends; the others of the same station stay behind them.
    """
    return await rows(
        cursor,
        Waiting,
        "WITH waiting AS MATERIALIZED (SELECT DISTINCT station_id FROM communication.command"
        "   WHERE status = 'requested' AND expires_at > %(now)s)"
        " SELECT c.id, c.tenant_id, c.station_id, c.action, c.ocpp_action, c.request, c.number,"
        " c.expires_at, l.epoch, k.version, k.learned"
        " FROM waiting w"
        " JOIN kernel.live l ON l.station_id = w.station_id AND l.gateway = %(gateway)s"
        " JOIN communication.ocpp_link k ON k.station_id = w.station_id"
        " CROSS JOIN LATERAL (SELECT * FROM communication.command c"
        "   WHERE c.station_id = w.station_id AND c.status = 'requested'"
        "   AND c.expires_at > %(now)s ORDER BY c.requested_at, c.id LIMIT 1"
        "   FOR UPDATE SKIP LOCKED) c"
        " WHERE NOT EXISTS (SELECT FROM communication.command o"
        "   WHERE o.station_id = w.station_id AND o.status = 'sent' AND o.link = 'ocpp'"
        "   AND o.epoch = l.epoch)"
        " LIMIT %(limit)s",
        {"now": now, "gateway": gateway, "limit": limit},
    )


async def note_sent(cursor: Cursor, sent: Sequence[Sent], now: datetime) -> None:
    await cursor.execute(
        "UPDATE communication.command c SET status = 'sent', sent_at = %s, link = 'ocpp',"
        " epoch = s.epoch, ocpp_action = s.action, request = s.request::jsonb"
        " FROM unnest(%s::uuid[], %s::bigint[], %s::text[], %s::text[])"
        " AS s (id, epoch, action, request) WHERE c.id = s.id",
        (
            now,
            literal(one.id for one in sent),
            literal(one.epoch for one in sent),
            [one.action for one in sent],
            [jsonb(one.payload) for one in sent],
        ),
    )


async def give_back(cursor: Cursor, commands: Collection[UUID]) -> None:
    """They were claimed and not put on the wire: somebody else may."""
    await cursor.execute(
        "UPDATE communication.command SET status = 'requested', sent_at = NULL"
        " WHERE id = ANY(%s::uuid[]) AND status = 'sent' AND link = 'ocpp'",
        (literal(commands),),
    )
    await cursor.execute("SELECT pg_notify(%s, '')", (COMMAND_CHANNEL,))


async def fail(cursor: Cursor, unfit: Mapping[UUID, str], now: datetime) -> list[Ended]:
    """End commands that cannot be put into the station's words, each with its reason."""
    return await rows(
        cursor,
        Ended,
        "UPDATE communication.command c SET status = 'failed', finished_at = %s,"
        " link = 'ocpp', error = 'NotSupported', result = u.reason"
        " FROM unnest(%s::uuid[], %s::text[]) AS u (id, reason) WHERE c.id = u.id"
        " RETURNING c.id, c.tenant_id, c.station_id, c.action, c.request, c.status, c.result",
        (now, literal(unfit), list(unfit.values())),
    )


# --------------------------------------------------------------------------- answers


async def expected_versions(cursor: Cursor, commands: Collection[UUID]) -> dict[UUID, str]:
    """Which firmware the stations are to run after these commands, where that was said."""
    await cursor.execute(
        "SELECT id, action ->> 'expected_version' FROM communication.command"
        " WHERE id = ANY(%s::uuid[]) AND action ? 'expected_version'",
        (literal(commands),),
    )
    return dict(await cursor.fetchall())


_STARTED_BY: Final = """
    SELECT b.n, c.id
    FROM unnest(%s::int[], %s::bigint[], %s::int[], %s::text[], %s::timestamptz[]) WITH ORDINALITY
        AS b (station_id, remote_start_id, evse, id_token, at, n)
    JOIN communication.command c ON c.station_id = b.station_id
        AND c.requested_at > b.at - interval '8 days' AND c.sent_at <= b.at + interval '1 minute'
        AND CASE WHEN b.remote_start_id IS NULL
            THEN c.ocpp_action = 'RemoteStartTransaction' AND c.status <> 'rejected'
                AND c.expires_at >= b.at AND lower(c.request ->> 'idTag') = lower(b.id_token)
                AND coalesce(c.request ->> 'connectorId', b.evse::text) = b.evse::text
            ELSE c.ocpp_action = 'RequestStartTransaction'
                AND c.request ->> 'remoteStartId' = b.remote_start_id::text END
    ORDER BY b.n, c.requested_at DESC, c.id
"""


async def started_by(cursor: Cursor, begun: Sequence[Begun]) -> list[list[UUID]]:
    """The remote starts that may have begun these, the latest first.

    2.x names the one that did. In 1.6 those fit that went to that station for that id token, and
    for that connector if for any, and had not expired; clocks may differ by a minute.
    """
    await cursor.execute(_STARTED_BY, [list(column) for column in zip(*begun, strict=True)])
    found: list[list[UUID]] = [[] for _ in begun]
    for number, command in await cursor.fetchall():
        found[number - 1].append(command)
    return found


async def settle(cursor: Cursor, results: Sequence[Result]) -> list[Ended]:
    """Take over answers; returns what they changed, each with whose command it was.

    A late answer tells the truth and replaces `expired` and `cancelled`; the same one again
    changes nothing.
    """
    return await rows(
        cursor,
        Ended,
        "UPDATE communication.command c SET status = r.status, result = r.text,"
        " error = CASE r.status WHEN 'failed' THEN r.text ELSE '' END,"
        " ocpp_action = r.action, request = r.request::jsonb, response = r.response::jsonb,"
        " finished_at = r.at, accepted_at = CASE r.status WHEN 'executed' THEN r.at END"
        " FROM unnest(%s::uuid[], %s::int[], %s::text[], %s::text[], %s::text[], %s::text[],"
        "   %s::text[], %s::timestamptz[])"
        " AS r (id, station_id, status, text, action, request, response, at)"
        " WHERE c.id = r.id AND c.station_id = r.station_id"
        " AND c.status IN ('requested', 'sent', 'accepted', 'expired', 'cancelled')"
        " RETURNING c.id, c.tenant_id, c.station_id, c.action, c.request, c.status, c.result",
        (
            literal(one.id for one in results),
            literal(one.station_id for one in results),
            [one.status for one in results],
            [one.text for one in results],
            [one.action for one in results],
            [jsonb(one.request) for one in results],
            [None if one.response is None else jsonb(one.response) for one in results],
            [one.at for one in results],
        ),
    )


async def wake_askers(cursor: Cursor, ended: Collection[UUID]) -> None:
    """Let those who wait for these commands know, at the commit."""
    if ended:
        await cursor.execute(
            "SELECT pg_notify(%s, id) FROM unnest(%s::text[]) AS id",
            (ANSWER_CHANNEL, literal(ended)),
        )


async def wake_next(cursor: Cursor, stations: Collection[int]) -> None:
    """These have answered: what waits behind that for one of them goes out at the commit."""
    await cursor.execute(
        "SELECT pg_notify(%s, s::text) FROM unnest(%s::int[]) AS s"
        " WHERE EXISTS (SELECT FROM communication.command c"
        "  WHERE c.station_id = s AND c.status = 'requested')",
        (COMMAND_CHANNEL, literal(stations)),
    )


async def hide(
    cursor: Cursor, shown: Mapping[UUID, tuple[dict[str, Any], dict[str, Any] | None]]
) -> None:
    """Keep of these commands' actions and requests only what may be shown."""
    await cursor.execute(
        "UPDATE communication.command c SET action = s.action::jsonb, request = s.request::jsonb"
        " FROM unnest(%s::uuid[], %s::text[], %s::text[]) AS s (id, action, request)"
        " WHERE c.id = s.id",
        (
            literal(shown),
            [jsonb(action) for action, _ in shown.values()],
            [None if request is None else jsonb(request) for _, request in shown.values()],
        ),
    )
