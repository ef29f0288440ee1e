"""The event log over REST: polled, browsed, and as a stream from a real server."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from cloud.api import live
from cloud.api.live import Client, EventStream, Told
from cloud.kernel import events
from cloud.kernel.database import TenantId
from cloud.kernel.events import Event, Logged, Narrow
from cloud.kernel.http import Role
from cloud.kernel.serving import http as serve_http

URL = "/api/v1/events"


async def happen(world: Any, *told: tuple[int | None, str], tenant: int = 1) -> None:
    """Events of (station, kind)."""
    async with world.database.commit_unit() as cursor:
        await events.append(
            cursor,
            [
                Event(TenantId(tenant), kind, station, f"s:{uuid4()}", {"n": n})
                for n, (station, kind) in enumerate(told)
            ],
        )


def kinds(page: dict[str, Any]) -> list[str]:
    return [one["kind"] for one in page["items"]]


# --------------------------------------------------------------------------- lists


async def test_events_are_filtered(world: Any, admin: httpx.AsyncClient) -> None:
    one, two = await world.station("CP-1"), await world.station("CP-2")
    await happen(world, (one.id, "a.x"), (two.id, "a.y"), (one.id, "b.x"), (None, "b.y"))
    await happen(world, (one.id, "a.foreign"), tenant=2)
    assert kinds((await admin.get(URL, params={"kind": "a."})).json()) == ["a.x", "a.y"]
    assert kinds((await admin.get(URL, params={"station": "CP-1"})).json()) == ["a.x", "b.x"]
    both = {"station": "CP-1", "kind": "b"}
    assert kinds((await admin.get(URL, params=both)).json()) == ["b.x"]
    assert (await admin.get(URL, params={"station": "CP-9"})).status_code == 404
    unlike = await admin.get(URL, params={"kind": "%"})
    assert unlike.json()["items"] == []


async def test_a_filtered_cursor_goes_past_what_is_of_no_interest(
    world: Any, admin: httpx.AsyncClient
) -> None:
    await happen(world, (1, "a.x"), (2, "b.x"), (1, "b.y"))
    first = (await admin.get(URL, params={"kind": "a"})).json()
    assert kinds(first) == ["a.x"]
    rest = (await admin.get(URL, params={"cursor": first["next"]})).json()
    assert kinds(rest) == []
    await happen(world, (2, "a.z"))
    more = (await admin.get(URL, params={"kind": "a", "cursor": first["next"]})).json()
    assert kinds(more) == ["a.z"]


async def test_the_newest_come_first_page_by_page(world: Any, admin: httpx.AsyncClient) -> None:
    for n in range(7):
        await happen(world, (n % 3, f"k.{n}"), (n % 3, f"k.{n}b"))
    await happen(world, (1, "foreign"), tenant=2)
    found, params = [], {"order": "newest", "limit": 4}
    while True:
        page = (await admin.get(URL, params=params)).json()
        found += kinds(page)
        if page["next"] is None:
            break
        params["cursor"] = page["next"]
    assert found == [name for n in reversed(range(7)) for name in (f"k.{n}b", f"k.{n}")]
    forward = await admin.get(URL, params={"cursor": params["cursor"]})
    assert forward.json()["code"] == "cursor.invalid"


@pytest.mark.parametrize("order", ["oldest", "newest"])
async def test_since_begins_there(world: Any, admin: httpx.AsyncClient, order: str) -> None:
    for n in range(20):
        await happen(world, (n % 3, f"k.{n:02}"))
    everything = (await admin.get(URL)).json()["items"]
    for at in (0, 7, 13, 19):
        since = everything[at]["at"]
        page = (await admin.get(URL, params={"since": since, "order": order})).json()
        assert sorted(kinds(page)) == [f"k.{n:02}" for n in range(at, 20)]
    later = await admin.get(URL, params={"since": "2999-01-01T00:00:00Z", "order": order})
    assert later.json()["items"] == []


async def test_events_are_told_as_csv(world: Any, admin: httpx.AsyncClient) -> None:
    await world.station("CP-1")
    await happen(world, (1, "a.x"))
    sheet = await admin.get(URL, headers={"Accept": "text/csv"})
    (row,) = csv.DictReader(io.StringIO(sheet.text, newline=""))
    assert (row["station"], row["kind"], row["data"]) == ("CP-1", "a.x", '{"n":0}')
    assert "cursor=" in sheet.headers["link"]


# --------------------------------------------------------------------------- streams


@pytest.fixture
async def server(world: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a real server over the world's application."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        async with (
            serve_http(world.app, listener),
            world.feed.serving(),
            await world.client(Role.VIEWER) as known,
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{listener.getsockname()[1]}",
                headers=known.headers,
                timeout=10,
            ) as client,
        ):
            yield client


class Stream:
    """Reads events off a response."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.comments = 0

    async def next(self) -> tuple[str, dict[str, Any]]:
        told, data = "", None
        async with asyncio.timeout(10):
            async for line in self._lines:
                if line.startswith("id: "):
                    told = line[4:]
                elif line.startswith("data: "):
                    data = json.loads(line[6:])
                elif line.startswith(":"):
                    self.comments += 1
                elif not line and data is not None:
                    return told, data
        raise EOFError

    async def kinds(self, count: int) -> list[str]:
        return [(await self.next())[1]["kind"] for _ in range(count)]


