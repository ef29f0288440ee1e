"""SQL of the local lists that OCPP stations keep."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from cloud.authorization.keeping import Kept, Selection
from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import literal, row, rows
from protocols.agent_link import IdToken
from protocols.ocpp.asks import ListEntry

CHANNEL: Final = "karvon_kept_list"
_ALONE: Final = 0x6B70_7400
"""The advisory lock of who plans."""


async def wake(cursor: Cursor) -> None:
    await cursor.execute("SELECT pg_notify('karvon_kept_list', '')")


async def plan_alone(cursor: Cursor) -> bool:
    """Whether nobody else plans until this transaction ends."""
    await cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", (_ALONE,))
    found = await cursor.fetchone()
    return bool(found and found[0])


# --------------------------------------------------------------------------- policies


@dataclass(frozen=True)
class Policy:
    """What is kept on the stations of a scope: of one, of a site, or of the tenant."""

    tenant_id: int
    site_id: int | None
    station_id: int | None
    keep: str
    groups: list[int]
    updated_at: datetime

    @property
    def selection(self) -> Selection:
        groups = tuple(sorted(self.groups)) if self.keep == "groups" else None
        return Selection(keeps=self.keep != "none", groups=groups)


_POLICY: Final = (
    "SELECT tenant_id, site_id, station_id, keep, groups, updated_at"
    ' FROM "authorization".list_policy'
)
_SCOPE: Final = "site_id IS NOT DISTINCT FROM %s AND station_id IS NOT DISTINCT FROM %s"


async def every_policy(cursor: Cursor) -> list[Policy]:
    return await rows(cursor, Policy, _POLICY)


async def policy(cursor: Cursor, site: int | None, station: int | None) -> Policy | None:
    return await row(cursor, Policy, f"{_POLICY} WHERE {_SCOPE}", (site, station))


async def put_policy(
    cursor: Cursor,
    tenant: TenantId,
    scope: tuple[int | None, int | None],
    keep: str,
    groups: Collection[int],
    now: datetime,
) -> None:
    await cursor.execute(
        'INSERT INTO "authorization".list_policy'
        " (tenant_id, site_id, station_id, keep, groups, updated_at)"
        " VALUES (%s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (tenant_id, coalesce(site_id, 0), coalesce(station_id, 0)) DO UPDATE"
        " SET keep = excluded.keep, groups = excluded.groups, updated_at = excluded.updated_at",
        (tenant, *scope, keep, list(groups), now),
    )


async def delete_policy(cursor: Cursor, site: int | None, station: int | None) -> None:
    await cursor.execute(f'DELETE FROM "authorization".list_policy WHERE {_SCOPE}', (site, station))


async def group_names(cursor: Cursor, groups: Collection[int]) -> dict[int, str]:
    await cursor.execute(
        'SELECT id, name FROM "authorization".id_token_group WHERE id = ANY(%s)', (list(groups),)
    )
    return dict(await cursor.fetchall())


# --------------------------------------------------------------------------- the log of changes


async def heads(cursor: Cursor, tenants: Collection[int]) -> dict[int, int]:
    """The last number of each tenant's log; without tokens there is none."""
    await cursor.execute(
        'SELECT t.id, greatest((SELECT max(changed) FROM "authorization".id_token i'
        ' WHERE i.tenant_id = t.id), (SELECT max(changed) FROM "authorization".list_departure d'
        " WHERE d.tenant_id = t.id)) FROM unnest(%s::int[]) AS t (id)",
        (list(tenants),),
    )
    return {tenant: int(head or 0) for tenant, head in await cursor.fetchall()}


_PICKED: Final = "(%(groups)s::int[] IS NULL OR coalesce({}.group_id, 0) = ANY(%(groups)s))"
_CHANGES: Final = (
    "SELECT * FROM (SELECT t.changed, t.value, t.type, t.blocked, t.expires_at, g.name,"
    '   false AS gone FROM "authorization".id_token t'
    '   LEFT JOIN "authorization".id_token_group g ON g.id = t.group_id'
    "   WHERE t.tenant_id = %(tenant)s AND t.changed > %(after)s"
    f"   AND t.changed <= %(through)s AND {_PICKED.format('t')}"
    " UNION ALL SELECT d.changed, d.value, d.type, false, NULL, NULL, true"
    '   FROM "authorization".list_departure d'
    "   WHERE d.tenant_id = %(tenant)s AND d.changed > greatest(%(after)s, %(floor)s)"
    f"   AND d.changed <= %(through)s AND {_PICKED.format('d')} AND NOT EXISTS"
    '    (SELECT FROM "authorization".id_token t WHERE t.tenant_id = d.tenant_id'
    "     AND lower(t.value) = lower(d.value) AND t.type = d.type"
    f"     AND {_PICKED.format('t')})) AS c ORDER BY changed LIMIT %(limit)s"
)


