"""The commands' routes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx

from cloud.communication import store
from cloud.kernel.database import TenantId
from cloud.stations.api import StationRef
from protocols.agent_link import Action, SetAvailability, SetLimit
from protocols.quantities import MilliAmperes, Milliseconds

LIMIT = SetLimit(1, MilliAmperes(16000), Milliseconds(60000))


async def given(world: Any, station: StationRef, action: Action = LIMIT) -> UUID:
    tenant = TenantId(station.tenant_id)
    async with world.database.unit(tenant) as cursor:
        command: UUID = await world.commands.send(
            cursor, tenant, station.id, action, timedelta(minutes=2), "key:7"
        )
    return command


async def test_commands_are_narrowed_and_come_latest_first(
    world: Any, admin: httpx.AsyncClient
) -> None:
    one, two = await world.station("CP-1"), await world.station("CP-2")
    await given(world, await world.station("CP-3", tenant=2))
    first = await given(world, one)
    world.clock.forward(minutes=1)
    second = await given(world, two, SetAvailability(1, operative=True))

    async def found(url: str = "/api/v1/commands", **params: str) -> list[str]:
        page = (await admin.get(url, params=params)).json()
        return [command["id"] for command in page["items"]]

    assert await found() == [str(second), str(first)]
    assert await found(station="CP-1") == [str(first)]
    assert await found("/api/v1/stations/CP-1/commands") == [str(first)]
    assert await found(kind="set_availability") == [str(second)]
    assert await found(status="sent") == []
    assert await found(**{"from": "2026-05-01T12:00:30Z"}) == [str(second)]
    assert await found(to="2026-05-01T12:00:30Z", sort="requested_at") == [str(first)]
    sheet = await admin.get("/api/v1/commands", params={"format": "csv"})
    assert '"{""evse"":1,' in sheet.text
    assert (await admin.get("/api/v1/commands", params={"station": "CP-3"})).status_code == 404


async def test_what_still_waits_can_be_cancelled(world: Any, admin: httpx.AsyncClient) -> None:
    command = await given(world, await world.station())
    url = f"/api/v1/commands/{command}"
    cancelled = await admin.post(f"{url}/cancellation")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert (await admin.get(url)).json() == cancelled.json()
    again = await admin.post(f"{url}/cancellation")
    assert (again.status_code, again.json()["code"]) == (409, "command.under_way")
    events = (await admin.get("/api/v1/events", params={"kind": "command"})).json()["items"]
    assert [event["kind"] for event in events] == ["command.cancelled"]
    missing = await admin.post(f"/api/v1/commands/{uuid4()}/cancellation")
    assert (missing.status_code, missing.json()["code"]) == (404, "command.not_found")


async def test_what_went_out_cannot_be_called_back(world: Any, admin: httpx.AsyncClient) -> None:
    command = await given(world, await world.station())
    async with world.database.commit_unit() as cursor:
        await store.note_sent(cursor, [command], world.clock())
    late = await admin.post(f"/api/v1/commands/{command}/cancellation")
    assert (late.status_code, late.json()["params"]["status"]) == (409, "sent")
