"""All SQL of transactions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import row, rows
from cloud.stations.api import Dated, Dating
from cloud.transactions.projection import Contradiction, Projection, State, Step
from protocols.agent_link import TransactionEvent

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(TransactionEvent)


@dataclass(frozen=True)
class Held:
    """A transaction's row while it is being extended."""

    id: UUID
    tenant_id: TenantId
    station_id: int
    projection: Projection


@dataclass(frozen=True)
class Transaction:
    id: UUID
    station_id: int
    evse: int
    connector: int
    state: str
    charging_state: str
    started_at: datetime
    started_dating: str
    ended_at: datetime | None
    ended_dating: str | None
    reason: str | None
    token: int | None
    command: UUID | None
    seq_no: int
    energy_wh: int
    meter_wh: int
    raw_wh: int | None
    duration_ms: int
    billing_grade: bool
    start_seen: bool
    conflicts: int
    last_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Recorded:
    """An event as it stands in the history."""

    step: Step
    received_at: datetime


@dataclass(frozen=True)
class Contradicting:
    event_id: UUID
    kind: str
    noted_at: datetime


_PROJECTION = ", ".join(field.name for field in fields(Projection))
_TRANSACTION = ", ".join(field.name for field in fields(Transaction))
_EVENT = "fact, token, at, dating, started_at, started_dating, received_at"


def fact_text(event: TransactionEvent) -> str:
    """An event as it is kept: without the id token, whose reference stands beside it."""
    return _ENCODER.encode(msgspec.structs.replace(event, id_token=None)).decode()


# --------------------------------------------------------------------------- the commit path


async def held(cursor: Cursor, ids: Collection[UUID]) -> dict[UUID, Held]:
    """The rows of these transactions, locked in one order."""
    await cursor.execute(
        f"SELECT id, tenant_id, station_id, {_PROJECTION} FROM transactions.transaction"
        " WHERE id = ANY(%s) ORDER BY id FOR UPDATE",
        (list(ids),),
    )
    found = {}
    for transaction, tenant, station, *values in await cursor.fetchall():
        named = dict(zip((field.name for field in fields(Projection)), values, strict=True))
        named["state"] = State(named["state"])
        found[transaction] = Held(transaction, tenant, station, Projection(**named))
    return found


async def add_events(
    cursor: Cursor, events: Sequence[tuple[TenantId, int, datetime, Step]]
) -> set[tuple[UUID, UUID]]:
    """Record events (tenant, station, received, step); returns (transaction, id) of the new."""
    await cursor.execute(
        "INSERT INTO transactions.event (tenant_id, station_id, received_at, transaction_id, id,"
        " seq_no, fact, token, boot, started_boot, at, dating, started_at, started_dating)"
        " SELECT * FROM unnest(%s::int[], %s::int[], %s::timestamptz[], %s::uuid[], %s::uuid[],"
        " %s::bigint[], %s::text[], %s::int[], %s::uuid[], %s::uuid[], %s::timestamptz[],"
        " %s::text[], %s::timestamptz[], %s::text[])"
        " ON CONFLICT DO NOTHING RETURNING transaction_id, id",
        tuple(list(column) for column in zip(*map(_event_row, events), strict=True)),
    )
    return {(transaction, event) for transaction, event in await cursor.fetchall()}


def _event_row(entry: tuple[TenantId, int, datetime, Step]) -> tuple[Any, ...]:
    tenant, station, received_at, step = entry
    event = step.event
    return (
        tenant,
        station,
        received_at,
        event.transaction,
        event.id,
        event.seq_no,
        fact_text(event),
        step.token,
        event.at.boot,
        event.started.boot,
        step.at.at,
        str(step.at.quality),
        step.started.at,
        str(step.started.quality),
    )


async def history(cursor: Cursor, transaction: UUID) -> list[Recorded]:
    """Every event of a transaction in order of its number."""
    await cursor.execute(
        f"SELECT {_EVENT} FROM transactions.event WHERE transaction_id = %s"
        " ORDER BY seq_no, received_at, id",
        (transaction,),
    )
    return [_recorded(values) for values in await cursor.fetchall()]


EVENTS: Final = Sorts(
    "seq_no", Column("id", UUID), seq_no=Column("seq_no", int), at=Column("at", datetime)
)


@dataclass(frozen=True)
class _EventRow:
    fact: str
    token: int | None
    at: datetime
    dating: str
    started_at: datetime
    started_dating: str
    received_at: datetime


async def events(cursor: Cursor, transaction: UUID, part: Part) -> Cut[Recorded]:
    """A page of a transaction's events."""
    where = Where().add("transaction_id = {}", transaction)
    cut = await select_page(cursor, _EventRow, part, _EVENT, "transactions.event", where)
    return Cut([_recorded(astuple(found)) for found in cut.rows], cut.next)


def _recorded(values: tuple[Any, ...]) -> Recorded:
    fact, token, at, dating, started_at, started_dating, received_at = values
    step = Step(
        _DECODER.decode(fact),
        Dated(at, Dating(dating)),
        Dated(started_at, Dating(started_dating)),
        token,
    )
    return Recorded(step, received_at)


async def undated(cursor: Cursor, station_id: int, boot: UUID) -> list[Recorded]:
    """Events of the station with a time of that boot that is not known exactly."""
    await cursor.execute(
        f"SELECT {_EVENT} FROM transactions.event WHERE station_id = %(station)s"
        " AND (dating IN ('unset', 'estimated') OR started_dating IN ('unset', 'estimated'))"
        " AND (boot = %(boot)s OR started_boot = %(boot)s)",
        {"station": station_id, "boot": boot},
    )
    return [_recorded(values) for values in await cursor.fetchall()]