async def changes(
    cursor: Cursor,
    tenant: TenantId,
    groups: Sequence[int] | None,
    span: tuple[int, int],
    floor: int,
    limit: int,
) -> list[tuple[int, ListEntry]]:
    """What changed after the one number and up to the other, with the number of each."""
    await cursor.execute(
        _CHANGES,
        {
            "tenant": tenant,
            "groups": None if groups is None else list(groups),
            "after": span[0],
            "through": span[1],
            "floor": floor,
            "limit": limit,
        },
    )
    return [
        (
            changed,
            ListEntry(
                id_token=IdToken(value, kind),
                blocked=blocked,
                expires_at=expires,
                group=group,
                removed=gone,
            ),
        )
        for changed, value, kind, blocked, expires, group, gone in await cursor.fetchall()
    ]


async def count(cursor: Cursor, tenant: TenantId, groups: Sequence[int] | None) -> int:
    """How many tokens are selected."""
    await cursor.execute(
        'SELECT count(*) FROM "authorization".id_token t WHERE t.tenant_id = %(tenant)s'
        f" AND {_PICKED.format('t')}",
        {"tenant": tenant, "groups": None if groups is None else list(groups)},
    )
    found = await cursor.fetchone()
    return int(found[0]) if found else 0


# --------------------------------------------------------------------------- stations' lists

_KEPT: Final = (
    "station_id, tenant_id, selection, held, number, through, floor, status, reason, failures,"
    " not_before, command, due_by, checked_at, since"
)


async def kept(cursor: Cursor, stations: Collection[int]) -> dict[int, Kept]:
    found = await rows(
        cursor,
        Kept,
        f'SELECT {_KEPT} FROM "authorization".station_list WHERE station_id = ANY(%s)',
        (list(stations),),
    )
    return {one.station_id: one for one in found}


KEPT: Final = Sorts(
    "-since", Column("station_id", int), since=Column("since", datetime), status=Column("status")
)


async def list_kept(cursor: Cursor, part: Part, status: str | None) -> Cut[Kept]:
    where = Where().add("status = {}", status)
    return await select_page(cursor, Kept, part, _KEPT, '"authorization".station_list', where)


async def under_way(cursor: Cursor, now: datetime) -> int:
    """How many stations have a question of ours."""
    await cursor.execute(
        'SELECT count(*) FROM "authorization".station_list'
        " WHERE command IS NOT NULL AND due_by > %s",
        (now,),
    )
    found = await cursor.fetchone()
    return int(found[0]) if found else 0


async def begin(cursor: Cursor, stations: Mapping[int, int], now: datetime) -> None:
    """Rows for stations that have none, each with its tenant."""
    await cursor.execute(
        'INSERT INTO "authorization".station_list (station_id, tenant_id, since)'
        " SELECT s.station_id, s.tenant_id, %s FROM unnest(%s::int[], %s::int[])"
        " AS s (station_id, tenant_id) ON CONFLICT DO NOTHING",
        (now, list(stations), list(stations.values())),
    )


@dataclass(frozen=True)
class Asked:
    """A question that goes out."""

    station_id: int
    command: UUID
    sent: str
    """version, full or differential."""
    due_by: datetime
    selection: str = ""
    number: int = 0
    through: int = 0
    floor: int = 0


async def note_asked(cursor: Cursor, asked: Sequence[Asked], now: datetime) -> None:
    await cursor.executemany(
        'UPDATE "authorization".station_list SET command = %s, sent = %s, due_by = %s,'
        " sent_selection = %s, sent_number = %s, sent_through = %s, sent_floor = %s,"
        " since = CASE WHEN status = %s THEN since ELSE %s END, status = %s,"
        " reason = CASE WHEN status = %s THEN reason ELSE '' END WHERE station_id = %s",
        [
            (
                one.command,
                one.sent,
                one.due_by,
                one.selection,
                one.number,
                one.through,
                one.floor,
                status,
                now,
                status,
                status,
                one.station_id,
            )
            for one in asked
            for status in ["unknown" if one.sent == "version" else "behind"]
        ],
    )


async def note_through(cursor: Cursor, through: Mapping[int, int]) -> None:
    """Nothing of what changed up to these numbers concerns these stations."""
    await cursor.execute(
        'UPDATE "authorization".station_list l SET through = t.through'
        " FROM unnest(%s::int[], %s::bigint[]) AS t (station_id, through)"
        " WHERE l.station_id = t.station_id",
        (list(through), list(through.values())),
    )


@dataclass(frozen=True)
class Standing:
    """How a list stands from now on."""

    station_id: int
    status: str
    reason: str = ""
    failures: int | None = None
    not_before: datetime | None = None
    held: int | None = None
    number: int | None = None
    """-1: what it holds cannot be known; None: as it was."""
    settled: bool = False
    """The question under way is over."""
    unsure: bool = False
    """What it holds has to be asked."""


