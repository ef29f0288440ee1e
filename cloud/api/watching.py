"""/api/v1/stations/{station}/live: a station as it is now, while somebody looks.

One task per watched station serves all its viewers: it asks the agent to send every second, asks
again while it is looked at, and hands on what was committed. The agent falls back by itself when
nobody asks any more.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from cloud.api.live import EventStream, TooManyStreams
from cloud.api.rest import still_holds
from cloud.kernel.errors import KarvonError, Unavailable
from cloud.kernel.http import Caller, Role, require
from protocols.agent_link import MAX_STATION_LENGTH, Watch
from protocols.quantities import Milliseconds

logger = logging.getLogger(__name__)

Technician = Annotated[Caller, Depends(require(Role.TECHNICIAN))]
EVERY: Final = Milliseconds(1000)
VALID: Final = Milliseconds(180_000)
RENEW: Final = timedelta(seconds=120)
AGAIN: Final = timedelta(seconds=30)
"""An agent that was asked and sends nothing may have restarted: it is asked again after this."""
SILENT: Final = timedelta(seconds=10)
BACK: Final = timedelta(seconds=20)
"""How old a sample may be and still be shown as it comes."""
POLL_S: Final = 0.5
HEARTBEAT_S: Final = 15.0
WAITING: Final = 200
MOST_VIEWERS: Final = 200
MOST_MINUTES: Final = 15
FINAL: Final = frozenset({"executed", "rejected", "failed", "expired"})


@dataclass(frozen=True)
class Sources:
    """What the live view needs of other modules; everything is as the caller may see it."""

    look: Callable[[Caller, str], Awaitable[dict[str, Any]]]
    """The station with its EVSEs' states, as REST shows it; raises its not-found error."""
    samples: Callable[[Caller, str, datetime, datetime], Awaitable[list[dict[str, Any]]]]
    """What it measured between two moments, second by second, with `evse` and `at`."""
    ask: Callable[[Caller, str, Watch], Awaitable[UUID]]
    answer: Callable[[Caller, UUID], Awaitable[tuple[str, str]]]
    """How a command stands, and what the agent said."""


@dataclass
class Asking:
    """When to ask an agent for live values (again)."""

    sent_at: datetime | None = None
    command: UUID | None = None
    heard_at: datetime | None = None
    refused: bool = False

    def due(self, now: datetime, *, online: bool) -> bool:
        if not online or self.refused:
            return False
        if self.sent_at is None or now - self.sent_at >= RENEW:
            return True
        silent = self.heard_at is None or now - self.heard_at >= SILENT
        return silent and now - self.sent_at >= AGAIN


class Viewer:
    """One stream; who does not keep up is ended."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING + 1)

    def offer(self, chunk: bytes | None) -> None:
        """Let it wait; None ends the stream behind what waits, too much ends it at once."""
        if self._waiting.qsize() < WAITING:
            self._waiting.put_nowait(chunk)
            return
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._waiting.put_nowait(None)

    async def next(self, patience_s: float) -> bytes | None:
        """The next chunk; raises TimeoutError."""
        async with asyncio.timeout(patience_s):
            return await self._waiting.get()


@dataclass
class Watched:
    """A station that is looked at."""

    caller: Caller
    identity: str
    viewers: set[Viewer] = field(default_factory=set)
    asking: Asking = field(default_factory=Asking)
    shown: bytes = b""
    """What a viewer who comes later is told first."""
    told: str = ""
    status: tuple[str, str] = ("", "")
    last: dict[int, str] = field(default_factory=dict)
    """When each EVSE's newest sample that was handed out began."""

    def offer(self, chunk: bytes) -> None:
        for viewer in self.viewers:
            viewer.offer(chunk)


