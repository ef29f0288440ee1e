"""A POST with an Idempotency-Key is done once, whatever happens to it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from cloud.kernel.database import Cursor
from cloud.kernel.errors import Unavailable
from cloud.kernel.http import Role

KEY = {"Idempotency-Key": "6a1c"}


async def sites(client: httpx.AsyncClient) -> list[str]:
    return [one["name"] for one in (await client.get("/api/v1/sites")).json()["items"]]


async def test_the_same_request_gets_the_same_answer_and_is_done_once(
    world: Any, admin: httpx.AsyncClient
) -> None:
    first = await admin.post("/api/v1/sites", json={"name": "A"}, headers=KEY)
    again = await admin.post("/api/v1/sites", json={"name": "A"}, headers=KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert first.headers["content-type"] == again.headers["content-type"]
    assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (
        False,
        "true",
    )
    other = await admin.post("/api/v1/sites", json={"name": "B"}, headers=KEY)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency.reused")
    elsewhere = await admin.post("/api/v1/stations", json={"name": "A"}, headers=KEY)
    assert elsewhere.json()["code"] == "idempotency.reused"
    assert await sites(admin) == ["A"]


async def test_a_key_belongs_to_its_caller(world: Any, admin: httpx.AsyncClient) -> None:
    await admin.post("/api/v1/sites", json={"name": "A"}, headers=KEY)
    for tenant in (1, 2):
        async with await world.client(Role.OPERATOR, tenant) as stranger:
            made = await stranger.post("/api/v1/sites", json={"name": f"B{tenant}"}, headers=KEY)
            assert made.status_code == 201
            assert "idempotency-replayed" not in made.headers


async def test_a_key_is_kept_for_a_day(world: Any, admin: httpx.AsyncClient) -> None:
    await admin.post("/api/v1/sites", json={"name": "A"}, headers=KEY)
    world.clock.forward(hours=23.9)
    again = await admin.post("/api/v1/sites", json={"name": "A"}, headers=KEY)
    assert again.status_code == 201
    world.clock.forward(hours=0.2)
    late = await admin.post("/api/v1/sites", json={"name": "B"}, headers=KEY)
    assert late.status_code == 201
    async with world.database.unit(1) as cursor:
        await cursor.execute("SELECT count(*) FROM kernel.idempotency")
        assert await cursor.fetchone() == (1,)


async def test_a_refusal_leaves_the_key_free(world: Any, admin: httpx.AsyncClient) -> None:
    for body in ({"name": ""}, {"name": "A", "time_zone": "Mars/Base"}, {"name": "A", "x": 1}):
        assert (await admin.post("/api/v1/sites", json=body, headers=KEY)).status_code == 422
    assert (await admin.post("/api/v1/sites", json={"name": "A"}, headers=KEY)).status_code == 201
    taken = await admin.post("/api/v1/sites", json={"name": "A"}, headers={"Idempotency-Key": "2"})
    assert taken.status_code == 409
    async with await world.client(Role.VIEWER) as viewer, await world.client(None) as nobody:
        refused = await viewer.post("/api/v1/sites", json={"name": "C"}, headers=KEY)
        unknown = await nobody.post("/api/v1/sites", json={"name": "C"}, headers=KEY)
        assert (refused.status_code, unknown.status_code) == (403, 401)


@pytest.mark.parametrize("key", ["", "x" * 256, "é"])
async def test_a_key_that_is_none_is_refused(admin: httpx.AsyncClient, key: str) -> None:
    headers = [(b"Idempotency-Key", key.encode("utf-8"))]
    answer = await admin.post("/api/v1/sites", json={"name": "A"}, headers=headers)
    wanted = (201, None) if key == "é" else (422, "idempotency.key")
    assert (answer.status_code, answer.json().get("code")) == wanted


async def test_a_twin_that_is_under_way_is_told_to_wait(
    world: Any, admin: httpx.AsyncClient
) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def wait(cursor: Cursor) -> None:
        reached.set()
        await go_on.wait()

    world.link.on_send = wait
    await world.station()
    url, body = "/api/v1/stations/CP-1/commands/set-availability", {"operative": True}
    first = asyncio.create_task(admin.post(url, json=body, headers=KEY))
    await reached.wait()
    twin = await admin.post(url, json=body, headers=KEY)
    assert (twin.status_code, twin.json()["code"]) == (409, "idempotency.busy")
    go_on.set()
    done = await first
    again = await admin.post(url, json=body, headers=KEY)
    assert (done.status_code, again.json()) == (202, done.json())
    assert len(world.link.sent) == 1


@pytest.mark.parametrize(
    "failure", [Unavailable("the database is away"), RuntimeError("bug"), None], ids=str
)
async def test_a_request_that_died_midway_left_nothing(
    world: Any, admin: httpx.AsyncClient, failure: Exception | None
) -> None:
    """Without a failure of ours, its connection is killed."""
    await world.station()
    url, body = "/api/v1/stations/CP-1/commands/set-availability", {"operative": True}

    async def die(cursor: Cursor) -> None:
        await cursor.execute("UPDATE stations.station SET name = 'half done'")
        if failure is None:
            await cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        else:
            raise failure

    world.link.on_send = die
    died = await admin.post(url, json=body, headers=KEY)
    assert died.status_code in {500, 503}
    assert (await admin.get("/api/v1/stations/CP-1")).json()["name"] == ""
    world.link.on_send = None
    done = await admin.post(url, json=body, headers=KEY)
    assert (done.status_code, "idempotency-replayed" in done.headers) == (202, False)


async def test_what_is_shown_once_is_not_kept_readable(
    world: Any, admin: httpx.AsyncClient
) -> None:
    body = {"name": "export", "role": "viewer"}
    made = await admin.post("/api/v1/api-keys", json=body, headers=KEY)
    again = await admin.post("/api/v1/api-keys", json=body, headers=KEY)
    assert made.json() == again.json()
    secret = made.json()["key"][-16:].encode()  # an underscore may stand anywhere in it
    async with world.database.unit(1) as cursor:
        await cursor.execute("SELECT answer, key_digest FROM kernel.idempotency")
        ((answer, digest),) = await cursor.fetchall()
    assert secret not in answer
    assert b"export" not in answer
    assert KEY["Idempotency-Key"].encode() not in digest


async def test_a_get_and_a_login_take_no_notice(world: Any, admin: httpx.AsyncClient) -> None:
    for _ in range(2):
        assert "idempotency-replayed" not in (await admin.get("/api/v1/me", headers=KEY)).headers
    async with await world.client(None) as anybody:
        for _ in range(2):
            body = {"name": "nobody", "password": "x"}
            answer = await anybody.post("/api/v1/login", json=body, headers=KEY)
            assert answer.json()["code"] == "login.refused"


def test_the_document_names_the_header(world: Any) -> None:
    paths = world.app.openapi()["paths"]

    def named(path: str) -> bool:
        told = paths[path]["post"].get("parameters", [])
        return "Idempotency-Key" in [parameter["name"] for parameter in told]

    assert named("/api/v1/sites")
    assert not named("/api/v1/login")
