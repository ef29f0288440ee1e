"""/api/v1/connections, and each station's OCPP messages and deviations."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from cloud.communication import gateway_store as store
from cloud.communication.frame_log import Direction
from cloud.communication.gateway_store import DeviationRow, FrameFilters, FrameRow
from cloud.communication.gateway_views import Connection, GatewayViews
from cloud.kernel.http import PROBLEM_RESPONSES, Caller, Role, require
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.paging import Page
from cloud.kernel.rest import Instant
from protocols.agent_link import MAX_STATION_LENGTH
from protocols.ocpp.deviations import DEVIATIONS

Technician = Annotated[Caller, Depends(require(Role.TECHNICIAN))]
Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Station = Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)]
JSONL = "application/x-ndjson"


class Link(StrEnum):
    """How a station is connected."""

    AGENT = "agent"
    OCPP_16 = "ocpp1.6"
    OCPP_201 = "ocpp2.0.1"
    OCPP_21 = "ocpp2.1"


class Way(StrEnum):
    """Which way a message went, seen from the cloud."""

    IN = "in"
    OUT = "out"


class DeviationView(BaseModel):
    """One way in which a station breaks the standard and is understood all the same."""

    name: str
    text: str = Field(description="completes 'this charger …'")
    count: int
    first_at: datetime
    last_at: datetime
    example: str

    @classmethod
    def of(cls, row: DeviationRow) -> DeviationView:
        return cls(
            name=row.name,
            text=DEVIATIONS.get(row.name, _OURS.get(row.name, row.name)),
            count=row.count,
            first_at=row.first_at,
            last_at=row.last_at,
            example=row.example,
        )


_OURS = {
    "refused": "sends messages that cannot be read; they are refused",
    "unreadable_answer": "answers commands with what its schema does not allow",
    "answer_refused": "could not read an answer of ours",
    "guessing": "asks about many id tokens that nobody knows; it is answered more slowly",
    "flood": "sends more messages than anybody can want",
}


class ConnectionView(BaseModel):
    """A station's newest connection; times are UTC."""

    station: str
    online: bool
    link: Link
    connected_at: datetime
    last_seen: datetime
    security_profile: int | None = Field(description="that the connection has proven; OCPP only")
    address: str | None
    closed_at: datetime | None
    closed_because: str | None
    deviations: list[DeviationView]

    @classmethod
    def of(cls, found: Connection) -> ConnectionView:
        row = found.row
        return cls(
            station=found.station,
            online=row.online,
            link=Link(row.link),
            connected_at=row.connected_at,
            last_seen=row.last_seen,
            security_profile=row.security_profile,
            address=row.address,
            closed_at=row.closed_at,
            closed_because=row.closed_because,
            deviations=[DeviationView.of(one) for one in found.deviations],
        )


class MessageView(BaseModel):
    """A frame as it passed; what is no UTF-8 shows as replacement characters."""

    at: datetime
    direction: Way
    action: str | None = Field(description="of the call that it is, or answers; null if unknown")
    message: str

    @classmethod
    def of(cls, row: FrameRow) -> MessageView:
        return cls(
            at=row.at,
            direction=Way.IN if row.direction == Direction.IN else Way.OUT,
            action=row.action,
            message=row.frame.decode(errors="replace"),
        )


async def _filters(
    direction: Way | None = None,
    action: Annotated[str | None, Query(max_length=64, description="e.g. StopTransaction")] = None,
    text: Annotated[str | None, Query(max_length=100, description="that the frame holds")] = None,
    start: Annotated[Instant | None, Query(alias="from", description="then or later")] = None,
    end: Annotated[Instant | None, Query(alias="to", description="before")] = None,
) -> FrameFilters:
    way = None if direction is None else int(Direction[direction.name])
    return FrameFilters(0, way, action, start, end, text)


Filters = Annotated[FrameFilters, Depends(_filters)]


def routes(views: GatewayViews) -> APIRouter:
    """Reading what the OCPP gateways keep."""
    router = APIRouter(prefix="/api/v1", tags=["ocpp"], responses=PROBLEM_RESPONSES)

    @router.get("/connections", responses=LIST_RESPONSES)
    async def list_connections(
        caller: Viewer,
        listing: Annotated[Listing, Depends(listing(store.CONNECTIONS))],
        online: bool | None = None,
        link: Link | None = None,
        station: Annotated[str | None, Query(max_length=MAX_STATION_LENGTH)] = None,
    ) -> Page[ConnectionView]:
        """The newest connection of each station, agents' too."""
        found = await views.connections(
            caller, listing.part, online=online, link=link, station=station
        )
        return listing.answer(found, ConnectionView, ConnectionView.of)

    @router.get("/stations/{station}/deviations")
    async def list_deviations(caller: Viewer, station: Station) -> list[DeviationView]:
        """How this charger deviates from the standard, and how often."""
        return [DeviationView.of(one) for one in await views.deviations(caller, station)]

    @router.get("/stations/{station}/ocpp/messages", responses=LIST_RESPONSES)
    async def list_messages(
        caller: Technician,
        station: Station,
        listing: Annotated[Listing, Depends(listing(store.FRAMES))],
        filters: Filters,
    ) -> Page[MessageView]:
        """Every frame of some days, the latest first; frames name id tokens."""
        found = await views.frames(caller, listing.part, station, filters)
        return listing.answer(found, MessageView, MessageView.of)

    @router.get(
        "/stations/{station}/ocpp/messages/export",
        response_class=StreamingResponse,
        responses={200: {"content": {JSONL: {"schema": {"type": "string"}}}}},
    )
    async def export_messages(
        caller: Technician, station: Station, filters: Filters
    ) -> StreamingResponse:
        """The same as JSON lines, the oldest first, without end but that of the log."""
        found = views.every_frame(caller, station, filters)
        first = await anext(found, None)  # an unknown station is refused before anything is sent

        async def lines() -> AsyncIterator[str]:
            if first is not None:
                yield _line(first)
                async for row in found:
                    yield _line(row)

        return StreamingResponse(lines(), media_type=JSONL)

    return router


def _line(row: FrameRow) -> str:
    fields: dict[str, Any] = MessageView.of(row).model_dump(mode="json")
    return json.dumps(fields, ensure_ascii=False) + "\n"
