"""/api/v1/events: the event log, for those who poll, browse, or listen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, cast

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, Field

from cloud.api.live import Client, EventFeed, EventStream, Told, stations_of
from cloud.kernel import events
from cloud.kernel.database import Cursor, Database
from cloud.kernel.errors import BadCursor, KarvonError
from cloud.kernel.events import PARTITIONS, Logged, Narrow
from cloud.kernel.http import Authenticator, Caller, Role, require
from cloud.kernel.lists import CSV, LIST_RESPONSES, Format, next_link, to_csv, wanted
from cloud.kernel.paging import decode_cursor, encode_cursor
from cloud.kernel.rest import Instant
from cloud.stations.api import StationFinder
from protocols.agent_link import MAX_STATION_LENGTH

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
_Position = Annotated[int, msgspec.Meta(ge=-1, le=events.LAST)]
_Positions = Annotated[dict[str, _Position], msgspec.Meta(max_length=PARTITIONS)]
_BACK: Final = "newest"
_REPLAY: Final = 500
_LONGEST_CURSOR: Final = 2000
_STREAM_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Each event's `id` is a cursor, its `data` an EventView; comments between.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


class Order(StrEnum):
    OLDEST = "oldest"
    NEWEST = "newest"


class EventView(BaseModel):
    id: str = Field(description="unique; the same event may be read twice")
    at: datetime
    kind: str
    station: str | None
    subject: str
    data: dict[str, Any]

    @classmethod
    def of(cls, logged: Logged, station: str | None) -> EventView:
        event = logged.event
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
    next: str | None = Field(
        description="pass as `cursor` to go on: oldest first also when nothing came yet;"
        " newest first null at the end"
    )


@dataclass(frozen=True)
class Filters:
    kind: str | None
    station: str | None
    since: datetime | None


async def _filters(
    kind: Annotated[
        str | None, Query(max_length=100, description="what it begins with: `command.`")
    ] = None,
    station: Annotated[str | None, Query(min_length=1, max_length=MAX_STATION_LENGTH)] = None,
    since: Instant | None = None,
) -> Filters:
    return Filters(kind, station, since)


Filtered = Annotated[Filters, Depends(_filters)]


def _write(positions: Mapping[int, int], order: Order = Order.OLDEST) -> str:
    told = {str(part): at for part, at in sorted(positions.items())}
    return encode_cursor((told,) if order is Order.OLDEST else (_BACK, told))


def _read(cursor: str | None, order: Order = Order.OLDEST) -> dict[int, int]:
    """Positions by partition; raises BadCursor."""
    if not cursor:
        return {}
    if order is Order.OLDEST:
        (told,) = decode_cursor(cursor, tuple[_Positions])
    else:
        way, told = decode_cursor(cursor, tuple[str, _Positions])
        if way != _BACK:
            raise BadCursor("this cursor is not one of ours; begin again without it")
    return {int(part): at for part, at in told.items() if part.isdecimal() and len(part) < 4}


class EventRoutes:
    def __init__(self, database: Database, stations: StationFinder, feed: EventFeed) -> None:
        self._database = database
        self._stations = stations
        self._feed = feed

    async def _narrow(self, cursor: Cursor, caller: Caller, filters: Filters) -> Narrow:
        """Raises StationNotFound."""
        found = filters.station and await self._stations.find(cursor, filters.station)
        station_id = found.id if found else None
        return Narrow(caller.tenant_id, filters.kind, station_id, filters.since)

    async def _views(self, cursor: Cursor, found: Sequence[Logged]) -> list[EventView]:
        names = await self._stations.identities(cursor, stations_of(found))
        return [EventView.of(one, names.get(one.event.station_id or 0)) for one in found]

    # ------------------------------------------------------------------ lists

    async def oldest(
        self, caller: Caller, filters: Filters, cursor: str | None, limit: int
    ) -> EventsView:
        """On from the cursor, in order per station."""
        positions = _read(cursor)
        async with self._database.unit(caller.tenant_id, read_only=True) as unit:
            narrow = await self._narrow(unit, caller, filters)
            if not positions and narrow.since:
                positions = await events.since(unit, narrow.since)
            heads = await events.heads(unit)
            found = await events.read(unit, positions, limit, narrow)
            views = await self._views(unit, found)
        _advance(positions, found)
        if len(found) < limit:  # nothing else of interest is up to there
            positions = {part: max(at, positions.get(part, -1)) for part, at in heads.items()}
        return EventsView(items=views, next=_write(positions))

    async def newest(
        self, caller: Caller, filters: Filters, cursor: str | None, limit: int
    ) -> EventsView:
        """Back from the cursor, or from now."""
        before = _read(cursor, Order.NEWEST)
        async with self._database.unit(caller.tenant_id, read_only=True) as unit:
            narrow = await self._narrow(unit, caller, filters)
            found = await events.read_back(unit, before, limit, narrow)
            views = await self._views(unit, found)
        for one in found:
            before[one.partition] = min(one.position, before.get(one.partition, one.position))
        more = len(found) == limit
        return EventsView(items=views, next=_write(before, Order.NEWEST) if more else None)

    # ------------------------------------------------------------------ streams

    async def follow(
        self, caller: Caller, filters: Filters, cursor: str | None, request: Request
    ) -> EventStream:
        """What was missed since the cursor, then what happens. Raises BadCursor."""
        missed: dict[int, int] | None = _read(cursor) if cursor else None
        self._feed.admit()
        async with self._database.unit(caller.tenant_id, read_only=True) as unit:
            narrow = await self._narrow(unit, caller, filters)
            if missed is None and narrow.since:
                missed = await events.since(unit, narrow.since)
        return EventStream(lambda: self._told(caller, narrow, missed, request))

    async def _told(
        self, caller: Caller, narrow: Narrow, missed: dict[int, int] | None, request: Request
    ) -> AsyncGenerator[bytes, None]:
        yield b"retry: 2000\n: what is missed, then what happens\n\n"
        if missed is not None:
            async for chunk in self._replay(caller, narrow, missed, None):
                yield chunk
        async with self._feed.client(narrow) as client:
            positions = dict(client.upto)
            if missed is not None:
                async for chunk in self._replay(caller, narrow, missed, client.upto):
                    yield chunk
                positions = {part: max(at, missed.get(part, -1)) for part, at in positions.items()}
            async for told in self._happening(client, caller, request):
                if told is None:
                    yield b": nothing new\n\n"
                else:
                    positions[told.logged.partition] = told.logged.position
                    yield _line(EventView.of(told.logged, told.station), positions)

    async def _happening(
        self, client: Client, caller: Caller, request: Request
    ) -> AsyncGenerator[Told | None, None]:
        """What comes, None for each silence; ends with the client's place or the caller's key."""
        beat, clock = self._feed.heartbeat_s, asyncio.get_running_loop().time
        due = clock() + beat
        while True:
            told = None
            with suppress(TimeoutError):
                told = await client.next(beat)
                if told is None:
                    return
            if clock() >= due:
                due = clock() + beat
                if not await still_holds(request, caller):
                    return
            yield told

    async def _replay(
        self,
        caller: Caller,
        narrow: Narrow,
        positions: dict[int, int],
        upto: Mapping[int, int] | None,
    ) -> AsyncGenerator[bytes, None]:
        """What the log holds behind `positions`, which are moved on."""
        while True:
            async with self._database.unit(caller.tenant_id, read_only=True) as unit:
                found = await events.read(unit, positions, _REPLAY, narrow, upto)
                views = await self._views(unit, found)
            for one, view in zip(found, views, strict=True):
                _advance(positions, [one])
                yield _line(view, positions)
            if len(found) < _REPLAY:
                return


def _advance(positions: dict[int, int], found: Sequence[Logged]) -> None:
    for one in found:
        positions[one.partition] = max(one.position, positions.get(one.partition, -1))


def _line(view: EventView, positions: Mapping[int, int]) -> bytes:
    return f"id: {_write(positions)}\ndata: {view.model_dump_json()}\n\n".encode()


async def still_holds(request: Request, caller: Caller) -> bool:
    """Whether the key still holds; a stream outlives neither its key nor its role."""
    authenticator: Authenticator = request.app.state.authenticator
    token = request.headers.get("authorization", "").partition(" ")[2].strip()
    try:
        return await authenticator.authenticate(token) == caller
    except KarvonError:
        return False


def router(database: Database, stations: StationFinder, feed: EventFeed) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["events"])
    log = EventRoutes(database, stations, feed)

    @routes.get("/events", responses=LIST_RESPONSES)
    async def list_events(
        request: Request,
        caller: Viewer,
        filters: Filtered,
        limit: Annotated[int, Query(ge=1, le=1000)] = 200,
        cursor: Annotated[str | None, Query(max_length=_LONGEST_CURSOR)] = None,
        order: Order = Order.OLDEST,
        format: Format | None = None,  # noqa: A002  # the query parameter's name
    ) -> EventsView:
        """What happened, at least once: in order per station, or the newest first."""
        read = log.newest if order is Order.NEWEST else log.oldest
        page = await read(caller, filters, cursor, limit)
        if wanted(request, format) is Format.JSON:
            return page
        headers = {} if page.next is None else {"Link": next_link(request, page.next)}
        sent = Response(to_csv(EventView, page.items), media_type=CSV, headers=headers)
        return cast("EventsView", sent)  # FastAPI sends a Response as it is

    @routes.get("/events/stream", response_class=Response, responses=_STREAM_RESPONSES)
    async def stream_events(
        request: Request,
        caller: Viewer,
        filters: Filtered,
        cursor: Annotated[
            str | None, Query(max_length=_LONGEST_CURSOR, description="of /events or an `id`")
        ] = None,
        last_event_id: Annotated[
            str | None, Header(max_length=_LONGEST_CURSOR, description="goes before `cursor`")
        ] = None,
    ) -> Response:
        """Server-sent events: from the cursor, or from `since`, or from now on."""
        return await log.follow(caller, filters, last_event_id or cursor, request)

    return routes
