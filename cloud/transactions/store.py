"""SQL of reading transactions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from cloud.kernel.database import Cursor
from cloud.kernel.paging import Column, Cut, Part, Sorts, Where, select_page
from cloud.kernel.rows import row, rows
from cloud.transactions.history_store import EVENT_COLUMNS, Recorded, recorded
from cloud.transactions.sessions import OCPP_2
from cloud.transactions.zombies import Open
from protocols.agent_link import TransactionEvent


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
    origin: str
    native_key: str | None
    number: int | None
    remote_start_id: int | None
    concluded: bool
    review: str | None
    tariff_version: int | None


@dataclass(frozen=True)
class Contradicting:
    event_id: UUID
    kind: str
    noted_at: datetime


_AGENT: Final = msgspec.json.Decoder(TransactionEvent)
_TRANSACTION: Final = ", ".join(field.name for field in fields(Transaction))

EVENTS: Final = Sorts(
    "seq_no", Column("id", UUID), seq_no=Column("seq_no", int), at=Column("at", datetime)
)


@dataclass(frozen=True)
class _EventRow:
    transaction_id: UUID
    id: UUID
    seq_no: int
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
    cut = await select_page(cursor, _EventRow, part, EVENT_COLUMNS, "transactions.event", where)
    return Cut([recorded(astuple(found)) for found in cut.rows], cut.next)


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
    review: bool | None = None


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
        .add("station_id = {}", _only(filters.stations))
        .add("station_id = ANY({})", _several(filters.stations))
        .add("evse = {}", filters.evse)
        .add("state = {}", filters.state)
        .add("token = {}", _only(filters.tokens))
        .add("token = ANY({})", _several(filters.tokens))
        .add("started_at >= {}", filters.started_from)
        .add("started_at < {}", filters.started_to)
        .add("ended_at >= {}", filters.ended_from)
        .add("ended_at < {}", filters.ended_to)
        .add("final_wh >= {} OR state = 'open' AND energy_wh >= {}", least)
        .add("review IS NOT NULL AND {}", True if filters.review else None)
        .add("review IS NULL AND NOT {}", False if filters.review is False else None)
    )
    return await select_page(
        cursor, Transaction, part, _TRANSACTION, "transactions.transaction", where
    )


def _only(values: Sequence[int] | None) -> int | None:
    """One value by itself: with that an index gives the order too, with a list it does not."""
    return values[0] if values is not None and len(values) == 1 else None


def _several(values: Sequence[int] | None) -> list[int] | None:
    return None if values is None or len(values) == 1 else list(values)


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
        " WHERE t.station_id = %s AND t.state = 'open' AND t.origin = 'agent'"
        " ORDER BY t.id, e.id DESC",
        (station_id,),
    )
    return [(_AGENT.decode(fact), token) for fact, token in await cursor.fetchall()]


async def ended(cursor: Cursor, station_id: int, ids: Collection[UUID]) -> list[UUID]:
    """Which of these transactions of the station are over."""
    await cursor.execute(
        "SELECT id FROM transactions.transaction WHERE station_id = %s AND id = ANY(%s)"
        " AND state = 'ended' ORDER BY id",
        (station_id, list(ids)),
    )
    return [found for (found,) in await cursor.fetchall()]


async def native_names(
    cursor: Cursor, ids: Collection[UUID]
) -> dict[UUID, tuple[str | None, int | None]]:
    """What OCPP stations call these: 2.x by a key, 1.6 by a number."""
    await cursor.execute(
        "SELECT id, CASE WHEN origin = %s THEN native_key END, number"
        " FROM transactions.transaction WHERE id = ANY(%s) AND (origin = %s OR number IS NOT NULL)",
        (OCPP_2, list(ids), OCPP_2),
    )
    return {found: (key, number) for found, key, number in await cursor.fetchall()}


# --------------------------------------------------------------------------- sweeping


async def sweep_alone(cursor: Cursor) -> bool:
    """Whether no other process sweeps in this moment."""
    await cursor.execute("SELECT pg_try_advisory_xact_lock(hashtext('transactions.sweep'))")
    found = await cursor.fetchone()
    return found is not None and bool(found[0])


async def quiet(cursor: Cursor, since: datetime, behind: UUID, limit: int) -> list[Open]:
    """Open transactions of which nothing came in since then, in order of their ids."""
    await cursor.execute(
        "SELECT id, station_id, evse, origin = 'agent', last_at, updated_at"
        " FROM transactions.transaction WHERE state = 'open' AND updated_at <= %s AND id > %s"
        " ORDER BY id LIMIT %s",
        (since, behind, limit),
    )
    return [Open(*found) for found in await cursor.fetchall()]
