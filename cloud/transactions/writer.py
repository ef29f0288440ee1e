"""Transactions' part of the commit path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from cloud.authorization.api import refer
from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.events import Event
from cloud.kernel.facts import Delivery
from cloud.stations.api import (
    BootClock,
    Dated,
    Former,
    boot_clocks,
    date,
    former_owners,
    from_ms,
)
from cloud.transactions import store
from cloud.transactions.projection import (
    Contradiction,
    State,
    Step,
    extend,
    follows,
    project,
)
from cloud.transactions.store import Held, Recorded
from protocols.agent_link import (
    BillingBatch,
    ClockCorrected,
    ClockQuality,
    IdToken,
    Stamp,
    TransactionEvent,
)

Clocks = Mapping[tuple[int, UUID], BootClock]


@dataclass(frozen=True)
class _Arrival:
    """An event as a delivery brought it."""

    tenant: TenantId
    station: int
    received_at: datetime
    sent: Stamp
    event: TransactionEvent


@dataclass
class _Work:
    """What one batch does to one transaction."""

    held: Held | None
    tenant: TenantId
    station: int
    steps: list[Step] = field(default_factory=list)


class TransactionWriter:
    """A FactWriter; runs after stations', which keeps the boots' clocks."""

    name = "transactions"

    async def write_batch(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Event]:
        events: list[Event] = []
        arrivals = list(_arrivals(deliveries))
        if arrivals:
            events += await self._take(cursor, arrivals)
        for delivery, fact in _clocks(deliveries):
            events += await self._redate(cursor, delivery, fact)
        return events

    async def _take(self, cursor: Cursor, arrivals: Sequence[_Arrival]) -> list[Event]:
        now = arrivals[-1].received_at
        held = await store.held(cursor, {one.event.transaction for one in arrivals})
        owners = await former_owners(cursor, {a.station for a in arrivals})
        own, foreign = _own([_of_its_time(a, held, owners) for a in arrivals], held)
        work = await self._record(cursor, own, held)
        events = await self._write(cursor, work, now)
        await store.note_conflicts(
            cursor,
            [(a.tenant, a.station, a.event, Contradiction.OTHER_STATION) for a in foreign],
            now,
        )
        return events

    async def _record(
        self, cursor: Cursor, arrivals: Sequence[_Arrival], held: Mapping[UUID, Held]
    ) -> dict[UUID, _Work]:
        """Put the events into the history; what is new in it, by transaction."""
        if not arrivals:
            return {}
        tokens = await refer(
            cursor, {(a.tenant, a.event.id_token) for a in arrivals if a.event.id_token}
        )
        clocks = await boot_clocks(
            cursor, {(a.station, s.boot) for a in arrivals for s in (a.event.at, a.event.started)}
        )
        rows = {
            (a.event.transaction, a.event.id): (
                a.tenant, a.station, a.received_at, _step(a, clocks, tokens)
            )
            for a in arrivals
        }  # fmt: skip
        new = await store.add_events(cursor, list(rows.values()))
        work: dict[UUID, _Work] = {}
        for key, (tenant, station, _, step) in rows.items():
            if key in new:
                row = held.get(key[0])
                owner = row.tenant_id if row else tenant
                work.setdefault(key[0], _Work(row, owner, station)).steps.append(step)
        return work

    async def _write(
        self, cursor: Cursor, work: Mapping[UUID, _Work], now: datetime
    ) -> list[Event]:
        events, rows = [], []
        conflicts: list[tuple[TenantId, int, TransactionEvent, Contradiction]] = []
        for transaction, one in sorted(work.items()):
            steps = sorted(one.steps, key=lambda step: step.event.seq_no)
            if steps and one.held and follows(one.held.projection, steps):
                projection = one.held.projection
                for step in steps:
                    projection = extend(projection, step)
            else:
                every = {r.step.event.id: r for r in await store.history(cursor, transaction)}
                projection, found = project(recorded.step for recorded in every.values())
                conflicts += [
                    (one.tenant, one.station, every[c.event].step.event, c.kind) for c in found
                ]
            rows.append(Held(transaction, one.tenant, one.station, projection))
            events.append(_event(rows[-1], one.held))
        await store.put(cursor, rows, now)
        await store.note_conflicts(cursor, conflicts, now)
        return events

    async def _redate(
        self, cursor: Cursor, delivery: Delivery, fact: ClockCorrected
    ) -> list[Event]:
        """Read the boot's untrusted stamps again, now that its clock is known."""
        undated = await store.undated(cursor, delivery.station_id, fact.boot)
        clocks = await boot_clocks(cursor, {(delivery.station_id, fact.boot)})
        clock = clocks.get((delivery.station_id, fact.boot))
        if clock is None or not undated:
            return []
        steps = [_redated(recorded, fact.boot, clock) for recorded in undated]
        await store.redate(cursor, steps)
        held = await store.held(cursor, {step.event.transaction for step in steps})
        work = {
            transaction: _Work(row, row.tenant_id, row.station_id)
            for transaction, row in held.items()
        }
        return await self._write(cursor, work, delivery.received_at)


