"""How events of transactions, whoever told them, become history, rows and events of the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.events import Event
from cloud.transactions import store
from cloud.transactions.projection import (
    Contradiction,
    State,
    Step,
    extend,
    follows,
    in_order,
    project,
)
from cloud.transactions.store import AGENT, Held, Native


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
    steps: list[Step] = field(default_factory=list)


async def record(
    cursor: Cursor,
    arrived: Mapping[tuple[UUID, UUID], Arrived],
    held: Mapping[UUID, Held],
    now: datetime,
) -> list[Event]:
    """Put events, by transaction and id, into the history and what is new in it into the rows."""
    if not arrived:
        return []
    new = await store.add_events(
        cursor, [(one.tenant, one.station, one.received_at, one.step) for one in arrived.values()]
    )
    work: dict[UUID, Work] = {}
    for key, one in arrived.items():
        if key not in new:
            continue
        found = work.get(key[0])
        if found is None:
            row = held.get(key[0])
            tenant = row.tenant_id if row else one.tenant
            found = work[key[0]] = Work(row, tenant, one.station)
        found.native = one.native
        found.steps.append(one.step)
    return await settle(cursor, work, now)


async def settle(cursor: Cursor, work: Mapping[UUID, Work], now: datetime) -> list[Event]:
    """Write each transaction's row anew from its history, or further from where it stands."""
    if not work:
        return []
    events: list[Event] = []
    rows: list[Held] = []
    conflicts: list[store.Noted] = []
    ordered = {transaction: in_order(one.steps) for transaction, one in work.items()}
    anew = [t for t, one in work.items() if not _goes_on(one, ordered[t])]
    histories = await store.histories(cursor, anew) if anew else {}
    for transaction, one in sorted(work.items()):
        every = histories.get(transaction)
        if every is not None:
            projection, found = project(recorded.step for recorded in every)
            by_id = {recorded.step.event.id: recorded.step.event for recorded in every}
            conflicts += [(one.tenant, one.station, by_id[c.event], c.kind) for c in found]
        else:
            steps = ordered[transaction]
            first = one.held.projection if one.held else project(steps[:1])[0]
            projection = first
            for step in steps if one.held else steps[1:]:
                projection = extend(projection, step)
        row = Held(transaction, one.tenant, one.station, projection, one.native)
        rows.append(row)
        events.append(_event(row, one.held))
    await store.put(cursor, rows, now)
    await store.note_conflicts(cursor, conflicts, now)
    return events


def _goes_on(one: Work, steps: list[Step]) -> bool:
    return bool(steps) and one.held is not None and follows(one.held.projection, steps)


def _event(row: Held, before: Held | None) -> Event:
    projection = row.projection
    kind = "updated"
    if projection.state is State.ENDED and (
        before is None or before.projection.state is State.OPEN
    ):
        kind = "ended"
    elif before is None:
        kind = "started"
    return Event(
        tenant_id=row.tenant_id,
        kind=f"transaction.{kind}",
        station_id=row.station_id,
        subject=f"transaction:{row.id}",
        data={
            "transaction": str(row.id),
            "evse": projection.evse,
            "state": str(projection.state),
            "charging_state": projection.charging_state,
            "energy_wh": projection.energy_wh,
            "seq_no": projection.seq_no,
        },
    )


__all__ = ["Arrived", "Contradiction", "Work", "record", "settle"]