async def note_standing(cursor: Cursor, standing: Sequence[Standing], now: datetime) -> None:
    await cursor.executemany(
        'UPDATE "authorization".station_list SET'
        " since = CASE WHEN status = %(status)s THEN since ELSE %(now)s END,"
        " status = %(status)s, reason = %(reason)s,"
        " failures = coalesce(%(failures)s, failures), not_before = %(not_before)s,"
        " held = CASE WHEN %(unsure)s THEN NULL ELSE coalesce(%(held)s, held) END,"
        " number = coalesce(%(number)s, number),"
        " command = CASE WHEN %(settled)s THEN NULL ELSE command END,"
        " checked_at = CASE WHEN %(held)s::bigint IS NULL THEN checked_at ELSE %(now)s END"
        " WHERE station_id = %(station)s",
        [
            {
                "station": one.station_id,
                "status": str(one.status),
                "reason": one.reason,
                "failures": one.failures,
                "not_before": one.not_before,
                "held": one.held,
                "number": one.number,
                "settled": one.settled,
                "unsure": one.unsure,
                "now": now,
            }
            for one in standing
        ],
    )


@dataclass(frozen=True)
class Answering:
    """A station whose question was answered."""

    station_id: int
    command: UUID
    sent: str
    failures: int


async def answering(cursor: Cursor, commands: Collection[UUID]) -> dict[UUID, Answering]:
    found = await rows(
        cursor,
        Answering,
        'SELECT station_id, command, sent, failures FROM "authorization".station_list'
        " WHERE command = ANY(%s::uuid[]) FOR UPDATE",
        (literal(commands),),
    )
    return {one.command: one for one in found}


async def note_taken(cursor: Cursor, commands: Collection[UUID], now: datetime) -> None:
    """These parts were accepted."""
    await cursor.execute(
        'UPDATE "authorization".station_list SET command = NULL, selection = sent_selection,'
        " held = sent_number, number = sent_number, through = sent_through, floor = sent_floor,"
        " failures = 0, not_before = NULL, checked_at = %s WHERE command = ANY(%s::uuid[])",
        (now, literal(commands)),
    )


async def ask_again(cursor: Cursor, stations: Collection[int]) -> int:
    """What these hold has to be asked; returns how many of them keep lists."""
    await cursor.execute(
        'UPDATE "authorization".station_list SET held = NULL WHERE station_id = ANY(%s::int[])',
        (literal(stations),),
    )
    return cursor.rowcount


async def booted(cursor: Cursor, firmwares: Mapping[int, str]) -> int:
    """What these hold has to be asked, and of other firmware also whether it has a list at all.

    Whatever was asked before the boot is not answered any more.
    """
    await cursor.execute(
        'UPDATE "authorization".station_list l SET held = NULL, firmware = b.firmware,'
        " not_before = NULL, status = CASE WHEN l.firmware <> b.firmware OR"
        " l.status <> 'unsupported' THEN 'unknown' ELSE l.status END"
        " FROM unnest(%s::int[], %s::text[]) AS b (station_id, firmware)"
        " WHERE l.station_id = b.station_id",
        (list(firmwares), list(firmwares.values())),
    )
    return cursor.rowcount


async def try_now(cursor: Cursor, station: int) -> None:
    """On request: whatever it has refused before."""
    await cursor.execute(
        'UPDATE "authorization".station_list SET held = NULL, not_before = NULL, failures = 0,'
        " status = 'unknown', reason = '' WHERE station_id = %s",
        (station,),
    )


async def hand_over(cursor: Cursor, station: int, tenant: TenantId) -> None:
    """It holds another tenant's list, which must go; its policy was the other tenant's."""
    await cursor.execute(
        'UPDATE "authorization".station_list SET tenant_id = %s, held = NULL, number = -1,'
        " command = NULL, status = 'unknown', selection = 'foreign' WHERE station_id = %s",
        (tenant, station),
    )
    await cursor.execute(
        'DELETE FROM "authorization".list_policy WHERE station_id = %s', (station,)
    )


async def forget_station(cursor: Cursor, station: int) -> None:
    for table in ("station_list", "list_policy"):
        await cursor.execute(
            f'DELETE FROM "authorization".{table} WHERE station_id = %s', (station,)
        )


async def with_lists(cursor: Cursor) -> set[int]:
    """Every station that keeps a list, or has to lose one."""
    await cursor.execute(
        'SELECT station_id FROM "authorization".station_list'
        " WHERE number <> 0 OR selection <> '' OR command IS NOT NULL"
    )
    return {station for (station,) in await cursor.fetchall()}
