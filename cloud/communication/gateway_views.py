"""What operators see of OCPP connections: who is connected, how each deviates, every frame."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from cloud.communication import gateway_store as store
from cloud.communication.api import StationDirectory
from cloud.communication.gateway_store import (
    ConnectionRow,
    DeviationRow,
    FrameFilters,
    FrameRow,
)
from cloud.kernel.database import Database
from cloud.kernel.http import Caller
from cloud.kernel.paging import MOST_ROWS, Cut, Part


@dataclass(frozen=True)
class Connection:
    """A station's newest connection, and what it does against the standard."""

    station: str
    row: ConnectionRow
    deviations: list[DeviationRow]


class GatewayViews:
    """Reads only, under the caller's own tenant."""

    def __init__(self, database: Database, directory: StationDirectory) -> None:
        self._database = database
        self._directory = directory

    async def connections(
        self,
        caller: Caller,
        part: Part,
        *,
        online: bool | None,
        link: str | None,
        station: str | None = None,
    ) -> Cut[Connection]:
        """Raises the directory's not-found error."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            key = None if station is None else await self._directory.key_of(cursor, station)
            cut = await store.connections(cursor, part, online=online, link=link, station_id=key)
            ids = [row.station_id for row in cut.rows]
            names = await self._directory.identities(cursor, ids)
            found = await store.deviations(cursor, ids)
        return Cut(
            [
                Connection(
                    names.get(row.station_id, ""),
                    row,
                    [one for one in found if one.station_id == row.station_id],
                )
                for row in cut.rows
            ],
            cut.next,
        )

    async def deviations(self, caller: Caller, station: str) -> list[DeviationRow]:
        """Raises the directory's not-found error."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            key = await self._directory.key_of(cursor, station)
            return await store.deviations(cursor, [key])

    async def frames(
        self, caller: Caller, part: Part, station: str, filters: FrameFilters
    ) -> Cut[FrameRow]:
        """The filters' station is the named one. Raises the directory's not-found error."""
        async with self._database.unit(caller.tenant_id, read_only=True) as cursor:
            key = await self._directory.key_of(cursor, station)
            return await store.frames(cursor, part, replace(filters, station_id=key))

    async def every_frame(
        self, caller: Caller, station: str, filters: FrameFilters
    ) -> AsyncIterator[FrameRow]:
        """All of them, the oldest first, a page at a time, so that no export fills the memory."""
        behind: str | None = None
        while True:
            part = Part.behind(behind, store.FRAMES, "at", MOST_ROWS)
            cut = await self.frames(caller, part, station, filters)
            for row in cut.rows:
                yield row
            if cut.next is None:
                return
            behind = cut.next
