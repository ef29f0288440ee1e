"""How events of transactions, whoever told them, become history, rows and events of the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import reduce
from typing import NamedTuple
from uuid import UUID

import msgspec

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.events import Event
from cloud.stations.api import note_charging
from cloud.tariffs.api import Cost, PriceBook
from cloud.transactions import costs
from cloud.transactions import history_store as history
from cloud.transactions.history_store import AGENT, Held, Native, Noted
from cloud.transactions.projection import (
    Projection,
    State,
    Step,
    extend,
    follows,
    in_order,
    project,
)


class Arrived(NamedTuple):
    """An event with whose it is and when it came."""

    tenant: TenantId
    station: int
    received_at: datetime
    step: Step
    native: Native = AGENT


@dataclass(slots=True)
class Work:
    """What one commit does to one transaction."""

    held: Held | None
    tenant: TenantId
    station: int
    native: Native = AGENT
    command: UUID | None = None
    """Which one began it, where the events themselves do not say so."""
    steps: list[Step] = field(default_factory=list)


class Written(NamedTuple):
    """What became of a commit's events."""

    events: list[Event]
    costs: dict[UUID, Cost]
    """Of the transactions that were written anew and have a price."""


async def record(
    cursor: Cursor,
    arrived: Mapping[tuple[UUID, UUID], Arrived],
    held: Mapping[UUID, Held],
    now: datetime,
    book: PriceBook,
    commands: Mapping[UUID, UUID] | None = None,
    *,
    surely_new: bool = False,
) -> Written:
    """Put events, by transaction and id, into the history and what is new in it into the rows.

    `commands` are those that have begun transactions, by these. `surely_new` is said of events
    that nobody can have recorded before.
    """
    if not arrived:
        return Written([], {})
    every = list(arrived.values())
    new = await history.add_events(
        cursor,
        [(one.tenant, one.station, one.received_at, one.step) for one in every],
        surely_new=surely_new,
    )
    if new is not None:
        every = [one for key, one in arrived.items() if key in new]
    work: dict[UUID, Work] = {}
    for one in every:
        transaction = one.step.event.transaction
        found = work.get(transaction)
        if found is None:
            row = held.get(transaction)
            tenant = row.tenant_id if row else one.tenant
            found = work[transaction] = Work(row, tenant, one.station)
        found.native = one.native
        found.steps.append(one.step)
    for transaction, command in (commands or {}).items():
        if transaction in work:
            work[transaction].command = command
    return await settle(cursor, work, now, book)


async def settle(
    cursor: Cursor, work: Mapping[UUID, Work], now: datetime, book: PriceBook
) -> Written:
    """Write each transaction's row anew from its history, or further from where it stands."""
    if not work:
        return Written([], {})
    made: dict[UUID, Held] = {}
    conflicts: list[Noted] = []
    anew: list[UUID] = []
    for transaction, one in work.items():
        one.steps = in_order(one.steps)
        if one.held is not None and not (one.steps and follows(one.held.projection, one.steps)):
            anew.append(transaction)
    histories = await history.histories(cursor, anew) if anew else {}
    for transaction, one in work.items():
        if one.held is None or transaction in histories:
            projection, noted = _from_history(one, histories.get(transaction, one.steps))
            conflicts += noted
        else:
            projection = reduce(extend, one.steps, one.held.projection)
        projection = _commanded(projection, one)
        version = one.held.tariff_version if one.held else None
        made[transaction] = Held(
            transaction, one.tenant, one.station, projection, one.native, version
        )
    starting = [row for row in made.values() if costs.settles_its_price(row, work[row.id].held)]
    if starting:
        made |= await costs.pin(cursor, book, starting)
    totals = await costs.totals(cursor, book, made.values())
    rows: list[Held] = []
    further: list[Held] = []
    for row in made.values():
        goes_on = row.id not in histories and _goes_on(row, work[row.id].held)
        (further if goes_on else rows).append(row)
    await history.put(cursor, rows, now)
    await history.put_measures(cursor, further, now)
    await note_charging(
        cursor, [_stands(row) for row in (*rows, *further) if _shows(row, work[row.id].held)]
    )
    if conflicts:
        await history.note_conflicts(cursor, conflicts, now)
    events = [_event(row, work[row.id].held, totals.get(row.id)) for row in made.values()]
    return Written(events, totals)


def _commanded(projection: Projection, one: Work) -> Projection:
    """What was found out of the command that began it stays, however often it is projected."""
    known = one.held.projection.command if one.held else None
    command = projection.command or known or one.command
    if command == projection.command:
        return projection
    return msgspec.structs.replace(projection, command=command)


def _goes_on(row: Held, before: Held | None) -> bool:
    """Whether nothing but its measure can have changed."""
    return (
        before is not None
        and row.projection.state is State.OPEN
        and row.tariff_version == before.tariff_version
    )


def _shows(row: Held, before: Held | None) -> bool:
    """Whether the EVSE stands otherwise now; an agent tells that itself."""
    if row.native.origin == AGENT.origin or not row.projection.evse:
        return False
    if before is None:
        return row.projection.state is State.OPEN
    old, new = before.projection, row.projection
    return (old.state, old.charging_state) != (new.state, new.charging_state)


def _stands(row: Held) -> tuple[int, int, UUID | None, str | None]:
    open_ = row.projection.state is State.OPEN
    transaction = row.id if open_ else None
    return row.station_id, row.projection.evse, transaction, row.projection.charging_state


def _from_history(one: Work, every: list[Step]) -> tuple[Projection, list[Noted]]:
    projection, conflicts = project(every)
    if not conflicts:
        return projection, []
    told = {step.event.id: step.event for step in every}
    return projection, [(one.tenant, one.station, told[c.event], c.kind) for c in conflicts]


def _event(row: Held, before: Held | None, cost: Cost | None) -> Event:
    projection, transaction = row.projection, str(row.id)
    kind = "updated"
    if projection.state is State.ENDED and (
        before is None or before.projection.state is State.OPEN
    ):
        kind = "ended"
    elif before is None:
        kind = "started"
    priced = {}
    if cost is not None:
        priced["cost"] = {"currency": cost.total.currency, "total_minor": cost.total.minor}
    return Event(
        tenant_id=row.tenant_id,
        kind=f"transaction.{kind}",
        station_id=row.station_id,
        subject=f"transaction:{transaction}",
        data={
            "transaction": transaction,
            "evse": projection.evse,
            "state": str(projection.state),
            "charging_state": projection.charging_state,
            "energy_wh": projection.energy_wh,
            "seq_no": projection.seq_no,
            **priced,
        },
    )
