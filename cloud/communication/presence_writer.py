"""Communication's part of what OCPP stations say: who is connected, by which connection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from cloud.communication import gateway_store as store
from cloud.communication.gateway_store import Arrived
from cloud.kernel import fencing
from cloud.kernel.database import Cursor
from cloud.kernel.events import Event
from cloud.kernel.facts import Spoken
from protocols.ocpp.messages import Connected, Disconnected

JUST_NOW: Final = timedelta(minutes=2)
"""Its connection is taken for alive for so long after it was heard of."""


class SpokenPresence:
    """A SpokenWriter; the first, since connections give the epochs."""

    async def write_spoken(self, cursor: Cursor, spoken: Sequence[Spoken]) -> list[Event]:
        arriving = [(one, one.told) for one in spoken if isinstance(one.told, Connected)]
        leaving = [(one, one.told) for one in spoken if isinstance(one.told, Disconnected)]
        happened: list[Event] = []
        if leaving:
            happened += await _left(cursor, leaving)
        if arriving:
            happened += await _came(cursor, arriving)
        return happened


async def _came(cursor: Cursor, arriving: Sequence[tuple[Spoken, Connected]]) -> list[Event]:
    latest = {one.station_id: (one, told) for one, told in arriving}
    by_gateway: dict[UUID, list[Spoken]] = defaultdict(list)
    for one, told in latest.values():
        by_gateway[told.gateway].append(one)
    epochs: dict[int, int] = {}
    for gateway, ones in sorted(by_gateway.items()):
        epochs |= await fencing.take_over(
            cursor, gateway, [(one.station_id, one.tenant_id) for one in ones]
        )
    were_online = await store.arrived(
        cursor, [_arrived(one, told, epochs[one.station_id]) for one, told in latest.values()]
    )
    for one, _ in latest.values():
        one.answer.epoch = epochs[one.station_id]
    happened = []
    for one, told in latest.values():
        happened.append(_came_event(one, told, one.station_id in were_online))
        if one.station_id in were_online:
            happened += _contested(one, told, *were_online[one.station_id])
    return happened


def _contested(one: Spoken, told: Connected, before: str | None, heard: datetime) -> list[Event]:
    """The alert when a station that was just heard of calls from elsewhere (attack A5).

    Either its line has changed, or somebody else has its credentials.
    """
    if before in {None, told.address} or one.received_at - heard > JUST_NOW:
        return []
    return [
        Event(
            tenant_id=one.tenant_id,
            kind="station.contested",
            station_id=one.station_id,
            subject=f"station:{one.station_id}",
            data={"address": told.address, "before": before, "heard_before": heard.isoformat()},
        )
    ]


def _arrived(one: Spoken, told: Connected, epoch: int) -> Arrived:
    return Arrived(
        one.station_id,
        one.tenant_id,
        epoch,
        told.gateway,
        told.version,
        told.security_profile,
        told.address,
        one.received_at,
    )


def _came_event(one: Spoken, told: Connected, replaced: bool) -> Event:
    return Event(
        tenant_id=one.tenant_id,
        kind="station.connected",
        station_id=one.station_id,
        subject=f"station:{one.station_id}",
        data={
            "link": told.version,
            "security_profile": told.security_profile,
            "address": told.address,
            "replaced": replaced,
        },
    )


async def _left(cursor: Cursor, leaving: Sequence[tuple[Spoken, Disconnected]]) -> list[Event]:
    reasons = {one.station_id: told.reason for one, told in leaving}
    await fencing.let_go(cursor, [(one.station_id, one.epoch) for one, _ in leaving])
    gone = await store.departed(
        cursor,
        [(one.station_id, one.epoch, told.reason) for one, told in leaving],
        leaving[-1][0].received_at,
    )
    return [
        Event(
            tenant_id=tenant,
            kind="station.disconnected",
            station_id=station,
            subject=f"station:{station}",
            data={"reason": reasons[station]},
        )
        for station, tenant in gone
    ]