@contextlib.asynccontextmanager
async def streaming(
    client: httpx.AsyncClient, headers: dict[str, str] | None = None, **params: Any
) -> AsyncIterator[Stream]:
    url = f"{URL}/stream"
    async with client.stream("GET", url, params=params, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Stream(response)


async def listening(world: Any, count: int) -> None:
    """Until that many streams follow the log."""
    async with asyncio.timeout(10):
        while sum(bool(client.upto) for client in world.feed._clients) < count:
            await asyncio.sleep(0.01)


async def test_what_happens_is_told_at_once(world: Any, server: httpx.AsyncClient) -> None:
    station = await world.station("CP-1")
    await happen(world, (1, "before"))
    async with streaming(server) as stream, streaming(server, kind="b.") as narrow:
        await listening(world, 2)
        await happen(world, (9, "foreign"), tenant=2)
        await happen(world, (station.id, "a.x"), (9, "b.x"))
        (_, first), (_, second) = await stream.next(), await stream.next()
        assert [first["kind"], second["kind"]] == ["a.x", "b.x"]
        assert (first["station"], second["station"]) == ("CP-1", None)
        assert await narrow.kinds(1) == ["b.x"]
        with psycopg.connect(world.database.dsn) as owner:  # who alone sees what others ask
            listeners = owner.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND query = 'LISTEN karvon_event'"
            ).fetchone()
        assert listeners == (1,)
    async with asyncio.timeout(10):
        while world.feed._clients:
            await asyncio.sleep(0.01)


async def test_a_stream_is_taken_up_where_it_ended(world: Any, server: httpx.AsyncClient) -> None:
    start = (await server.get(URL)).json()["next"]
    names = [f"k.{n:03}" for n in range(12)]
    for n, name in enumerate(names[:9]):
        await happen(world, (n % 3, name))
    seen: list[str] = []
    last = ""
    async with streaming(server, cursor=start) as stream:
        for _ in range(5):
            last, event = await stream.next()
            seen.append(event["kind"])
    async with streaming(server, {"Last-Event-ID": last}, cursor=start) as stream:
        seen += await stream.kinds(4)
        await listening(world, 1)
        for n, name in enumerate(names[9:]):
            await happen(world, (n, name))
        for _ in range(3):
            last, event = await stream.next()
            seen.append(event["kind"])
    assert seen == names
    polled = await server.get(URL, params={"cursor": last})
    assert polled.json()["items"] == []


async def test_nothing_is_missed_or_doubled_between_replay_and_live(
    world: Any, server: httpx.AsyncClient
) -> None:
    start = (await server.get(URL)).json()["next"]
    total = 60

    async def write() -> None:
        for n in range(total):
            await happen(world, (n % 5, f"k.{n:03}"))

    writing = asyncio.create_task(write())
    seen: list[list[str]] = []
    for _ in range(3):
        async with streaming(server, cursor=start) as stream:
            seen.append(await stream.kinds(total))
    await writing
    wanted = [f"k.{n:03}" for n in range(total)]
    for one in seen:
        assert sorted(one) == wanted
        for part in range(5):
            assert [k for k in one if int(k[2:]) % 5 == part] == wanted[part::5]


