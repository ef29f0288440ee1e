"""Reading what stations told of their condition, and forgetting what is old."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from cloud.diagnostics import store
from cloud.diagnostics.store import (
    MessageHeld,
    MonitorHeld,
    NoticeHeld,
    SecurityHeld,
    StatusHeld,
    TransferHeld,
)
from cloud.diagnostics.transfers import Kind
from cloud.kernel.database import Cursor, Database
from cloud.kernel.errors import Unavailable
from cloud.kernel.handover import Move
from cloud.kernel.http import Caller
from cloud.kernel.paging import Cut, Part
from cloud.stations.api import StationFinder

logger = logging.getLogger(__name__)
TIDY_EVERY_S: Final = 600.0
AT_ONCE: Final = 5000


class Diagnostics:
    """Every reading method raises StationNotFound."""

    def __init__(
        self, database: Database, stations: StationFinder, clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._stations = stations
        self._clock = clock

    async def security_events(
        self,
        caller: Caller,
        part: Part,
        identity: str,
        kind: str | None,
        start: datetime | None,
        end: datetime | None,
    ) -> Cut[SecurityHeld]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            return await store.security_events(cursor, part, station.id, kind, start, end)

    async def transfers(
        self, caller: Caller, part: Part, identity: str, kind: Kind, status: str | None
    ) -> tuple[Cut[TransferHeld], dict[int, list[StatusHeld]]]:
        """With the history of each."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            return await store.transfers(cursor, part, station.id, kind, status)

    async def monitors(
        self,
        caller: Caller,
        part: Part,
        identity: str,
        component: str | None,
        severity: int | None,
    ) -> Cut[MonitorHeld]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            return await store.monitors(cursor, part, station.id, component, severity)

    async def messages(self, caller: Caller, part: Part, identity: str) -> Cut[MessageHeld]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            return await store.messages(cursor, part, station.id)

    async def notices(
        self,
        caller: Caller,
        part: Part,
        identity: str,
        action: str | None,
        start: datetime | None,
        end: datetime | None,
    ) -> Cut[NoticeHeld]:
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            station = await self._stations.find(cursor, identity)
            return await store.notices(cursor, part, station.id, action, start, end)

    async def tidy(self, keep: timedelta) -> int:
        """Forget notices that are older; returns how many."""
        gone, before = 0, self._clock() - keep
        while True:
            async with self._database.commit_unit() as cursor:
                some = await store.forget_notices(cursor, before, AT_ONCE)
            gone += some
            if some < AT_ONCE:
                return gone

    async def run(self, keep: timedelta) -> None:
        """Tidy for ever."""
        while True:
            try:
                await self.tidy(keep)
            except Unavailable as error:
                logger.warning("old notices stay for now: %s", error)
            await asyncio.sleep(TIDY_EVERY_S)


class DiagnosticsHandover:
    """What describes a station goes along with it."""

    async def station_moved(self, cursor: Cursor, move: Move) -> None:
        await store.hand_over(cursor, move.station_id, move.new)
