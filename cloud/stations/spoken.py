"""Stations' part of what OCPP stations say: which hardware booted, how each EVSE stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.events import Event
from cloud.kernel.facts import Spoken
from cloud.kernel.turns import Ask
from cloud.stations import store
from cloud.stations.clock import from_ms, plausible, to_ms
from cloud.stations.store import EvseState, Hardware, Place
from cloud.stations.writer import changed, evse_event
from protocols.agent_link import ChargingState, ConnectorStatus
from protocols.ocpp.messages import Boot, Connected, Status

NO_OUTBOX: Final = UUID(int=0)
"""States of stations without an agent are numbered by when they came in."""
_LATE: Final = timedelta(minutes=1)
"""How much older than the state that is held a status may be and still replace it."""
_IDLE: Final = frozenset({ConnectorStatus.AVAILABLE, ConnectorStatus.RESERVED})


class SpokenStates:
    """A SpokenWriter."""

    def foresee(self, spoken: Sequence[Spoken]) -> Iterator[Ask]:
        if told := {one.station_id for one in spoken if isinstance(one.told, Status)}:
            yield store.evse_states_ask(told)

    async def write_spoken(self, cursor: Cursor, spoken: Sequence[Spoken]) -> list[Event]:
        boots = [(one, one.told) for one in spoken if isinstance(one.told, Boot)]
        statuses = [(one, one.told) for one in spoken if isinstance(one.told, Status)]
        events: list[Event] = []
        if arrived := [one for one in spoken if isinstance(one.told, Connected)]:
            ids = sorted({one.station_id for one in arrived})
            await store.joined(cursor, ids, arrived[-1].received_at)
        if boots:
            events += await _booted(cursor, boots)
        if statuses:
            events += await self._statuses(cursor, statuses)
        return events

    async def _statuses(
        self, cursor: Cursor, statuses: Sequence[tuple[Spoken, Status]]
    ) -> list[Event]:
        await store.discover(cursor, list(_places(statuses)))
        held = {
            (state.station_id, state.evse): state
            for state in await store.evse_states(cursor, {one.station_id for one, _ in statuses})
        }
        events: list[Event] = []
        put: dict[tuple[int, int], tuple[TenantId, EvseState]] = {}
        for one, status in statuses:
            key = (one.station_id, status.evse)
            before = held.get(key)
            if before is not None and _is_late(status, before, one.received_at):
                continue
            state = _state(one, status, before)
            if changed(before, state):
                events.append(evse_event(one.tenant_id, state))
            held[key] = state
            put[key] = (one.tenant_id, state)
        await store.put_evse_states(cursor, list(put.values()))
        return events


def _places(statuses: Iterable[tuple[Spoken, Status]]) -> Iterator[Place]:
    for one, status in statuses:
        if status.evse > 0:
            yield Place(one.station_id, one.tenant_id, status.evse, status.connector)


def _when(at_ms: int | None, received_at: datetime) -> datetime:
    """The station's own time where it can be (S11)."""
    if at_ms is None:
        return received_at
    at = from_ms(at_ms)
    return min(at, received_at) if plausible(at, received_at) else received_at


def _is_late(status: Status, held: EvseState, received_at: datetime) -> bool:
    """Whether this was said long before what is held: a replay after a reconnect (S24)."""
    return _when(status.at_ms, received_at) < held.at - _LATE


def _state(one: Spoken, status: Status, before: EvseState | None) -> EvseState:
    number = to_ms(one.received_at)
    same = before is not None and before.outbox == NO_OUTBOX
    return EvseState(
        station_id=one.station_id,
        evse=status.evse,
        outbox=NO_OUTBOX,
        seq=max(number, before.seq + 1) if before is not None and same else number,
        at=_when(status.at_ms, one.received_at),
        received_at=one.received_at,
        measured_at=None,
        status=str(status.status),
        charging_state=_charging(status, before),
        transaction=None if status.status in _IDLE or before is None else before.transaction,
        offered_ma=before.offered_ma if before else None,
        limited_by=before.limited_by if before else "",
        error=status.error,
    )


def _charging(status: Status, before: EvseState | None) -> str:
    if status.charging_state is not None:
        return str(status.charging_state)
    if status.status in _IDLE or before is None:
        return str(ChargingState.IDLE)
    return before.charging_state


async def _booted(cursor: Cursor, boots: Sequence[tuple[Spoken, Boot]]) -> list[Event]:
    latest = {one.station_id: (one, boot) for one, boot in boots}
    await store.put_hardware(
        cursor, [(one.tenant_id, _hardware(one, boot)) for one, boot in latest.values()]
    )
    return [
        Event(
            tenant_id=one.tenant_id,
            kind="station.booted",
            station_id=one.station_id,
            subject=f"station:{one.station_id}",
            data={
                "vendor": boot.vendor,
                "model": boot.model,
                "firmware": boot.firmware,
                "reason": boot.reason,
            },
        )
        for one, boot in latest.values()
    ]


def _hardware(one: Spoken, boot: Boot) -> Hardware:
    return Hardware(
        station_id=one.station_id,
        vendor=boot.vendor,
        model=boot.model,
        serial=boot.serial,
        firmware=boot.firmware,
        iccid=boot.iccid,
        imsi=boot.imsi,
        meter_type=boot.meter_type,
        meter_serial=boot.meter_serial,
        reason=boot.reason,
        booted_at=one.received_at,
    )
