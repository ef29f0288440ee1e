"""Stations' part of the commit path: states (latest wins), boot clocks, security events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TypeVar

import msgspec

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.events import Event
from cloud.kernel.facts import Delivery
from cloud.stations import store
from cloud.stations.clock import BootClock, Dated, Dating, date
from cloud.stations.store import EvseState, StationState
from protocols.agent_link import (
    BillingBatch,
    ClockCorrected,
    EvseStatus,
    SecurityEvent,
    Stamp,
    StateBatch,
    StationStatus,
)

State = TypeVar("State", EvseState, StationState)


def newer(state: State, held: State | None) -> bool:
    """Latest wins: by number within an outbox; another outbox was taken later."""
    return held is None or held.outbox != state.outbox or held.seq < state.seq


def _evse_state(delivery: Delivery, batch: StateBatch, fact: EvseStatus) -> EvseState:
    def when(stamp: Stamp) -> Dated:
        return date(stamp, delivery.received_at, batch.sent)

    return EvseState(
        station_id=delivery.station_id,
        evse=fact.evse,
        outbox=batch.outbox,
        seq=batch.seq,
        at=when(fact.at).at,
        received_at=delivery.received_at,
        measured_at=when(fact.measured_at).at if fact.measured_at else None,
        status=str(fact.status),
        charging_state=str(fact.charging_state),
        transaction=fact.transaction,
        offered_ma=fact.offered_ma,
        limited_by=fact.limited_by,
        error=fact.error,
    )


def _station_state(delivery: Delivery, batch: StateBatch, fact: StationStatus) -> StationState:
    return StationState(
        station_id=delivery.station_id,
        outbox=batch.outbox,
        seq=batch.seq,
        at=date(fact.at, delivery.received_at, batch.sent).at,
        received_at=delivery.received_at,
        agent_version=fact.agent_version,
        boards=fact.boards,
        local_list_version=fact.local_list_version,
        pending_billing=fact.pending_billing,
        pending_telemetry=fact.pending_telemetry,
        journal_bytes=fact.journal_bytes,
        alarms=list(fact.alarms),
        hardware=[] if fact.hardware is msgspec.UNSET else list(fact.hardware),
        network=None if fact.network is msgspec.UNSET else msgspec.to_builtins(fact.network),
    )


def changed(old: EvseState | None, new: EvseState) -> bool:
    """Whether people are to be told of it."""
    watched = ("status", "charging_state", "transaction", "error")
    return old is None or any(getattr(old, name) != getattr(new, name) for name in watched)


def evse_event(tenant: TenantId, state: EvseState) -> Event:
    return Event(
        tenant_id=tenant,
        kind="evse.status",
        station_id=state.station_id,
        subject=f"evse:{state.evse}",
        data={
            "evse": state.evse,
            "status": state.status,
            "charging_state": state.charging_state,
            "transaction": str(state.transaction) if state.transaction else None,
            "error": state.error,
        },
    )


class StateWriter:
    """A FactWriter."""

    name = "stations"

    async def write_batch(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Event]:
        events = [event async for event in self._billing(cursor, deliveries)]
        states = [d for d in deliveries if isinstance(d.batch, StateBatch)]
        if states:
            events += await self._evses(cursor, states)
            await self._stations(cursor, states)
        return events

    async def _billing(
        self, cursor: Cursor, deliveries: Sequence[Delivery]
    ) -> AsyncIterator[Event]:
        for delivery in deliveries:
            if not isinstance(delivery.batch, BillingBatch):
                continue
            for fact in delivery.batch.facts:
                if isinstance(fact, ClockCorrected):
                    clock = BootClock(fact.offset_ms, Dating(fact.quality))
                    if clock.quality.trusted:
                        await store.put_boot_clock(
                            cursor, delivery.tenant_id, delivery.station_id, fact.boot, clock
                        )
                elif isinstance(fact, SecurityEvent):
                    yield await _security(cursor, delivery, delivery.batch, fact)

    async def _evses(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> list[Event]:
        stations = {delivery.station_id for delivery in deliveries}
        held = {(s.station_id, s.evse): s for s in await store.evse_states(cursor, stations)}
        events: list[Event] = []
        put: dict[tuple[int, int], tuple[TenantId, EvseState]] = {}
        for delivery, batch in _state_batches(deliveries):
            for fact in batch.facts:
                if not isinstance(fact, EvseStatus):
                    continue
                state = _evse_state(delivery, batch, fact)
                key = (state.station_id, state.evse)
                old = held.get(key)
                if not newer(state, old):
                    continue
                if changed(old, state):
                    events.append(evse_event(delivery.tenant_id, state))
                held[key] = state
                put[key] = (delivery.tenant_id, state)
        await store.put_evse_states(cursor, list(put.values()))
        return events

    async def _stations(self, cursor: Cursor, deliveries: Sequence[Delivery]) -> None:
        stations = {delivery.station_id for delivery in deliveries}
        held = {s.station_id: s for s in await store.station_states(cursor, stations)}
        put: dict[int, tuple[TenantId, StationState]] = {}
        for delivery, batch in _state_batches(deliveries):
            for fact in batch.facts:
                if not isinstance(fact, StationStatus):
                    continue
                state = _station_state(delivery, batch, fact)
                if newer(state, held.get(state.station_id)):
                    held[state.station_id] = state
                    put[state.station_id] = (delivery.tenant_id, state)
        await store.put_station_states(cursor, list(put.values()))


def _state_batches(deliveries: Sequence[Delivery]) -> Iterator[tuple[Delivery, StateBatch]]:
    for delivery in deliveries:
        if isinstance(delivery.batch, StateBatch):
            yield delivery, delivery.batch


async def _security(
    cursor: Cursor, delivery: Delivery, batch: BillingBatch, fact: SecurityEvent
) -> Event:
    at = date(fact.at, delivery.received_at, batch.sent).at
    await store.put_security_event(cursor, delivery.tenant_id, delivery.station_id, fact, at)
    return Event(
        tenant_id=delivery.tenant_id,
        kind="station.security",
        station_id=delivery.station_id,
        subject=f"security:{fact.id}",
        data={"type": fact.type, "text": fact.text, "at": at.isoformat()},
    )