async def redate(cursor: Cursor, steps: Sequence[Step]) -> None:
    await cursor.executemany(
        "UPDATE transactions.event SET at = %s, dating = %s, started_at = %s, started_dating = %s"
        " WHERE transaction_id = %s AND id = %s",
        [
            (
                step.at.at,
                str(step.at.quality),
                step.started.at,
                str(step.started.quality),
                step.event.transaction,
                step.event.id,
            )
            for step in steps
        ],
    )


async def put(cursor: Cursor, held_rows: Sequence[Held], now: datetime) -> None:
    """Write projections; the tenant and station of the first writing stay."""
    names = [field.name for field in fields(Projection)]
    updates = ", ".join(f"{name} = excluded.{name}" for name in names)
    values = ", ".join(f"%({name})s" for name in names)
    await cursor.executemany(
        "INSERT INTO transactions.transaction (id, tenant_id, station_id, updated_at,"
        f" {_PROJECTION}) VALUES (%(id)s, %(tenant)s, %(station)s, %(now)s, {values})"
        f" ON CONFLICT (id) DO UPDATE SET {updates}, updated_at = excluded.updated_at",
        [
            {
                **asdict(one.projection),
                "id": one.id,
                "tenant": one.tenant_id,
                "station": one.station_id,
                "now": now,
            }
            for one in held_rows
        ],
    )


async def note_conflicts(
    cursor: Cursor,
    conflicts: Iterable[tuple[TenantId, int, TransactionEvent, Contradiction]],
    now: datetime,
) -> None:
    """Record contradictions (tenant, station, event, kind), each once."""
    entries = [
        (event.transaction, event.id, tenant, station, str(kind), fact_text(event), now)
        for tenant, station, event, kind in conflicts
    ]
    if not entries:
        return
    await cursor.executemany(
        "INSERT INTO transactions.conflict (transaction_id, event_id, tenant_id, station_id, kind,"
        " fact, noted_at) VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        entries,
    )
    await cursor.execute(
        "UPDATE transactions.transaction t SET conflicts = (SELECT count(*)"
        " FROM transactions.conflict c WHERE c.transaction_id = t.id) WHERE t.id = ANY(%s)",
        ([entry[0] for entry in entries],),
    )


# --------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class TransactionFilters:
    """What a list of transactions is narrowed by; None does not narrow."""

    stations: Sequence[int] | None = None
    evse: int | None = None
    state: str | None = None
    tokens: Sequence[int] | None = None
    started_from: datetime | None = None
    started_to: datetime | None = None
    ended_from: datetime | None = None
    ended_to: datetime | None = None
    min_energy_wh: int | None = None


TRANSACTIONS: Final = Sorts(
    "-started_at",
    Column("id", UUID),
    started_at=Column("started_at", datetime),
    ended_at=Column("ended_at", datetime, nullable=True),
    energy_wh=Column("final_wh", int, nullable=True),
)
"""By energy, those that are still open stand where nothing is: theirs is not known yet."""


async def transactions(cursor: Cursor, part: Part, filters: TransactionFilters) -> Cut[Transaction]:
    least = filters.min_energy_wh
    where = (
        Where()
        .add("station_id = ANY({})", _listed(filters.stations))
        .add("evse = {}", filters.evse)
        .add("state = {}", filters.state)
        .add("token = ANY({})", _listed(filters.tokens))
        .add("started_at >= {}", filters.started_from)
        .add("started_at < {}", filters.started_to)
        .add("ended_at >= {}", filters.ended_from)
        .add("ended_at < {}", filters.ended_to)
        .add("final_wh >= {} OR state = 'open' AND energy_wh >= {}", least)
    )
    return await select_page(
        cursor, Transaction, part, _TRANSACTION, "transactions.transaction", where
    )


def _listed(values: Sequence[int] | None) -> list[int] | None:
    return None if values is None else list(values)


async def transaction(cursor: Cursor, transaction_id: UUID) -> Transaction | None:
    return await row(
        cursor,
        Transaction,
        f"SELECT {_TRANSACTION} FROM transactions.transaction WHERE id = %s",  # as above
        (transaction_id,),
    )


async def conflicts(cursor: Cursor, transaction_id: UUID) -> list[Contradicting]:
    return await rows(
        cursor,
        Contradicting,
        "SELECT event_id, kind, noted_at FROM transactions.conflict WHERE transaction_id = %s"
        " ORDER BY noted_at, event_id",
        (transaction_id,),
    )


async def open_steps(cursor: Cursor, station_id: int) -> list[tuple[TransactionEvent, int | None]]:
    """The latest event of each open transaction of a station, and its token's reference."""
    await cursor.execute(
        "SELECT DISTINCT ON (t.id) e.fact, t.token FROM transactions.transaction t"
        " JOIN transactions.event e ON e.transaction_id = t.id AND e.seq_no = t.seq_no"
        "  AND (e.fact::json ->> 'energy_wh')::bigint = t.energy_wh"
        " WHERE t.station_id = %s AND t.state = 'open' ORDER BY t.id, e.id DESC",
        (station_id,),
    )
    return [(_DECODER.decode(fact), token) for fact, token in await cursor.fetchall()]


async def ended(cursor: Cursor, station_id: int, ids: Collection[UUID]) -> list[UUID]:
    """Which of these transactions of the station are over."""
    await cursor.execute(
        "SELECT id FROM transactions.transaction WHERE station_id = %s AND id = ANY(%s)"
        " AND state = 'ended' ORDER BY id",
        (station_id, list(ids)),
    )
    return [found for (found,) in await cursor.fetchall()]
