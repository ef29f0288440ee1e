"""Settings of agents over REST: what is desired, sent, reported, and who is out of step."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx
import pytest

from cloud.kernel.facts import Delivery
from cloud.kernel.http import Role
from protocols.agent_link import (
    ClockQuality,
    Configure,
    SettingsState,
    SettingsUse,
    Stamp,
    StateBatch,
    StationStatus,
    Stream,
)
from protocols.quantities import Milliseconds

DOCUMENT = {"times": {"event_s": 60}, "boards": {"left": {"priority": 2}}}
URL = "/api/v1/stations/CP-1/settings"
OUTBOX = UUID(int=9)
STAMP = Stamp(Milliseconds(0), Milliseconds(0), UUID(int=1), ClockQuality.SYNCED)


class Agent:
    """What a station's agent tells of its settings, in numbered batches."""

    def __init__(self, world: Any, station: Any) -> None:
        self.world, self.station, self.seq = world, station, 0

    async def says(
        self, version: int, told: int, state: SettingsState = SettingsState.APPLIED, why: str = ""
    ) -> list[str]:
        """The events that it makes."""
        self.seq += 1
        return await self.again(self.seq, SettingsUse(version, told, state, why))

    async def again(self, seq: int, use: SettingsUse) -> list[str]:
        status = StationStatus(STAMP, "1.0", {}, 0, 0, 0, 0, settings=use)
        batch = StateBatch(OUTBOX, seq, seq, STAMP, (status,))
        one = self.station
        delivery = Delivery(one.id, one.tenant_id, OUTBOX, self.world.clock(), Stream.STATE, batch)
        return [event.kind for event in await self.world.commit(delivery)]


@pytest.fixture
async def agent(world: Any) -> Agent:
    return Agent(world, await world.station())


async def put(admin: httpx.AsyncClient, document: Any, **headers: str) -> httpx.Response:
    return await admin.put(URL, json={"document": document}, headers=headers)


async def test_desired_sent_tried_and_in_step(
    world: Any, agent: Agent, admin: httpx.AsyncClient
) -> None:
    empty = (await admin.get(URL)).json()
    assert empty == {"station": "CP-1", "desired": None, "reported": None, "in_sync": True}
    first = await put(admin, DOCUMENT)
    assert first.status_code == 200, first.text
    assert first.json()["desired"]["document"] == DOCUMENT
    assert (first.json()["desired"]["version"], first.json()["in_sync"]) == (1, False)
    assert world.link.sent == [(agent.station.id, Configure(1, DOCUMENT))]
    assert await agent.says(0, 1, SettingsState.PENDING) == ["settings.pending"]
    assert await agent.says(0, 1, SettingsState.PENDING) == []
    assert await agent.says(1, 1) == ["settings.applied"]
    shown = (await admin.get(URL)).json()
    assert shown["in_sync"]
    assert (shown["reported"]["version"], shown["reported"]["state"]) == (1, "applied")


async def test_what_an_agent_put_back_is_out_of_step_with_its_reason(
    agent: Agent, admin: httpx.AsyncClient
) -> None:
    await put(admin, DOCUMENT)
    await agent.says(1, 1)
    await put(admin, {"uplink": {"telemetry_every_s": 1}})
    why = "the cloud is out of reach, and was not before"
    assert await agent.says(1, 2, SettingsState.ROLLED_BACK, why) == ["settings.rolled_back"]
    (one,) = (await admin.get("/api/v1/settings", params={"in_sync": "false"})).json()["items"]
    assert (one["station"], one["in_sync"], one["reported"]["reason"]) == ("CP-1", False, why)
    assert (await admin.get("/api/v1/settings", params={"in_sync": "true"})).json()["items"] == []


async def test_an_older_word_of_the_agent_changes_nothing(
    agent: Agent, admin: httpx.AsyncClient
) -> None:
    await put(admin, DOCUMENT)
    await agent.says(1, 1)
    assert await agent.again(1, SettingsUse(0, 0, SettingsState.APPLIED)) == []
    assert (await admin.get(URL)).json()["reported"]["version"] == 1


