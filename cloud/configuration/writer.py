"""The commit path's part: what stations told, or answered, that they hold."""

from __future__ import annotations

from collections.abc import Sequence

from cloud.configuration import store
from cloud.configuration.changes import changes_of, concerning
from cloud.configuration.store import ReservationEnd
from cloud.kernel.database import Cursor, TenantId
from cloud.kernel.events import Event
from cloud.kernel.facts import Spoken


class ConfigurationWriter:
    async def write_spoken(self, cursor: Cursor, spoken: Sequence[Spoken]) -> list[Event]:
        mine = concerning(spoken)
        if not mine:
            return []
        changes = changes_of(mine)
        if changes.variables:
            await store.put_variables(cursor, changes.variables)
        if changes.cleared:
            await store.clear_profiles(cursor, changes.cleared)
        if changes.profiles:
            await store.put_profiles(cursor, changes.profiles)
        if changes.lifted:
            await store.lift_limits(cursor, list(changes.lifted))
        if changes.limits:
            await store.put_limits(cursor, changes.limits)
        if changes.lists:
            await store.put_lists(cursor, changes.lists)
        if changes.reservations:
            await store.put_reservations(cursor, changes.reservations)
        if changes.reservation_ends:
            return [
                _event(e) for e in await store.end_reservations(cursor, changes.reservation_ends)
            ]
        return []


def _event(ended: ReservationEnd) -> Event:
    return Event(
        tenant_id=TenantId(ended.tenant_id),
        kind=f"reservation.{ended.status}",
        station_id=ended.station_id,
        subject=str(ended.reservation_id),
        data={},
    )