def _arrivals(deliveries: Sequence[Delivery]) -> Iterator[_Arrival]:
    for delivery in deliveries:
        if isinstance(delivery.batch, BillingBatch):
            for fact in delivery.batch.facts:
                if isinstance(fact, TransactionEvent):
                    yield _Arrival(
                        delivery.tenant_id,
                        delivery.station_id,
                        delivery.received_at,
                        delivery.batch.sent,
                        fact,
                    )


def _clocks(deliveries: Sequence[Delivery]) -> Iterator[tuple[Delivery, ClockCorrected]]:
    for delivery in deliveries:
        if isinstance(delivery.batch, BillingBatch):
            for fact in delivery.batch.facts:
                if isinstance(fact, ClockCorrected):
                    yield delivery, fact


def _own(
    arrivals: Sequence[_Arrival], held: Mapping[UUID, Held]
) -> tuple[list[_Arrival], list[_Arrival]]:
    """Events of the station that told its transaction first, and those of other stations."""
    owner = {transaction: row.station_id for transaction, row in held.items()}
    own: list[_Arrival] = []
    foreign: list[_Arrival] = []
    for arrival in arrivals:
        mine = owner.setdefault(arrival.event.transaction, arrival.station) == arrival.station
        (own if mine else foreign).append(arrival)
    return own, foreign


def _of_its_time(
    arrival: _Arrival, held: Mapping[UUID, Held], owners: Mapping[int, Sequence[Former]]
) -> _Arrival:
    """A transaction belongs to the tenant that owned the station when it started."""
    row, started = held.get(arrival.event.transaction), arrival.event.started
    tenant = row.tenant_id if row else arrival.tenant
    if row is None and started.quality is not ClockQuality.UNSET:
        at = from_ms(started.wall_ms)
        earlier = (f.tenant_id for f in owners.get(arrival.station, ()) if at < f.until)
        tenant = next(earlier, arrival.tenant)
    return replace(arrival, tenant=tenant)


def _step(
    arrival: _Arrival, clocks: Clocks, tokens: Mapping[tuple[TenantId, IdToken], int]
) -> Step:
    event = arrival.event

    def when(stamp: Stamp) -> Dated:
        known = clocks.get((arrival.station, stamp.boot))
        return date(stamp, arrival.received_at, arrival.sent, known)

    token = tokens[arrival.tenant, event.id_token] if event.id_token else None
    return Step(event, when(event.at), when(event.started), token)


def _redated(recorded: Recorded, boot: UUID, clock: BootClock) -> Step:
    """The step, its untrusted times of that boot read with the boot's clock."""

    def when(stamp: Stamp, held: Dated) -> Dated:
        if stamp.boot != boot or held.quality.trusted:
            return held
        return date(stamp, recorded.received_at, stamp, clock)

    step = recorded.step
    at = when(step.event.at, step.at)
    return replace(step, at=at, started=when(step.event.started, step.started))


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
