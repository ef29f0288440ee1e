"""Reading what stations hold."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from cloud.configuration import store
from cloud.configuration.store import (
    LimitHeld,
    ListStands,
    ProfileHeld,
    ReservationHeld,
    VariableHeld,
)
from cloud.kernel.database import Cursor, Database
from cloud.kernel.handover import Move
from cloud.kernel.http import Caller
from cloud.kernel.paging import Cut, Part
from cloud.stations.api import StationFinder


class Configuration:
    """Every method raises StationNotFound."""

    def __init__(
        self, database: Database, stations: StationFinder, clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._stations = stations
        self._clock = clock

    async def variables(
        self,
        caller: Caller,
        part: Part,
        identity: str,
        component: str | None,
        evse: int | None,
        text: str | None,
    ) -> Cut[VariableHeld]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            return await store.variables(cursor, part, station.id, component, evse, text)

    async def profiles(
        self, caller: Caller, part: Part, identity: str, evse: int | None, purpose: str | None
    ) -> Cut[ProfileHeld]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            return await store.profiles(cursor, part, station.id, evse, purpose)

    async def limits(self, caller: Caller, part: Part, identity: str) -> Cut[LimitHeld]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            return await store.limits(cursor, part, station.id)

    async def reservations(
        self, caller: Caller, part: Part, identity: str, status: str | None
    ) -> Cut[ReservationHeld]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            return await store.reservations(cursor, part, station.id, status, self._clock())

    async def local_list(self, caller: Caller, identity: str) -> ListStands | None:
        """None while it is not known."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            return await store.local_list(cursor, station.id)


class ConfigurationHandover:
    """What a station holds goes along with it."""

    async def station_moved(self, cursor: Cursor, move: Move) -> None:
        await store.hand_over(cursor, move.station_id, move.new)
