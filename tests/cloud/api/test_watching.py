"""The live view: when an agent is asked, what viewers are told, when their streams end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from fastapi import FastAPI

from cloud.api.watching import (
    AGAIN,
    RENEW,
    SILENT,
    VALID,
    WAITING,
    Asking,
    Sources,
    Viewer,
    Watching,
    router,
)
from cloud.kernel.database import TenantId
from cloud.kernel.errors import KarvonError, Unauthorized, Unavailable
from cloud.kernel.http import Caller, Role, install_problem_handlers
from cloud.kernel.serving import http as serve_http
from cloud.stations.api import StationNotFound
from protocols.agent_link import MOST_WATCH_MS, Watch

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
CALLER = Caller(TenantId(1), "key:1", Role.TECHNICIAN)

GOOD = {"Authorization": "Bearer good"}


class House:
    """Everything that the live view asks of others, and a clock that is moved."""

    def __init__(self) -> None:
        self.now = NOON
        self.looks = asyncio.Event()
        self.station: dict[str, Any] | KarvonError = {
            "station": "CP-1",
            "online": True,
            "last_seen": "x",
            "evses": [{"evse": 1, "state": {"value": {"status": "Available"}, "age_s": 1}}],
        }
        self.measured: list[dict[str, Any]] = []
        self.asked: list[tuple[str, Watch]] = []
        self.status = ("requested", "")
        self.keys = {"good": CALLER}

    def clock(self) -> datetime:
        return self.now

    async def looked_again(self, times: int) -> None:
        """Until it was looked so often, or nobody looks any more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                for _ in range(times):
                    self.looks.clear()
                    await self.looks.wait()

    def forward(self, **step: float) -> None:
        self.now += timedelta(**step)

    def sample(self, ago_s: float = 1, evse: int = 1) -> None:
        at = (self.now - timedelta(seconds=ago_s)).isoformat()
        self.measured.append({"evse": evse, "at": at, "power_w": 7200})

    def sources(self) -> Sources:
        return Sources(self._look, self._samples, self._ask, self._answer)

    async def _look(self, caller: Caller, identity: str) -> dict[str, Any]:
        self.looks.set()
        if isinstance(self.station, KarvonError):
            raise self.station
        return self.station

    async def _samples(
        self, caller: Caller, identity: str, start: datetime, end: datetime
    ) -> list[dict[str, Any]]:
        span = start.isoformat(), end.isoformat()
        return [one for one in self.measured if span[0] <= one["at"] < span[1]]

    async def _ask(self, caller: Caller, identity: str, watch: Watch) -> UUID:
        self.asked.append((identity, watch))
        return uuid4()

    async def _answer(self, caller: Caller, command: UUID) -> tuple[str, str]:
        return self.status

    async def authenticate(self, token: str) -> Caller:
        if token not in self.keys:
            raise Unauthorized("no such key")
        return self.keys[token]


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
async def watching(house: House) -> AsyncIterator[Watching]:
    made = Watching(house.sources(), house.clock, poll_s=0.01, heartbeat_s=5)
    async with made.serving():
        yield made


@pytest.fixture
async def server(house: House, watching: Watching) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.state.authenticator = house
    install_problem_handlers(app)
    app.include_router(router(watching))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api/v1"
        async with (
            serve_http(app, listener),
            httpx.AsyncClient(base_url=url, headers=GOOD, timeout=60) as client,
        ):
            yield client


async def told(stream: AsyncIterator[str], count: int) -> list[tuple[str, dict[str, Any]]]:
    """So many events of a stream."""
    found: list[tuple[str, dict[str, Any]]] = []
    name = ""
    async with asyncio.timeout(5):
        while len(found) < count:
            line = await anext(stream)
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((name, json.loads(line.removeprefix("data: "))))
    return found


# --------------------------------------------------------------------------- when to ask


def test_an_agent_is_asked_when_it_is_there_and_before_it_forgets() -> None:
    asking = Asking()
    assert not asking.due(NOON, online=False)
    assert asking.due(NOON, online=True)
    asking.sent_at = asking.heard_at = NOON
    assert not asking.due(NOON + timedelta(seconds=1), online=True)
    assert asking.due(NOON + RENEW, online=True)
    assert timedelta(milliseconds=VALID) > RENEW + AGAIN
    assert VALID <= MOST_WATCH_MS


def test_an_agent_that_fell_silent_is_asked_again_but_not_at_once() -> None:
    asking = Asking(sent_at=NOON, heard_at=NOON)
    assert not asking.due(NOON + SILENT, online=True)
    assert asking.due(NOON + AGAIN, online=True)
    asking.heard_at = NOON + AGAIN
    assert not asking.due(NOON + AGAIN, online=True)


def test_an_agent_that_does_not_know_the_action_is_left_alone() -> None:
    assert not Asking(sent_at=NOON, refused=True).due(NOON + 2 * RENEW, online=True)


# --------------------------------------------------------------------------- what is told


