"""Transactions' part of the commit path."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from cloud.authorization.api import refer
from cloud.communication.api import RemoteStarts
from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.events import Event
from cloud.kernel.facts import Delivery, Spoken
from cloud.kernel.turns import Ask
from cloud.stations.api import (
    BootClock,
    Dated,
    Former,
    boot_clocks,
    date,
    former_owners,
    from_ms,
)
from cloud.tariffs.api import PriceBook
from cloud.transactions import history_store as history
from cloud.transactions import spoken
from cloud.transactions.history_store import Held, Recorded
from cloud.transactions.projection import Contradiction, Step
from cloud.transactions.writing import Arrived, Work, record, settle
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


class TransactionWriter:
    """A FactWriter and a SpokenWriter; runs after stations', which keeps the boots' clocks."""

    name = "transactions"

    def __init__(self, remote_starts: RemoteStarts | None = None) -> None:
        """`remote_starts` knows what OCPP stations were told; agents tell it themselves."""
        self._remote_starts = remote_starts
        self._book = PriceBook()

    async def write_batch(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Event]:
        events: list[Event] = []
        arrivals = list(_arrivals(deliveries))
        if arrivals:
            events += await self._take(cursor, arrivals)
        for delivery, fact in _clocks(deliveries):
            events += await self._redate(cursor, delivery, fact)
        return events

    def foresee(self, messages: Sequence[Spoken]) -> Iterable[Ask]:
        return spoken.foresee(messages)

    async def write_spoken(self, cursor: Cursor, messages: Sequence[Spoken]) -> list[Event]:
        return await spoken.write(cursor, messages, self._book, self._remote_starts)

    async def _take(self, cursor: Cursor, arrivals: Sequence[_Arrival]) -> list[Event]:
        now = arrivals[-1].received_at
        held = await history.held(cursor, {one.event.transaction for one in arrivals})
        owners = await former_owners(cursor, {a.station for a in arrivals})
        own, foreign = _own([_of_its_time(a, held, owners) for a in arrivals], held)
        written = await record(cursor, await _arrived(cursor, own), held, now, self._book)
        await history.note_conflicts(
            cursor,
            [(a.tenant, a.station, a.event, Contradiction.OTHER_STATION) for a in foreign],
            now,
        )
        return written.events

    async def _redate(
        self, cursor: Cursor, delivery: Delivery, fact: ClockCorrected
    ) -> list[Event]:
        """Read the boot's untrusted stamps again, now that its clock is known."""
        undated = await history.undated(cursor, delivery.station_id, fact.boot)
        clocks = await boot_clocks(cursor, {(delivery.station_id, fact.boot)})
        clock = clocks.get((delivery.station_id, fact.boot))
        if clock is None or not undated:
            return []
        steps = [_redated(recorded, fact.boot, clock) for recorded in undated]
        await history.redate(cursor, steps)
        held = await history.held(cursor, {step.event.transaction for step in steps})
        work = {
            transaction: Work(row, row.tenant_id, row.station_id, row.native)
            for transaction, row in held.items()
        }
        return (await settle(cursor, work, delivery.received_at, self._book)).events


async def _arrived(
    cursor: Cursor, arrivals: Sequence[_Arrival]
) -> dict[tuple[UUID, UUID], Arrived]:
    if not arrivals:
        return {}
    tokens = await refer(
        cursor, {(a.tenant, a.event.id_token) for a in arrivals if a.event.id_token}
    )
    clocks = await boot_clocks(
        cursor, {(a.station, s.boot) for a in arrivals for s in (a.event.at, a.event.started)}
    )
    return {
        (a.event.transaction, a.event.id): Arrived(
            a.tenant, a.station, a.received_at, _step(a, clocks, tokens)
        )
        for a in arrivals
    }


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

    step, event = recorded.step, recorded.step.event
    if not isinstance(event, TransactionEvent):
        return step
    return step._replace(at=when(event.at, step.at), started=when(event.started, step.started))
