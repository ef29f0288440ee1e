"""Events as they happen, for many clients of one process.

One task listens for the database's wake-up, reads what is new once, and hands it to each client
whose tenant and filter it fits. A client first reads what it has missed from the log by itself. A
client that does not keep up is cut, not buffered: it comes back with the last id it has seen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cloud.kernel import events
from cloud.kernel.database import Database
from cloud.kernel.errors import KarvonError, Kind, Unavailable
from cloud.kernel.events import EventLog, Logged, Narrow
from cloud.stations.api import StationFinder

logger = logging.getLogger(__name__)

WAITING: Final = 1000
"""Events that may wait for one client."""
MOST_CLIENTS: Final = 500
HEARTBEAT_S: Final = 15.0
SEND_S: Final = 15.0
"""A client that takes nothing for so long is cut."""
_SETTLE_S: Final = 0.02
"""Commits that follow each other within this time are read at once."""
_BATCH: Final = 500


class TooManyStreams(KarvonError):
    kind = Kind.RATE_LIMITED
    code = "events.too_many_streams"


@dataclass(frozen=True)
class Told:
    """An event with its station's identity."""

    logged: Logged
    station: str | None


class Client:
    """One stream: what waits for it, and whether it goes on."""

    def __init__(self, narrow: Narrow) -> None:
        self.narrow = narrow
        self.upto: dict[int, int] = {}
        """What the log holds up to here is the client's own to read."""
        self._waiting: asyncio.Queue[Told | None] = asyncio.Queue(WAITING + 1)
        self._cut = False

    def offer(self, told: Told) -> None:
        """Let it wait for the client; a client with too much waiting is ended."""
        if self._cut or not self.narrow.takes(told.logged):
            return
        if self._waiting.qsize() >= WAITING:
            self.end()
        else:
            self._waiting.put_nowait(told)

    def end(self) -> None:
        """Nothing more comes; what waits is dropped."""
        self._cut = True
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._waiting.put_nowait(None)

    async def next(self, patience_s: float) -> Told | None:
        """The next event; None at the end. Raises TimeoutError when nothing comes."""
        async with asyncio.timeout(patience_s):
            while True:
                told = await self._waiting.get()
                if told is None or told.logged.position > self.upto.get(told.logged.partition, -1):
                    return told


class EventFeed:
    """`run` reads the log while there are clients; `serving` ends every stream when it is left."""

    def __init__(
        self,
        database: Database,
        stations: StationFinder,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        most_clients: int = MOST_CLIENTS,
    ) -> None:
        self.heartbeat_s = heartbeat_s
        self.most_clients = most_clients
        self._database = database
        self._stations = stations
        self._log = EventLog(database)
        self._clients: set[Client] = set()
        self._wanted = asyncio.Event()
        self._positions: dict[int, int] | None = None
        self._following = asyncio.Condition()
        self._open = False

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Streams are served within the block; at its end they are ended before HTTP stops."""
        self._open = True
        task = asyncio.create_task(self._again(), name="event feed")
        try:
            yield
        finally:
            self._open = False
            self._end_all()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _again(self) -> None:
        while True:
            try:
                await self.run()
            except Unavailable as error:
                logger.warning("the event feed waits for the database: %s", error)
            except Exception:
                logger.exception("the event feed failed; it begins again")
            self._end_all()
            await asyncio.sleep(1)

    def _end_all(self) -> None:
        for client in self._clients:
            client.end()

    async def run(self) -> None:
        """Follow the log whenever somebody listens."""
        while True:
            await self._wanted.wait()
            async with self._log.woken() as wake:
                try:
                    await self._follow(wake)
                finally:
                    self._positions = None

    async def _follow(self, wake: asyncio.Event) -> None:
        async with self._database.commit_unit() as cursor:
            self._positions = await events.heads(cursor)
        async with self._following:
            self._following.notify_all()
        while self._wanted.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self.heartbeat_s):
                    await wake.wait()
            await asyncio.sleep(_SETTLE_S)
            wake.clear()
            while await self._pass_on(self._positions):
                pass

    async def _pass_on(self, positions: dict[int, int]) -> bool:
        """Hand out what is new; whether there may be more."""
        async with self._database.commit_unit() as cursor:
            found = await events.read(cursor, positions, _BATCH)
            names = await self._stations.identities(cursor, stations_of(found))
        for logged in found:
            positions[logged.partition] = logged.position
            told = Told(logged, names.get(logged.event.station_id or 0))
            for client in self._clients:
                client.offer(told)
        return len(found) == _BATCH

    def admit(self) -> None:
        """Raises TooManyStreams when all places are taken, Unavailable when none is served."""
        if len(self._clients) >= self.most_clients:
            raise TooManyStreams(f"{len(self._clients)} streams are open here; try again later")
        if not self._open:
            raise Unavailable("this process does not serve streams any more; connect again")

    @asynccontextmanager
    async def client(self, narrow: Narrow) -> AsyncIterator[Client]:
        """A client that gets what is logged from now on; `upto` says where that begins.

        Raises as `admit` does, and Unavailable while the log cannot be followed.
        """
        self.admit()
        client = Client(narrow)
        self._clients.add(client)
        self._wanted.set()
        try:
            client.upto = await self._begin()
            yield client
        finally:
            self._clients.discard(client)
            if not self._clients:
                self._wanted.clear()

    async def _begin(self) -> dict[int, int]:
        try:
            async with asyncio.timeout(5), self._following:
                await self._following.wait_for(lambda: self._positions is not None)
        except TimeoutError:
            raise Unavailable("the event log cannot be followed just now; try again") from None
        return dict(self._positions or {})


def stations_of(found: Iterable[Logged]) -> set[int]:
    return {one.event.station_id for one in found if one.event.station_id}


class EventStream(Response):
    """A server-sent event stream that ends with its source, its client, or the client's sloth."""

    media_type = "text/event-stream"

    def __init__(
        self, source: Callable[[], AsyncGenerator[bytes, None]], *, send_s: float = SEND_S
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._source = source
        self._send_s = send_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  # the signature of ASGI
        """Send until one of the three ends it."""
        tasks = [_task(self._send(send)), _task(_disconnected(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, Exception) and not isinstance(outcome, TimeoutError):
                    logger.warning("an event stream failed: %s", outcome)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with aclosing(self._source()) as chunks:
                async for chunk in chunks:
                    async with asyncio.timeout(self._send_s):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except KarvonError as error:  # the client comes back and is told so
            logger.warning("an event stream ended: %s", error)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.create_task(work)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