async def test_viewers_are_told_the_station_then_each_sample_once(
    house: House, server: httpx.AsyncClient
) -> None:
    house.sample(ago_s=2)
    async with server.stream("GET", "/stations/CP-1/live") as answer:
        lines = answer.aiter_lines()
        first = await told(lines, 3)
        assert [name for name, _ in first] == ["station", "sample", "watch"]
        assert first[0][1] == house.station
        assert (first[1][1]["power_w"], first[1][1]["age_ms"]) == (7200, 2000)
        assert first[2][1] == {"status": "requested", "result": ""}
        house.forward(seconds=1)
        house.sample(ago_s=0.5)
        house.sample(ago_s=0.5, evse=2)
        house.status = ("executed", "")
        assert [name for name, _ in await told(lines, 3)] == ["sample", "sample", "watch"]
    assert [watch.evse for _, watch in house.asked] == [0]


async def test_a_state_that_only_grew_older_is_not_told_again(
    house: House, watching: Watching
) -> None:
    async with watching.viewer(CALLER, "CP-1") as viewer:
        chunks = [await viewer.next(2) for _ in range(2)]
        assert isinstance(house.station, dict)
        house.station = json.loads(json.dumps(house.station).replace('"age_s": 1', '"age_s": 2'))
        with pytest.raises(TimeoutError):
            await viewer.next(0.1)
        house.station = json.loads(json.dumps(house.station).replace("Available", "Faulted"))
        chunk = await viewer.next(2)
    assert chunks[0] is not None
    assert chunks[0].startswith(b"event: station")
    assert chunk is not None
    assert b"Faulted" in chunk


async def test_many_viewers_ask_once_and_late_ones_see_the_station_at_once(
    house: House, watching: Watching
) -> None:
    async with watching.viewer(CALLER, "CP-1") as first:
        assert await first.next(2)
        async with watching.viewer(CALLER, "CP-1") as second:
            chunk = await second.next(2)
            assert chunk is not None
            assert chunk.startswith(b"event: station")
            house.sample()
            assert await second.next(2)
    assert len(house.asked) == 1


async def test_who_looks_again_later_asks_again(house: House, watching: Watching) -> None:
    for _ in range(2):
        async with watching.viewer(CALLER, "CP-1") as viewer:
            await viewer.next(2)
            await viewer.next(2)
        await house.looked_again(3)
    assert len(house.asked) == 2


# --------------------------------------------------------------------------- when it ends


async def test_a_stream_ends_when_its_time_is_over(house: House, server: httpx.AsyncClient) -> None:
    async with server.stream("GET", "/stations/CP-1/live", params={"minutes": 2}) as answer:
        lines = answer.aiter_lines()
        await told(lines, 2)
        house.forward(minutes=2)
        house.sample()
        names = [name async for name in lines if name.startswith("event: ")]
    assert names[-1] == "event: end"


async def test_a_stream_ends_when_the_station_is_gone_or_anothers(
    house: House, server: httpx.AsyncClient
) -> None:
    async with server.stream("GET", "/stations/CP-1/live") as answer:
        lines = answer.aiter_lines()
        await told(lines, 2)
        house.station = StationNotFound("there is no station CP-1")
        ((name, data),) = await told(lines, 1)
        assert (name, data) == ("end", {"reason": "there is no station CP-1"})
        assert [line async for line in lines if line] == []


async def test_a_stream_outlives_no_key(house: House, server: httpx.AsyncClient) -> None:
    async with server.stream("GET", "/stations/CP-1/live") as answer:
        lines = answer.aiter_lines()
        await told(lines, 2)
        del house.keys["good"]
        house.forward(seconds=6)
        house.sample()
        async with asyncio.timeout(5):
            assert [line async for line in lines if line.startswith("event: end")] == []


async def test_a_database_that_is_away_interrupts_no_stream(
    house: House, watching: Watching
) -> None:
    async with watching.viewer(CALLER, "CP-1") as viewer:
        assert await viewer.next(2)
        assert await viewer.next(2)
        station, house.station = house.station, Unavailable("away")
        await house.looked_again(2)
        house.station = station
        house.sample()
        chunk = await viewer.next(2)
    assert chunk is not None
    assert chunk.startswith(b"event: sample")


async def test_who_does_not_keep_up_is_ended() -> None:
    viewer = Viewer()
    for _ in range(WAITING + 1):
        viewer.offer(b"x")
    assert await viewer.next(1) is None


async def test_what_cannot_be_watched_is_refused(house: House, server: httpx.AsyncClient) -> None:
    assert (await server.get("/stations/CP-1/live", params={"minutes": 16})).status_code == 422
    house.keys["low"] = Caller(TenantId(1), "key:2", Role.VIEWER)
    low = {"Authorization": "Bearer low"}
    assert (await server.get("/stations/CP-1/live", headers=low)).status_code == 403
    house.station = StationNotFound("there is no station CP-9")
    missing = await server.get("/stations/CP-9/live")
    assert (missing.status_code, missing.json()["code"]) == (404, "station.not_found")
    assert house.asked == []
