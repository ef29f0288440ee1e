"""/api/v1/events: the event log, for those who poll."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from cloud.kernel.database import Database
from cloud.kernel.events import PARTITIONS, Logged, read
from cloud.kernel.http import Caller, Role, decode_cursor, encode_cursor, require
from cloud.stations.api import StationFinder

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
_Positions = Annotated[
    dict[str, Annotated[int, msgspec.Meta(ge=-1, le=2**62)]], msgspec.Meta(max_length=PARTITIONS)
]


class EventView(BaseModel):
    id: str = Field(description="unique; the same event may be read twice")
    at: datetime
    kind: str
    station: str | None
    subject: str
    data: dict[str, Any]

    @classmethod
    def of(cls, logged: Logged, stations: dict[int, str]) -> EventView:
        event = logged.event
        station = stations.get(event.station_id) if event.station_id else None
        return cls(
            id=f"{logged.partition}-{logged.position}",
            at=logged.recorded_at,
            kind=event.kind,
            station=station,
            subject=event.subject,
            data=event.data,
        )


class EventsView(BaseModel):
    items: list[EventView]
    next: str = Field(description="pass as `cursor` to go on, also when nothing came yet")


def _positions(cursor: str | None) -> dict[int, int]:
    if not cursor:
        return {}
    (told,) = decode_cursor(cursor, tuple[_Positions])
    return {int(part): at for part, at in told.items() if part.isdecimal() and len(part) < 4}


def router(database: Database, stations: StationFinder) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["events"])

    @routes.get("/events")
    async def list_events(
        caller: Viewer,
        limit: Annotated[int, Query(ge=1, le=1000)] = 200,
        cursor: Annotated[str | None, Query(max_length=2000)] = None,
    ) -> EventsView:
        """What happened, in order per station, at least once."""
        positions = _positions(cursor)
        async with database.unit(caller.tenant_id, read_only=True) as unit:
            found = await read(unit, positions, limit, caller.tenant_id)
            ids = {one.event.station_id for one in found if one.event.station_id}
            names = await stations.identities(unit, ids)
        for one in found:
            positions[one.partition] = max(one.position, positions.get(one.partition, -1))
        return EventsView(
            items=[EventView.of(one, names) for one in found],
            next=encode_cursor({str(part): at for part, at in sorted(positions.items())}),
        )

    return routes