async def test_an_agent_that_was_never_told_is_told_again(
    world: Any, agent: Agent, admin: httpx.AsyncClient
) -> None:
    await put(admin, DOCUMENT)
    await agent.says(0, 0)
    assert len(world.link.sent) == 1, "it has only just been sent"
    world.clock.forward(minutes=11)
    await agent.says(0, 0)
    await agent.says(0, 0)
    assert world.link.sent == [(agent.station.id, Configure(1, DOCUMENT))] * 2
    await agent.says(0, 1, SettingsState.REFUSED, "boards.left: there is no such board here")
    world.clock.forward(minutes=11)
    await agent.says(0, 1, SettingsState.REFUSED, "boards.left: there is no such board here")
    assert len(world.link.sent) == 2, "what was refused is not sent for ever"


async def test_versions_go_on_above_what_the_agent_was_ever_told(
    agent: Agent, admin: httpx.AsyncClient
) -> None:
    await agent.says(7, 9, SettingsState.REFUSED, "of a cloud that was restored since")
    assert (await put(admin, DOCUMENT)).json()["desired"]["version"] == 10


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"failsafe": {}}, "unknown field `failsafe`"),
        ({"times": {"poll_s": 99}}, "times.poll_s"),
        ({"site": {"limit_ma": -1}}, "site.limit_ma"),
        ({"boards": {"x" * 65: {}}}, "boards"),
        ({"uplink": {"url": "mqtts://evil.example"}}, "unknown field `url`"),
    ],
)
async def test_what_cannot_be_set_is_refused_with_its_field(
    world: Any, agent: Agent, admin: httpx.AsyncClient, document: Any, why: str
) -> None:
    refused = await put(admin, document)
    assert refused.status_code == 422
    assert refused.json()["code"] == "settings.bad"
    assert why in refused.json()["detail"]
    assert world.link.sent == []
    assert agent.seq == 0


async def test_nobody_overwrites_what_they_have_not_seen(
    agent: Agent, admin: httpx.AsyncClient
) -> None:
    seen = (await admin.get(URL)).headers["etag"]
    await agent.says(0, 0)
    assert (await put(admin, DOCUMENT, **{"If-Match": seen})).status_code == 200
    stale = await put(admin, {}, **{"If-Match": seen})
    assert stale.status_code == 412
    latest = (await admin.get(URL)).headers["etag"]
    assert (await put(admin, {}, **{"If-Match": latest})).json()["desired"]["document"] == {}


async def test_a_site_gets_the_same_or_nobody_does(world: Any, admin: httpx.AsyncClient) -> None:
    site = (await admin.post("/api/v1/sites", json={"name": "Bazaar"})).json()["id"]
    for name in ("CP-1", "CP-2", "CP-3"):
        body = {"station": name, "site": None if name == "CP-3" else site}
        assert (await admin.post("/api/v1/stations", json=body)).status_code == 201
    given = {"document": DOCUMENT, "site": site, "stations": ["CP-3"]}
    done = await admin.put("/api/v1/settings", json=given)
    assert [one["station"] for one in done.json()["items"]] == ["CP-1", "CP-2", "CP-3"]
    assert len(world.link.sent) == 3
    wrong = await admin.put("/api/v1/settings", json={**given, "stations": ["CP-9"]})
    assert (wrong.status_code, len(world.link.sent)) == (404, 3)
    nobody = await admin.put("/api/v1/settings", json={"document": DOCUMENT})
    assert nobody.status_code == 422
    there = await admin.get("/api/v1/settings", params={"site": site, "limit": 1})
    assert [one["station"] for one in there.json()["items"]] == ["CP-1"]
    assert there.json()["next"]


async def test_a_viewer_may_look_and_no_more(world: Any, agent: Agent) -> None:
    async with await world.client(Role.VIEWER) as viewer:
        assert (await viewer.get(URL)).status_code == 200
        assert (await viewer.put(URL, json={"document": {}})).status_code == 403