async def test_a_stream_may_begin_in_the_past(world: Any, server: httpx.AsyncClient) -> None:
    for n in range(4):
        await happen(world, (n, f"k.{n}"))
    since = (await server.get(URL)).json()["items"][2]["at"]
    async with streaming(server, since=since) as stream:
        assert await stream.kinds(2) == ["k.2", "k.3"]


async def test_a_silent_stream_beats_and_ends_with_its_key(
    world: Any, server: httpx.AsyncClient
) -> None:
    world.feed.heartbeat_s = 0.05
    async with await world.client(Role.ADMIN) as boss, streaming(server) as stream:
        await listening(world, 1)
        await asyncio.sleep(0.2)
        keys = (await boss.get("/api/v1/api-keys?role=viewer")).json()["items"]
        await boss.delete(f"/api/v1/api-keys/{keys[0]['id']}")
        with pytest.raises(EOFError):
            await stream.next()
        assert stream.comments > 2


async def test_a_busy_stream_ends_with_its_key_too(world: Any, server: httpx.AsyncClient) -> None:
    world.feed.heartbeat_s = 0.2
    async with await world.client(Role.ADMIN) as boss, streaming(server) as stream:
        await listening(world, 1)

        async def keep_busy() -> None:
            while True:
                await happen(world, (1, "a.x"))

        busy = asyncio.create_task(keep_busy())
        keys = (await boss.get("/api/v1/api-keys?role=viewer")).json()["items"]
        await boss.delete(f"/api/v1/api-keys/{keys[0]['id']}")
        with pytest.raises(EOFError):
            await stream.kinds(10_000)
        busy.cancel()


async def test_a_stopping_server_ends_its_streams(world: Any) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with await world.client(Role.VIEWER) as known, contextlib.AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                httpx.AsyncClient(base_url=base, headers=known.headers, timeout=10)
            )
            serving = contextlib.AsyncExitStack()
            await serving.enter_async_context(serve_http(world.app, listener))
            await serving.enter_async_context(world.feed.serving())
            stream = await stack.enter_async_context(streaming(client))
            await listening(world, 1)
            async with asyncio.timeout(3):
                await asyncio.gather(serving.aclose(), _ended(stream))


async def _ended(stream: Stream) -> None:
    with pytest.raises(EOFError):
        await stream.next()


async def test_a_wrong_cursor_is_a_problem_not_a_stream(admin: httpx.AsyncClient) -> None:
    for headers, params in (({}, {"cursor": "x"}), ({"Last-Event-ID": "x"}, {})):
        answer = await admin.get(f"{URL}/stream", headers=headers, params=params)
        assert (answer.status_code, answer.json()["code"]) == (422, "cursor.invalid")


# --------------------------------------------------------------------------- slow clients


def logged(world: Any, position: int) -> Told:
    event = Event(TenantId(1), "k", None, "s", {})
    return Told(Logged(0, position, world.clock(), event), None)


async def test_a_client_that_does_not_keep_up_is_cut(world: Any) -> None:
    client = Client(Narrow(TenantId(1)))
    for n in range(live.WAITING):
        client.offer(logged(world, n))
    first = await client.next(1)
    assert first is not None
    for n in range(2):
        client.offer(logged(world, live.WAITING + n))
    assert await client.next(1) is None
    client.offer(logged(world, 0))
    with pytest.raises(TimeoutError):
        await client.next(0)


async def test_a_client_that_takes_nothing_is_let_go() -> None:
    sent: list[str] = []

    async def source() -> AsyncGenerator[bytes, None]:
        yield b"x"

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async with asyncio.timeout(5):
        await EventStream(source, send_s=0.05)({}, receive, send)
    assert sent == ["http.response.start", "http.response.body"]


async def test_there_are_only_so_many_streams(world: Any, admin: httpx.AsyncClient) -> None:
    world.feed.most_clients = 0
    answer = await admin.get(f"{URL}/stream")
    assert (answer.status_code, answer.json()["code"]) == (429, "events.too_many_streams")
    world.feed.most_clients = 1
    answer = await admin.get(f"{URL}/stream")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
