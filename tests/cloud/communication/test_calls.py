"""Calls and asks over REST, answered by a gateway that is another process to the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest

from cloud.communication import store
from cloud.communication.ocpp_commands import (
    Due,
    OcppAnswers,
    OcppCommands,
    running,
)
from cloud.kernel.database import Cursor, Database
from cloud.kernel.facts import GroupCommitter, Spoken
from cloud.kernel.fencing import let_go, take_over
from cloud.kernel.http import Role
from cloud.stations.api import StationRef
from protocols.agent_link import Hello, SetLocalList
from protocols.ocpp.dialect import Request, RequestContext
from protocols.ocpp.messages import Answer, Answered, Connected, Told
from protocols.quantities import Milliseconds

GATEWAY = UUID(int=7)
URL = "/api/v1/stations/CP-1/ocpp/Reset"
SOFT = {"type": "Soft"}


class NoWords:
    def ways(self, do: Any, context: RequestContext) -> tuple[Request, ...]:
        return (Request(type(do).__name__, {}, ""),)

    def outcome(self, action: str, request: Mapping[str, Any], response: Mapping[str, Any]) -> Any:
        raise AssertionError


class Gateway:
    """Holds stations in a process of its own (its own pools), and answers for them."""

    def __init__(self, database: Database, world: Any) -> None:
        self.commands = OcppCommands(
            database, world.authorization, self, world.clock, lambda _: NoWords()
        )
        self.database, self.clock = database, world.clock
        self.sink = GroupCommitter(database, [], [OcppAnswers()], linger_s=0)
        self.asked: list[Due] = []
        self.answers: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def native(
        self, cursor: Cursor, transactions: Collection[UUID]
    ) -> dict[UUID, tuple[str | None, int | None]]:
        return {}

    async def connect(self, station: StationRef, version: str = "ocpp1.6") -> int:
        async with self.database.commit_unit() as cursor:
            epochs = await take_over(cursor, GATEWAY, [(station.id, station.tenant_id)])
        told = Connected(gateway=GATEWAY, version=version, security_profile=0, address="::1")
        await self.say(station, epochs[station.id], told)
        return epochs[station.id]

    async def say(self, station: StationRef, epoch: int, told: Told) -> None:
        answer = Answer(now_ms=Milliseconds(0))
        spoken = Spoken(station.id, station.tenant_id, epoch, self.clock(), told, answer)
        assert await self.sink.append([spoken])

    def hand_over(self, due: Collection[Due]) -> None:
        for one in due:
            self.asked.append(one)
            task = asyncio.create_task(self._answer(one))
            self._tasks.add(task)

    async def _answer(self, due: Due) -> None:
        response = self.answers.get(due.action)
        if response is None:
            return
        told = Answered(
            command=due.command, action=due.action, request=due.payload,
            response=response if isinstance(response, dict) else None,
            accepted=isinstance(response, dict) and response.get("status") == "Accepted",
            text=response["status"] if isinstance(response, dict) else response,
        )  # fmt: skip
        answer = Answer(now_ms=Milliseconds(0))
        await self.sink.append(
            [Spoken(due.station_id, due.tenant_id, due.epoch, self.clock(), told, answer)]
        )


@asynccontextmanager
async def gateway_of(world: Any) -> AsyncIterator[Gateway]:
    async with Database.open(world.database.dsn, app_pool=1, commit_pool=2) as database:
        made = Gateway(database, world)
        async with made.sink, running(made.commands, GATEWAY, made.hand_over):
            yield made
            await asyncio.gather(*made._tasks)


@pytest.fixture
async def gateway(world: Any) -> AsyncIterator[Gateway]:
    listening = asyncio.create_task(world.answers.run())
    async with gateway_of(world) as made:
        yield made
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def test_the_stations_answer_is_the_answer(
    world: Any, gateway: Gateway, admin: httpx.AsyncClient
) -> None:
    await gateway.connect(await world.station())
    gateway.answers = {"Reset": {"status": "Accepted"}}
    answer = await admin.post(URL, json=SOFT)
    told = answer.json()
    assert (answer.status_code, told["accepted"], told["response"]) == (
        200, True, {"status": "Accepted"},
    )  # fmt: skip
    assert [one.payload for one in gateway.asked] == [SOFT]
    command = (await admin.get(told["status_url"])).json()
    assert (command["status"], command["link"], command["request"]) == ("executed", "ocpp", SOFT)
    listed = (await admin.get("/api/v1/commands", params={"kind": "ocpp"})).json()["items"]
    assert [one["id"] for one in listed] == [told["command"]]
    gateway.answers = {"Reset": "NotSupported: no"}
    gateway.commands.wake()
    told = (await admin.post(URL, json={"type": "Hard"})).json()
    assert (told["status"], told["response"], told["error"]) == (
        "failed", None, "NotSupported: no",
    )  # fmt: skip


async def test_what_was_sent_again_is_done_once(
    world: Any, gateway: Gateway, admin: httpx.AsyncClient
) -> None:
    await gateway.connect(await world.station())
    gateway.answers = {"Reset": {"status": "Accepted"}}
    key = {"Idempotency-Key": "one"}
    first = await admin.post(URL, json=SOFT, headers=key)
    again = await admin.post(URL, json=SOFT, headers=key)
    assert (first.status_code, again.json()) == (200, first.json())
    assert len(gateway.asked) == 1
    other = await admin.post(URL, json={"type": "Hard"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency.reused")


async def test_nobody_waits_who_does_not_want_to(
    world: Any, gateway: Gateway, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    epoch = await gateway.connect(station)
    async with world.database.commit_unit() as cursor:
        await let_go(cursor, [(station.id, epoch)])
    away = await admin.post(URL, json=SOFT)
    assert (away.status_code, away.json()["code"]) == (409, "station.not_connected")
    prefer = {"Prefer": "respond-async"}
    stored = await admin.post(f"{URL}?valid_s=600", json=SOFT, headers=prefer)
    assert (stored.status_code, stored.headers["preference-applied"]) == (202, "respond-async")
    gateway.answers = {"Reset": {"status": "Accepted"}}
    await gateway.connect(station)
    gateway.commands.wake()
    async with asyncio.timeout(10):
        while (await admin.get(stored.json()["status_url"])).json()["status"] != "executed":
            await asyncio.sleep(0.05)


async def test_an_answer_that_does_not_come_is_told_so(
    world: Any, gateway: Gateway, admin: httpx.AsyncClient
) -> None:
    await gateway.connect(await world.station())
    late = await admin.post(URL, json=SOFT, headers={"Prefer": "wait=1"})
    problem = late.json()
    assert (late.status_code, problem["code"]) == (504, "command.unanswered")
    command = (await admin.get(f"/api/v1/commands/{problem['params']['command']}")).json()
    assert command["status"] == "sent"


async def test_a_call_goes_out_as_it_was_written(
    world: Any, gateway: Gateway, admin: httpx.AsyncClient
) -> None:
    """Times keep their zone and decimals, of which OCPP allows three."""
    await gateway.connect(await world.station(), "ocpp2.0.1")
    gateway.answers = {"GetLog": {"status": "Accepted"}}
    log = {
        "remoteLocation": "https://logs.example.com/",
        "oldestTimestamp": "2026-11-28T13:00:00.25+05:00",
    }
    payload = {"requestId": 1, "logType": "SecurityLog", "log": log}
    answer = await admin.post("/api/v1/stations/CP-1/ocpp/GetLog", json=payload)
    assert answer.status_code == 200, answer.text
    assert [one.payload for one in gateway.asked] == [payload]


@pytest.mark.parametrize("cost", ["NaN", "1e999", '1, "customData": {"vendorId": "\\ud800"}'])
async def test_what_json_cannot_hold_is_refused(
    world: Any, gateway: Gateway, admin: httpx.AsyncClient, cost: str
) -> None:
    await gateway.connect(await world.station(), "ocpp2.0.1")
    content = f'{{"transactionId": "a", "totalCost": {cost}}}'
    headers = {"Content-Type": "application/json"}
    url = "/api/v1/stations/CP-1/ocpp/CostUpdated"
    refused = await admin.post(url, content=content, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (422, "ocpp.invalid")
    assert {"path", "reason"} <= refused.json()["params"].keys()
    assert gateway.asked == []


@pytest.mark.parametrize(
    ("version", "action", "payload", "status", "code", "path"),
    [
        ("ocpp1.6", "Reset", {"type": "Gently"}, 422, "ocpp.invalid", "/type"),
        ("ocpp1.6", "Reset", {}, 422, "ocpp.invalid", ""),
        ("ocpp1.6", "BootNotification", {}, 404, "ocpp.unknown_action", None),
        ("ocpp1.6", "GetBaseReport", {}, 404, "ocpp.unknown_action", None),
        ("ocpp2.0.1", "GetConfiguration", {}, 404, "ocpp.unknown_action", None),
        (
            "ocpp2.0.1", "GetBaseReport", {"requestId": 1, "reportBase": "All"},
            422, "ocpp.invalid", "/reportBase",
        ),
        (
            "ocpp1.6", "GetDiagnostics", {"location": "http://169.254.169.254/"},
            422, "transfer.refused", None,
        ),
    ],
)  # fmt: skip
async def test_what_the_version_does_not_have_is_refused(
    world: Any, gateway: Gateway, admin: httpx.AsyncClient,
    version: str, action: str, payload: Any, status: int, code: str, path: str | None,
) -> None:  # fmt: skip
    await gateway.connect(await world.station(), version)
    answer = await admin.post(f"/api/v1/stations/CP-1/ocpp/{action}", json=payload)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["params"].get("path") == path
    assert gateway.asked == []


async def test_a_station_that_never_connected_has_no_version(
    world: Any, admin: httpx.AsyncClient
) -> None:
    await world.station()
    for headers in ({}, {"Prefer": "respond-async"}):
        answer = await admin.post(URL, json=SOFT, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (409, "station.not_connected")


async def test_an_ask_waits_for_its_station_and_finds_its_words(
    world: Any, gateway: Gateway, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    url = "/api/v1/stations/CP-1/commands"
    given = await admin.post(f"{url}/reset", json={"kind": "soft"})
    assert given.status_code == 202
    gateway.answers = {"Reset": {"status": "Accepted"}, "ReserveNow": {"status": "Faulted"}}
    await gateway.connect(station, "ocpp2.0.1")
    gateway.commands.wake()
    async with asyncio.timeout(10):
        while (await admin.get(given.json()["status_url"])).json()["status"] != "executed":
            await asyncio.sleep(0.05)
    assert gateway.asked[0].payload == {"type": "Immediate"}
    reserved = await admin.post(
        f"{url}/reserve",
        json={"evse": 1, "id_token": {"value": "A"}, "expires_at": "2030-01-01T00:00:00Z"},
    )
    gateway.commands.wake()
    async with asyncio.timeout(10):
        while len(gateway.asked) < 2:
            await asyncio.sleep(0.05)
    assert gateway.asked[1].payload["id"] == reserved.json()["reservation"]
    assert gateway.asked[1].payload["expiryDateTime"] == "2030-01-01T00:00:00Z"


async def test_what_the_version_cannot_say_is_told_at_once(
    world: Any, gateway: Gateway, admin: httpx.AsyncClient
) -> None:
    await gateway.connect(await world.station())
    url = "/api/v1/stations/CP-1/commands"
    refused = await admin.post(f"{url}/reset", json={"kind": "on_idle"})
    assert (refused.status_code, refused.json()["code"]) == (409, "command.not_supported")
    long = {"id_token": {"value": "x" * 21}, "expires_at": "2030-01-01T00:00:00Z"}
    refused = await admin.post(f"{url}/reserve", json=long)
    assert (refused.status_code, refused.json()["params"]["path"]) == (422, "/idTag")
    body = {"location": "https://example.com/../x", "retrieve_at": "2030-01-01T00:00:00Z"}
    refused = await admin.post(f"{url}/update-firmware", json=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "transfer.refused")
    secret = {"variables": [{"variable": "AuthorizationKey", "value": "x"}]}
    refused = await admin.patch("/api/v1/stations/CP-1/variables", json=secret)
    assert (refused.status_code, refused.json()["code"]) == (422, "ocpp.invalid")
    both = [{"variable": name, "value": "1"} for name in ("A", "B")]
    given = await admin.patch("/api/v1/stations/CP-1/variables", json={"variables": both})
    assert (given.status_code, len(given.json()["commands"])) == (202, 2)


async def test_agents_have_no_such_commands(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    hello = Hello(
        outbox=UUID(int=1), boots=(UUID(int=2),), sent=None, marks={}, agent_version="1",  # type: ignore[arg-type]  # not read
        evses=(), open_transactions=(), local_list_version=0,
    )  # fmt: skip
    async with world.database.commit_unit() as cursor:
        now = datetime.now(UTC)
        await store.connected(cursor, station.tenant_id, station.id, hello, now)
    for path, body in (("ocpp/Reset", SOFT), ("commands/reset", {"kind": "soft"})):
        answer = await admin.post(f"/api/v1/stations/CP-1/{path}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "command.not_supported")
    given = await admin.post("/api/v1/stations/CP-1/commands/send-local-list", json={})
    assert given.status_code == 202
    sent: list[Any] = []

    async def publish(_: str, command: Any) -> None:
        sent.append(command.do)

    await world.commands.deliver(publish)
    assert sent == [SetLocalList(0, ())]


async def test_secrets_go_out_and_are_not_shown(
    world: Any, gateway: Gateway, admin: httpx.AsyncClient
) -> None:
    await gateway.connect(await world.station())
    gateway.answers = {"ChangeConfiguration": {"status": "Accepted"}}
    payload = {"key": "AuthorizationKey", "value": "0123456789abcdef"}
    prefer = {"Prefer": "respond-async"}
    url = "/api/v1/stations/CP-1/ocpp/ChangeConfiguration"
    stored = (await admin.post(url, json=payload, headers=prefer)).json()
    assert (await admin.get(stored["status_url"])).json()["request"]["value"] == "***"
    async with asyncio.timeout(10):
        while (await admin.get(stored["status_url"])).json()["status"] != "executed":
            await asyncio.sleep(0.05)
    assert gateway.asked[0].payload == payload
    async with world.database.commit_unit() as cursor:
        row = await store.command(cursor, UUID(stored["command"]))
    assert "0123456789abcdef" not in str(row)


async def test_a_foreign_station_is_not_there(world: Any, gateway: Gateway) -> None:
    await gateway.connect(await world.station())
    async with await world.client(Role.ADMIN, tenant=2) as other:
        for path, body in (("ocpp/Reset", SOFT), ("commands/reset", {"kind": "soft"})):
            answer = await other.post(f"/api/v1/stations/CP-1/{path}", json=body)
            assert answer.status_code == 404


async def test_what_is_cancelled_or_expires_wakes_its_waiter_and_keeps_no_secret(
    world: Any, gateway: Gateway, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    epoch = await gateway.connect(station)
    async with world.database.commit_unit() as cursor:
        await let_go(cursor, [(station.id, epoch)])
    payload = {"key": "AuthorizationKey", "value": "0123456789abcdef"}
    url = "/api/v1/stations/CP-1/ocpp/ChangeConfiguration"
    prefer = {"Prefer": "respond-async"}
    commands = []
    for _ in range(2):
        answer = await admin.post(url, json=payload, headers=prefer)
        commands.append(UUID(answer.json()["command"]))
    with world.answers.expecting(commands[0]) as ended:
        ended.clear()
        await admin.post(f"/api/v1/commands/{commands[0]}/cancellation")
        async with asyncio.timeout(10):
            await ended.wait()
    world.clock.forward(hours=1)
    await world.commands._expire()
    async with world.database.commit_unit() as cursor:
        rows = [await store.command(cursor, command) for command in commands]
    assert [row.status for row in rows if row] == ["cancelled", "expired"]
    assert "0123456789abcdef" not in str(rows)