class Watching:
    """The stations that are looked at through this process."""

    def __init__(
        self,
        sources: Sources,
        clock: Callable[[], datetime],
        *,
        poll_s: float = POLL_S,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self.heartbeat_s = heartbeat_s
        self.clock = clock
        self._sources = sources
        self._poll_s = poll_s
        self._watched: dict[tuple[int, str], Watched] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = False

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Viewers are served within the block; at its end their streams end before HTTP stops."""
        self._open = True
        try:
            yield
        finally:
            self._open = False
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def admit(self, caller: Caller, identity: str) -> None:
        """Raises TooManyStreams, Unavailable, or the station's not-found error."""
        if not self._open:
            raise Unavailable("this process does not serve streams any more; connect again")
        if sum(len(one.viewers) for one in self._watched.values()) >= MOST_VIEWERS:
            raise TooManyStreams(f"{MOST_VIEWERS} live views are open here; try again later")
        await self._sources.look(caller, identity)

    @asynccontextmanager
    async def viewer(self, caller: Caller, identity: str) -> AsyncIterator[Viewer]:
        """A viewer of that station; the first one starts its task, the last one ends it."""
        key = (caller.tenant_id, identity)
        watched = self._watched.get(key)
        if watched is None:
            watched = self._watched[key] = Watched(caller, identity)
            task = asyncio.create_task(self._serve(key, watched), name=f"watch {identity}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        viewer = Viewer()
        if watched.shown:
            viewer.offer(watched.shown)
        watched.viewers.add(viewer)
        try:
            yield viewer
        finally:
            watched.viewers.discard(viewer)

    async def _serve(self, key: tuple[int, str], watched: Watched) -> None:
        try:
            while watched.viewers or not watched.shown:
                try:
                    await self.step(watched)
                except Unavailable as error:
                    logger.warning("the live view of %s waits: %s", watched.identity, error)
                await asyncio.sleep(self._poll_s)
        except KarvonError as error:  # it is gone, or another tenant's now
            watched.offer(sse("end", {"reason": error.detail}))
        except Exception:
            logger.exception("the live view of %s failed", watched.identity)
        finally:
            self._watched.pop(key, None)
            for viewer in watched.viewers:
                viewer.offer(None)

    async def step(self, watched: Watched) -> None:
        """Look once and hand out what is new. Raises KarvonError when it may not be seen."""
        now, caller, identity = self.clock(), watched.caller, watched.identity
        station = await self._sources.look(caller, identity)
        self._tell_station(watched, station)
        found = await self._sources.samples(caller, identity, now - BACK, now + BACK)
        for sample in sorted(found, key=lambda one: (str(one["at"]), int(one["evse"]))):
            self._tell_sample(watched, sample, now)
        await self._ask(watched, now, online=bool(station["online"]))

    def _tell_station(self, watched: Watched, station: dict[str, Any]) -> None:
        """When something changed; an age that only grew is no change."""
        told = json.dumps(_without_ages(station), sort_keys=True)
        watched.shown = sse("station", station)
        if told != watched.told:
            watched.told = told
            watched.offer(watched.shown)

    def _tell_sample(self, watched: Watched, sample: dict[str, Any], now: datetime) -> None:
        evse, at = int(sample["evse"]), str(sample["at"])
        if at <= watched.last.get(evse, ""):
            return
        watched.last[evse] = at
        age = now - datetime.fromisoformat(at)
        if age <= SILENT:
            watched.asking.heard_at = now
        watched.offer(sse("sample", {**sample, "age_ms": max(0, age // timedelta(milliseconds=1))}))

    async def _ask(self, watched: Watched, now: datetime, *, online: bool) -> None:
        asking, caller = watched.asking, watched.caller
        if asking.due(now, online=online):
            watch = Watch(evse=0, every_ms=EVERY, valid_ms=VALID)
            asking.command = await self._sources.ask(caller, watched.identity, watch)
            asking.sent_at = now
            watched.status = ("", "")
        if asking.command is None or watched.status[0] in FINAL:
            return
        status = await self._sources.answer(caller, asking.command)
        asking.refused = status[0] == "rejected"
        if status != watched.status:
            watched.status = status
            watched.offer(sse("watch", {"status": status[0], "result": status[1]}))


def _without_ages(value: Any) -> Any:
    if isinstance(value, dict):
        changing = {"age_s", "last_seen"}
        return {key: _without_ages(one) for key, one in value.items() if key not in changing}
    return [_without_ages(one) for one in value] if isinstance(value, list) else value


def sse(event: str, data: dict[str, Any]) -> bytes:
    return f"event: {event}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def router(watching: Watching) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["stations"])
    about = "`station`, `sample` and `watch` events, at last `end`; comments between."
    content = {"text/event-stream": {"schema": {"type": "string"}}}

    @routes.get(
        "/stations/{station}/live",
        response_class=Response,
        responses={200: {"description": about, "content": content}},
    )
    async def watch_station(
        request: Request,
        caller: Technician,
        station: Annotated[str, Path(min_length=1, max_length=MAX_STATION_LENGTH)],
        minutes: Annotated[int, Query(ge=1, le=MOST_MINUTES, description="then ask again")] = 5,
    ) -> Response:
        """Server-sent events: the station now, then each change and, every second, each sample."""
        await watching.admit(caller, station)
        until = watching.clock() + timedelta(minutes=minutes)
        return EventStream(lambda: _told(watching, caller, station, until, request))

    return routes


async def _told(
    watching: Watching, caller: Caller, station: str, until: datetime, request: Request
) -> AsyncGenerator[bytes, None]:
    asked_again = watching.clock()
    yield b": what it is now, then what changes\n\n"
    async with watching.viewer(caller, station) as viewer:
        while (now := watching.clock()) < until:
            if now - asked_again >= timedelta(seconds=watching.heartbeat_s):
                asked_again = now
                if not await still_holds(request, caller):
                    return
            try:
                chunk = await viewer.next(watching.heartbeat_s)
            except TimeoutError:
                yield b": nothing new\n\n"
                continue
            if chunk is None:
                return
            yield chunk
    yield sse("end", {"reason": "the time asked for is over; ask again to go on"})
