"""SQL of cohorts, campaigns, their devices, and what was seen of these."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg import errors
from psycopg.types.json import Jsonb

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import jsonb, literal, row, rows
from cloud.ota.rollout import Device, Proof, Standing

CHANNEL: Final = "karvon_ota"

# --------------------------------------------------------------------------- cohorts


@dataclass(frozen=True)
class CohortRow:
    id: int
    name: str
    narrowed: dict[str, Any]
    created_at: datetime
    updated_at: datetime


COHORTS: Final = Sorts(
    "name",
    Column("id", int),
    name=Column("lower(name)"),
    created_at=Column("created_at", datetime),
)
_COHORT: Final = "id, name, narrowed, created_at, updated_at"


async def cohorts(cursor: Cursor, part: Part, text: str | None) -> Cut[CohortRow]:
    where = Where().add("strpos(lower(name), lower({})) > 0", text)
    return await select_page(cursor, CohortRow, part, _COHORT, "ota.cohort", where)


async def cohort(cursor: Cursor, cohort_id: int, *, lock: bool = False) -> CohortRow | None:
    locked = " FOR UPDATE" if lock else ""
    sql = f"SELECT {_COHORT} FROM ota.cohort WHERE id = %s{locked}"
    return await row(cursor, CohortRow, sql, (cohort_id,))


async def add_cohort(
    cursor: Cursor, tenant: TenantId, name: str, narrowed: dict[str, Any], now: datetime
) -> CohortRow | None:
    """None when the name is taken."""
    return await row(
        cursor,
        CohortRow,
        "INSERT INTO ota.cohort (tenant_id, name, narrowed, created_at, updated_at)"
        f" VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING {_COHORT}",
        (tenant, name, Jsonb(narrowed), now, now),
    )


async def change_cohort(
    cursor: Cursor, cohort_id: int, name: str, narrowed: dict[str, Any], now: datetime
) -> CohortRow | None:
    """None when the name is taken; the unit of work has failed then."""
    try:
        return await row(
            cursor,
            CohortRow,
            "UPDATE ota.cohort SET name = %s, narrowed = %s, updated_at = %s WHERE id = %s"
            f" RETURNING {_COHORT}",
            (name, Jsonb(narrowed), now, cohort_id),
        )
    except errors.UniqueViolation:
        return None


async def remove_cohort(cursor: Cursor, cohort_id: int) -> None:
    await cursor.execute("DELETE FROM ota.cohort WHERE id = %s", (cohort_id,))


# --------------------------------------------------------------------------- campaigns


@dataclass(frozen=True)
class CampaignRow:
    id: int
    tenant_id: int
    key: UUID
    name: str
    release_id: int
    cohort_id: int
    narrowed: dict[str, Any]
    """The cohort as it was when the campaign was made."""
    terms: dict[str, Any]
    stage: str
    reason: str
    wave: int
    counts: list[dict[str, int]]
    """By wave."""
    author: str
    approved_by: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


CAMPAIGNS: Final = Sorts(
    "-created_at",
    Column("id", int),
    created_at=Column("created_at", datetime),
    name=Column("lower(name)"),
)
_CAMPAIGN: Final = (
    "id, tenant_id, key, name, release_id, cohort_id, narrowed, terms, stage, reason, wave, counts,"
    " author, approved_by, created_at, started_at, ended_at"
)


async def campaigns(
    cursor: Cursor, part: Part, stage: str | None, release: int | None, text: str | None
) -> Cut[CampaignRow]:
    where = (
        Where()
        .add("stage = {}", stage)
        .add("release_id = {}", release)
        .add("strpos(lower(name), lower({})) > 0", text)
    )
    return await select_page(cursor, CampaignRow, part, _CAMPAIGN, "ota.campaign", where)


async def campaign(cursor: Cursor, campaign_id: int, *, lock: bool = False) -> CampaignRow | None:
    locked = " FOR UPDATE" if lock else ""
    sql = f"SELECT {_CAMPAIGN} FROM ota.campaign WHERE id = %s{locked}"
    return await row(cursor, CampaignRow, sql, (campaign_id,))


async def campaign_alone(cursor: Cursor, campaign_id: int) -> CampaignRow | None:
    """Locked; None also while somebody else plans it."""
    sql = f"SELECT {_CAMPAIGN} FROM ota.campaign WHERE id = %s FOR UPDATE SKIP LOCKED"
    return await row(cursor, CampaignRow, sql, (campaign_id,))


async def add_campaign(
    cursor: Cursor,
    tenant: TenantId,
    key: UUID,
    name: str,
    release: int,
    cohort_row: CohortRow,
    terms: dict[str, Any],
    by: str,
    now: datetime,
) -> CampaignRow:
    made = await row(
        cursor,
        CampaignRow,
        "INSERT INTO ota.campaign (tenant_id, key, name, release_id, cohort_id, narrowed, terms,"
        " stage, reason, wave, counts, author, created_at)"
        f" VALUES (%s, %s, %s, %s, %s, %s, %s, 'draft', '', 0, '[]', %s, %s) RETURNING {_CAMPAIGN}",
        (
            tenant,
            key,
            name,
            release,
            cohort_row.id,
            Jsonb(cohort_row.narrowed),
            Jsonb(terms),
            by,
            now,
        ),
    )
    assert made is not None
    return made


async def approve(cursor: Cursor, campaign_id: int, by: str, now: datetime) -> None:
    await cursor.execute(
        "UPDATE ota.campaign SET stage = 'running', approved_by = %s, started_at = %s"
        " WHERE id = %s",
        (by, now, campaign_id),
    )


async def put_stage(
    cursor: Cursor,
    campaign_id: int,
    stage: str,
    reason: str,
    wave: int,
    counts: list[dict[str, int]],
    ended_at: datetime | None,
) -> None:
    await cursor.execute(
        "UPDATE ota.campaign SET stage = %s, reason = %s, wave = %s, counts = %s,"
        " ended_at = coalesce(ended_at, %s) WHERE id = %s",
        (stage, reason, wave, Jsonb(counts), ended_at, campaign_id),
    )


async def to_plan(cursor: Cursor, now: datetime) -> list[int]:
    """Campaigns of which something was seen, or a deadline has passed."""
    await cursor.execute(
        "SELECT campaign_id FROM ota.observation"
        " UNION SELECT campaign_id FROM ota.device"
        " WHERE standing = 'offered' AND deadline_at <= %s ORDER BY 1",
        (now,),
    )
    return [int(one) for (one,) in await cursor.fetchall()]


# --------------------------------------------------------------------------- audit


@dataclass(frozen=True)
class AuditRow:
    id: int
    actor: str
    what: str
    reason: str
    at: datetime


AUDIT: Final = Sorts("-at", Column("id", int), at=Column("at", datetime))


async def add_audit(
    cursor: Cursor,
    tenant: int,
    campaign_id: int,
    actor: str,
    what: str,
    reason: str,
    now: datetime,
) -> None:
    await cursor.execute(
        "INSERT INTO ota.audit (campaign_id, tenant_id, actor, what, reason, at)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        (campaign_id, tenant, actor, what, reason, now),
    )


async def audit(cursor: Cursor, part: Part, campaign_id: int) -> Cut[AuditRow]:
    where = Where("campaign_id = %(campaign)s", campaign=campaign_id)
    return await select_page(
        cursor, AuditRow, part, "id, actor, what, reason, at", "ota.audit", where
    )


# --------------------------------------------------------------------------- devices


@dataclass(frozen=True)
class NewDevice:
    station_id: int
    component: str
    link: str
    place: int
    wave: int
    proof: str
    standing: str
    request: UUID
    running: str
    reason: str
    token: str
    path: str


async def add_devices(
    cursor: Cursor, tenant: TenantId, campaign_id: int, new: Sequence[NewDevice], now: datetime
) -> None:
    await cursor.execute(
        "INSERT INTO ota.device (campaign_id, station_id, tenant_id, component, link, place, wave,"
        " proof, standing, request, word, running, reason, is_excused, is_latest, token, path, at)"
        " SELECT %s, station_id, %s, component, link, place, wave, proof, standing, request, '',"
        "  running, reason, false, false, token, path, %s"
        " FROM unnest(%s::int[], %s::text[], %s::text[], %s::int[], %s::int[], %s::text[],"
        "  %s::text[], %s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[]) AS d"
        "  (station_id, component, link, place, wave, proof, standing, request, running, reason,"
        "   token, path)",
        (
            campaign_id,
            tenant,
            now,
            literal(one.station_id for one in new),
            [one.component for one in new],
            [one.link for one in new],
            literal(one.place for one in new),
            literal(one.wave for one in new),
            [one.proof for one in new],
            [one.standing for one in new],
            literal(one.request for one in new),
            [one.running for one in new],
            [one.reason for one in new],
            literal(one.token for one in new),
            [one.path for one in new],
        ),
    )


_PROOFS: Final = {str(one): one for one in Proof}
_STANDINGS: Final = {str(one): one for one in Standing}
"""Looked up: calling an enumeration takes longer than all else that a row needs."""


async def devices(cursor: Cursor, campaign_id: int) -> list[Device]:
    """In the order in which they are offered the release; those that wait without a request."""
    await cursor.execute(
        "SELECT station_id, wave, proof, standing,"
        " CASE WHEN standing <> 'waiting' THEN request END, word, running, reason, deadline_at,"
        " is_excused FROM ota.device WHERE campaign_id = %s ORDER BY wave, place, station_id",
        (campaign_id,),
    )
    return [
        Device(station, wave, _PROOFS[proof], _STANDINGS[standing], *more)
        for station, wave, proof, standing, *more in await cursor.fetchall()
    ]


@dataclass(frozen=True)
class Way:
    """How a station is asked."""

    station_id: int
    link: str
    request: UUID
    token: str
    path: str


async def ways(cursor: Cursor, campaign_id: int, stations: Collection[int]) -> dict[int, Way]:
    found = await rows(
        cursor,
        Way,
        "SELECT station_id, link, request, token, path FROM ota.device"
        " WHERE campaign_id = %s AND station_id = ANY(%s::int[])",
        (campaign_id, literal(stations)),
    )
    return {one.station_id: one for one in found}


async def save_devices(
    cursor: Cursor, campaign_id: int, changed: Sequence[Device], now: datetime
) -> None:
    if not changed:
        return
    await cursor.execute(
        "UPDATE ota.device d SET standing = c.standing, word = c.word, running = c.running,"
        " reason = c.reason, deadline_at = c.deadline_at, is_excused = c.is_excused, at = %s"
        " FROM unnest(%s::int[], %s::text[], %s::text[], %s::text[], %s::text[],"
        "  %s::timestamptz[], %s::bool[]) AS c"
        "  (station_id, standing, word, running, reason, deadline_at, is_excused)"
        " WHERE d.campaign_id = %s AND d.station_id = c.station_id",
        (
            now,
            literal(one.station for one in changed),
            literal(one.standing for one in changed),
            [one.word for one in changed],
            [one.running for one in changed],
            [one.reason for one in changed],
            [one.deadline for one in changed],
            literal(one.excused for one in changed),
            campaign_id,
        ),
    )


async def take_over(
    cursor: Cursor,
    campaign_id: int,
    stations: Collection[int],
    window: tuple[datetime, datetime] | None,
    now: datetime,
) -> None:
    """Make this campaign's offer the stations' latest; earlier campaigns are told that they are
    out.
    """
    keys = literal(stations)
    await cursor.execute(
        "WITH mine AS (SELECT station_id, component FROM ota.device"
        "  WHERE campaign_id = %(mine)s AND station_id = ANY(%(keys)s::int[])),"
        " out AS (UPDATE ota.device d SET is_latest = false FROM mine m"
        "  WHERE d.station_id = m.station_id AND d.component = m.component AND d.is_latest"
        "  AND d.campaign_id <> %(mine)s"
        "  RETURNING d.campaign_id, d.station_id, d.tenant_id, d.standing)"
        " INSERT INTO ota.observation (campaign_id, station_id, tenant_id, told, at)"
        " SELECT campaign_id, station_id, tenant_id, %(told)s, %(now)s FROM out"
        " WHERE standing = 'offered'",
        {
            "mine": campaign_id,
            "keys": keys,
            "told": Jsonb({"what": "gone", "reason": "a later campaign has taken it over"}),
            "now": now,
        },
    )
    opens, closes = window or (None, None)
    await cursor.execute(
        "UPDATE ota.device SET is_latest = true, offered_at = %s, opens_at = %s, closes_at = %s"
        " WHERE campaign_id = %s AND station_id = ANY(%s::int[])",
        (now, opens, closes, campaign_id, keys),
    )


async def offered_file(cursor: Cursor, token: str) -> str | None:
    """What may be fetched with the token: only while it is offered."""
    await cursor.execute(
        "SELECT path FROM ota.device WHERE token = %s AND standing = 'offered'", (token,)
    )
    found = await cursor.fetchone()
    return None if found is None else str(found[0])


@dataclass(frozen=True)
class DeviceRow:
    campaign: int
    station_id: int
    component: str
    link: str
    wave: int
    standing: str
    word: str
    running: str
    reason: str
    is_excused: bool
    request: UUID
    offered_at: datetime | None
    deadline_at: datetime | None
    at: datetime


DEVICES: Final = Sorts(
    "wave",
    Column("station_id", int),
    wave=Column("wave", int),
    at=Column("at", datetime),
    station=Column("station_id", int),
)
OF_STATION: Final = Sorts("-at", Column("campaign_id", int), at=Column("at", datetime))
_DEVICE: Final = (
    "campaign_id AS campaign, station_id, component, link, wave, standing, word, running, reason,"
    " is_excused, request, offered_at, deadline_at, at"
)


async def list_devices(
    cursor: Cursor,
    part: Part,
    campaign_id: int,
    standing: str | None,
    wave: int | None,
    word: str | None,
) -> Cut[DeviceRow]:
    where = (
        Where("campaign_id = %(campaign)s", campaign=campaign_id)
        .add("standing = {}", standing)
        .add("wave = {}", wave)
        .add("word = {}", word)
    )
    return await select_page(cursor, DeviceRow, part, _DEVICE, "ota.device", where)


async def of_station(cursor: Cursor, part: Part, station_id: int) -> Cut[DeviceRow]:
    where = Where("station_id = %(station)s", station=station_id)
    return await select_page(cursor, DeviceRow, part, _DEVICE, "ota.device", where)


async def device(cursor: Cursor, campaign_id: int, station_id: int) -> DeviceRow | None:
    return await row(
        cursor,
        DeviceRow,
        f"SELECT {_DEVICE} FROM ota.device WHERE campaign_id = %s AND station_id = %s",
        (campaign_id, station_id),
    )


@dataclass(frozen=True)
class StepRow:
    id: int
    what: str
    reason: str
    at: datetime


STEPS: Final = Sorts("at", Column("id", int), at=Column("at", datetime))


async def add_steps(
    cursor: Cursor,
    tenant: int,
    campaign_id: int,
    entered: Sequence[tuple[int, str, str]],
    now: datetime,
) -> None:
    """Station, what it came to, and why."""
    if not entered:
        return
    await cursor.execute(
        "INSERT INTO ota.step (campaign_id, station_id, tenant_id, what, reason, at)"
        " SELECT %s, station_id, %s, what, reason, %s"
        " FROM unnest(%s::int[], %s::text[], %s::text[]) AS t (station_id, what, reason)",
        (
            campaign_id,
            tenant,
            now,
            literal(station for station, _, _ in entered),
            [what for _, what, _ in entered],
            [reason for _, _, reason in entered],
        ),
    )


async def steps(cursor: Cursor, part: Part, campaign_id: int, station_id: int) -> Cut[StepRow]:
    where = Where(
        "campaign_id = %(campaign)s AND station_id = %(station)s",
        campaign=campaign_id,
        station=station_id,
    )
    return await select_page(cursor, StepRow, part, "id, what, reason, at", "ota.step", where)


# --------------------------------------------------------------------------- what is seen


@dataclass(frozen=True)
class Watched:
    """A device whose station is listened to."""

    campaign_id: int
    station_id: int
    tenant_id: int
    component: str
    link: str
    standing: str
    request: UUID
    number: int | None
    word: str
    running: str
    told_outbox: UUID | None
    told_seq: int | None


async def watched(cursor: Cursor, stations: Collection[int]) -> list[Watched]:
    """The latest of each station and component."""
    return await rows(
        cursor,
        Watched,
        "SELECT campaign_id, station_id, tenant_id, component, link, standing, request, number,"
        " word, running, told_outbox, told_seq FROM ota.device"
        " WHERE station_id = ANY(%s::int[]) AND is_latest",
        (literal(stations),),
    )


@dataclass(frozen=True)
class Observation:
    campaign_id: int
    station_id: int
    tenant_id: int
    told: dict[str, Any]
    at: datetime


async def observe(cursor: Cursor, seen: Sequence[Observation]) -> None:
    """Queue them for whoever plans their campaigns, and wake that."""
    if not seen:
        return
    await cursor.execute(
        "INSERT INTO ota.observation (campaign_id, station_id, tenant_id, told, at)"
        " SELECT * FROM unnest(%s::int[], %s::int[], %s::int[], %s::jsonb[], %s::timestamptz[])",
        (
            literal(one.campaign_id for one in seen),
            literal(one.station_id for one in seen),
            literal(one.tenant_id for one in seen),
            [jsonb(one.told) for one in seen],
            [one.at for one in seen],
        ),
    )
    await cursor.execute("SELECT pg_notify(%s, '')", (CHANNEL,))


async def note_told(cursor: Cursor, told: Sequence[tuple[UUID, UUID, int]]) -> None:
    """Up to which batch of which outbox the request's device was heard."""
    await cursor.executemany(
        "UPDATE ota.device SET told_outbox = %s, told_seq = %s WHERE request = %s",
        [(outbox, seq, request) for request, outbox, seq in told],
    )


async def note_number(cursor: Cursor, request: UUID, number: int) -> None:
    """The number under which an OCPP station tells of the request."""
    await cursor.execute("UPDATE ota.device SET number = %s WHERE request = %s", (number, request))


@dataclass(frozen=True)
class Taken:
    station_id: int
    told: dict[str, Any]


async def take_observations(cursor: Cursor, campaign_id: int) -> list[Taken]:
    """Take them off the queue; they are counted when this transaction commits."""
    return await rows(
        cursor,
        Taken,
        "WITH taken AS (DELETE FROM ota.observation WHERE campaign_id = %s"
        "  RETURNING id, station_id, told) SELECT station_id, told FROM taken ORDER BY id",
        (campaign_id,),
    )


async def leave(
    cursor: Cursor, station_id: int, reason: str, now: datetime, new: TenantId | None = None
) -> None:
    """The station is no longer the tenant's: its campaigns are told, nothing is said to it.

    What the director signed goes along: its versions must not begin anew.
    """
    await cursor.execute(
        "INSERT INTO ota.observation (campaign_id, station_id, tenant_id, told, at)"
        " SELECT campaign_id, station_id, tenant_id, %s, %s FROM ota.device"
        " WHERE station_id = %s AND standing <> 'gone'",
        (Jsonb({"what": "gone", "reason": reason}), now, station_id),
    )
    await cursor.execute(
        "UPDATE ota.device SET is_latest = false WHERE station_id = %s AND is_latest",
        (station_id,),
    )
    await cursor.execute("DELETE FROM ota.tag WHERE station_id = %s", (station_id,))
    await cursor.execute(
        "UPDATE ota.director SET tenant_id = coalesce(%s, tenant_id) WHERE station_id = %s",
        (new, station_id),
    )
    await cursor.execute("SELECT pg_notify(%s, '')", (CHANNEL,))


def counts_of(counts: Sequence[Any]) -> list[dict[str, int]]:
    """As they are kept."""
    return [asdict(one) for one in counts]
