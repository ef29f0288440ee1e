"""The fleet's lists, EVSEs as resources, changing and deleting."""

from __future__ import annotations

import asyncio
import csv
import io
from datetime import datetime
from typing import Any
from uuid import UUID

import httpx
import pytest

from cloud.communication.api import Presence
from cloud.kernel.facts import Delivery
from cloud.kernel.http import Role
from cloud.stations.api import StationRef, to_ms
from protocols.agent_link import (
    BillingBatch,
    ChargingState,
    ClockCorrected,
    ClockQuality,
    ConnectorStatus,
    EvseDescription,
    EvseStatus,
    Hello,
    SecurityEvent,
    Stamp,
    StateBatch,
    StationStatus,
    Stream,
)
from protocols.quantities import MilliAmperes, Milliseconds, WattHours

OUTBOX = UUID(int=2)


def stamp(at: datetime) -> Stamp:
    mono = Milliseconds(to_ms(at) % 1_000_000_000)
    return Stamp(Milliseconds(to_ms(at)), mono, UUID(int=1), ClockQuality.SYNCED)


async def tell(
    world: Any,
    station: StationRef,
    status: ConnectorStatus = ConnectorStatus.AVAILABLE,
    *,
    evses: int = 1,
    model: str = "ABB EVLunic",
    version: str = "1.0",
    alarms: tuple[str, ...] = (),
) -> None:
    """A hello and a state batch of a station, as of now."""
    now = world.clock()
    at = stamp(now)
    described = [
        EvseDescription(n, 3, MilliAmperes(32_000), WattHours(1), True, 2)
        for n in range(1, evses + 1)
    ]
    hello = Hello(OUTBOX, (UUID(int=1),), at, {}, version, tuple(described), (), 0)
    if evses:
        async with world.database.commit_unit() as cursor:
            await world.stations.hello(cursor, station.tenant_id, station.id, hello)
    facts = [
        EvseStatus(
            evse=n,
            at=at,
            status=status,
            charging_state=ChargingState.IDLE,
            offered_ma=MilliAmperes(0),
            limited_by="none",
            measured_at=at,
        )
        for n in range(1, evses + 1)
    ]
    agent = StationStatus(at, version, {"main": model}, 0, 0, 0, 0, alarms)
    batch = StateBatch(OUTBOX, to_ms(now), 1, at, (*facts, agent))
    await world.commit(Delivery(station.id, station.tenant_id, OUTBOX, now, Stream.STATE, batch))


async def connect(world: Any, station: StationRef, *, online: bool = True) -> None:
    """What the agent link keeps of the station's connection."""
    world.link.present[station.id] = Presence(online, world.clock())
    async with world.database.commit_unit() as cursor:
        await cursor.execute(
            "INSERT INTO communication.connection (station_id, tenant_id, epoch, online, boot,"
            " agent_version, connected_at, last_seen) VALUES (%s, %s, 1, %s, %s, '1', %s, %s)",
            (station.id, station.tenant_id, online, UUID(int=1), world.clock(), world.clock()),
        )


async def names(client: httpx.AsyncClient, **params: Any) -> list[str]:
    """The stations of a list in its order, read page by page."""
    found: list[str] = []
    while True:
        answer = await client.get("/api/v1/stations", params={"limit": 2, **params})
        assert answer.status_code == 200, answer.text
        found += [one["station"] for one in answer.json()["items"]]
        if answer.json()["next"] is None:
            assert "link" not in answer.headers
            return found
        assert f"cursor={answer.json()['next']}" in answer.headers["link"]
        params["cursor"] = answer.json()["next"]


@pytest.fixture
async def fleet(world: Any, admin: httpx.AsyncClient) -> dict[str, StationRef]:
    """c (never seen), b (online, charging), a (offline, older), and one of another tenant."""
    stations = {}
    for name in ("c", "b", "a"):
        stations[name] = await world.station(name)
        world.clock.forward(minutes=1)
    for name, title in (("a", "zeta"), ("b", "Alfa"), ("c", "")):
        await admin.patch(f"/api/v1/stations/{name}", json={"name": title})
    foreign = await world.station("d", tenant=2)
    await connect(world, foreign)
    await tell(world, foreign)
    await connect(world, stations["a"], online=False)
    await tell(world, stations["a"], ConnectorStatus.FAULTED, model="Kempower")
    world.clock.forward(hours=1)
    await connect(world, stations["b"])
    await tell(world, stations["b"], ConnectorStatus.OCCUPIED, evses=2, version="2.1.0-rc1")
    return stations


async def test_a_list_is_sorted_by_what_is_asked(
    fleet: dict[str, StationRef], admin: httpx.AsyncClient
) -> None:
    for sort, order in {
        "station": "abc", "name": "cba", "created_at": "cba", "last_seen": "cab",
    }.items():  # fmt: skip
        assert await names(admin, sort=sort) == list(order)
        assert await names(admin, sort=f"-{sort}") == list(reversed(order))
    assert (await admin.get("/api/v1/stations?sort=colour")).status_code == 422
    first = (await admin.get("/api/v1/stations?limit=1&sort=name")).json()["next"]
    other = await admin.get("/api/v1/stations", params={"cursor": first, "sort": "-name"})
    assert (other.status_code, other.json()["code"]) == (422, "cursor.invalid")


async def test_a_list_is_filtered_by_what_is_known(
    world: Any, fleet: dict[str, StationRef], admin: httpx.AsyncClient
) -> None:
    assert await names(admin, online=True) == ["b"]
    assert await names(admin, online=False) == ["a", "c"]
    assert await names(admin, status="Occupied") == ["b"]
    assert await names(admin, status="Faulted", online=False) == ["a"]
    assert await names(admin, model="kempower") == ["a"]
    assert await names(admin, version="RC1") == ["b"]
    assert await names(admin, text="ALF") == ["b"]
    since = world.clock().isoformat()
    assert await names(admin, updated_since=since) == ["b"]
    world.clock.forward(seconds=1)
    await admin.patch("/api/v1/stations/c", json={"name": "now"})
    assert await names(admin, updated_since=since) == ["b", "c"]
    for wrong in ("2026-01-01", "0.5", "1767225600", "2026-01-01T00:00:00"):
        answer = await admin.get("/api/v1/stations", params={"updated_since": wrong})
        assert answer.status_code == 422, wrong


async def test_a_list_is_told_as_csv_too(
    fleet: dict[str, StationRef], admin: httpx.AsyncClient
) -> None:
    answer = await admin.get(
        "/api/v1/stations", params={"limit": 2}, headers={"Accept": "text/csv"}
    )
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [(row["station"], row["name"], row["agent.version"]) for row in rows] == [
        ("a", "zeta", "1.0"), ("b", "Alfa", "2.1.0-rc1"),
    ]  # fmt: skip
    url = answer.headers["link"].split(">")[0].removeprefix("<")
    rest = await admin.get(url, headers={"Accept": "text/csv"})
    assert rest.text.splitlines()[0] == answer.text.splitlines()[0]
    assert rest.text.splitlines()[1].startswith("c,")
    assert "link" not in rest.headers


async def test_what_the_agent_warns_of_is_shown(world: Any, admin: httpx.AsyncClient) -> None:
    await tell(world, await world.station(), alarms=("the journal cannot be written",))
    shown = (await admin.get("/api/v1/stations/CP-1")).json()
    assert shown["agent"]["alarms"] == ["the journal cannot be written"]


# --------------------------------------------------------------------------- EVSEs


async def test_evses_are_listed_over_the_fleet(
    fleet: dict[str, StationRef], admin: httpx.AsyncClient
) -> None:
    async def found(url: str) -> list[tuple[str, int, str]]:
        answer = await admin.get(url)
        assert answer.status_code == 200, answer.text
        return [
            (one["station"], one["evse"], one["state"]["value"]["status"])
            for one in answer.json()["items"]
        ]

    everything = [("a", 1, "Faulted"), ("b", 1, "Occupied"), ("b", 2, "Occupied")]
    assert await found("/api/v1/evses") == everything
    assert await found("/api/v1/evses?sort=-status") == [
        everything[2], everything[1], everything[0],
    ]  # fmt: skip
    assert await found("/api/v1/evses?status=Faulted") == everything[:1]
    assert await found("/api/v1/evses?gone=true") == []
    assert await found("/api/v1/stations/b/evses") == everything[1:]
    one = (await admin.get("/api/v1/stations/b/evses/2")).json()
    assert (one["station"], one["evse"], one["connectors"]) == ("b", 2, [1, 2])
    plugs = (await admin.get("/api/v1/stations/b/evses/2/connectors")).json()["items"]
    assert [(plug["evse"], plug["connector"]) for plug in plugs] == [(2, 1), (2, 2)]
    for url in ("b/evses/3", "b/evses/3/connectors"):
        answer = await admin.get(f"/api/v1/stations/{url}")
        assert (answer.status_code, answer.json()["code"]) == (404, "evse.not_found")
    assert (await admin.get("/api/v1/stations/d/evses")).status_code == 404


async def test_an_evse_that_is_no_longer_told_is_gone(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    await connect(world, station)
    await tell(world, station, ConnectorStatus.OCCUPIED, evses=2)
    world.clock.forward(seconds=10)
    gone_at = world.clock()
    await tell(world, station, evses=1)
    first, second = (await admin.get("/api/v1/stations/CP-1")).json()["evses"]
    assert (first["gone"], first["state"]["stale"]) == (False, False)
    assert (second["gone"], second["state"]["stale"]) == (True, True)
    assert datetime.fromisoformat(second["gone_at"]) == gone_at
    listed = (await admin.get("/api/v1/evses")).json()["items"]
    assert [one["evse"] for one in listed] == [1]
    assert await names(admin, status="Occupied") == []
    limit = {"evse": 2, "limit_ma": 6000}
    refused = await admin.post("/api/v1/stations/CP-1/commands/set-limit", json=limit)
    assert refused.json()["code"] == "evse.not_found"
    await tell(world, station, evses=2)
    _, second = (await admin.get("/api/v1/stations/CP-1")).json()["evses"]
    assert (second["gone"], second["gone_at"]) == (False, None)


# --------------------------------------------------------------------------- changing


async def test_a_change_asks_for_what_was_seen(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    seen = (await admin.get("/api/v1/stations/CP-1")).headers["etag"]
    unchanged = await admin.get("/api/v1/stations/CP-1", headers={"If-None-Match": seen})
    assert (unchanged.status_code, unchanged.content) == (304, b"")
    await tell(world, station)
    told = await admin.get("/api/v1/stations/CP-1", headers={"If-None-Match": seen})
    assert told.status_code == 200
    first = await admin.patch(
        "/api/v1/stations/CP-1", json={"name": "A"}, headers={"If-Match": seen}
    )
    assert first.status_code == 200, "an agent's report does not void an edit"
    again = await admin.get("/api/v1/stations/CP-1")
    assert again.headers["etag"] == first.headers["etag"]
    for method in ("PATCH", "DELETE"):
        late = await admin.request(
            method, "/api/v1/stations/CP-1", json={"name": "B"}, headers={"If-Match": seen}
        )
        assert (late.status_code, late.json()["code"]) == (412, "etag.stale")
    assert (await admin.get("/api/v1/stations/CP-1")).json()["name"] == "A"


async def test_of_two_edits_at_once_one_is_told_to_look_again(
    world: Any, admin: httpx.AsyncClient
) -> None:
    made = (await admin.post("/api/v1/sites", json={"name": "S"})).json()
    url = f"/api/v1/sites/{made['id']}"
    seen = {"If-Match": (await admin.get(url)).headers["etag"]}
    answers = await asyncio.gather(
        *(admin.patch(url, json={"address": n}, headers=seen) for n in ("1", "2"))
    )
    assert sorted(answer.status_code for answer in answers) == [200, 412]


async def test_a_station_is_taken_off_its_site(world: Any, admin: httpx.AsyncClient) -> None:
    site = (await admin.post("/api/v1/sites", json={"name": "S"})).json()["id"]
    body = {"station": "CP-1", "name": "N", "site": site}
    await admin.post("/api/v1/stations", json=body)
    kept = await admin.patch("/api/v1/stations/CP-1", json={"name": "M"})
    assert (kept.json()["name"], kept.json()["site"]) == ("M", site)
    assert (await admin.delete(f"/api/v1/sites/{site}")).json()["code"] == "site.in_use"
    off = await admin.patch("/api/v1/stations/CP-1", json={"site": None})
    assert (off.json()["name"], off.json()["site"]) == ("M", None)
    assert (await admin.delete(f"/api/v1/sites/{site}")).status_code == 204
    assert (await admin.get(f"/api/v1/sites/{site}")).status_code == 404
    lost = await admin.patch("/api/v1/stations/CP-1", json={"site": site})
    assert lost.json()["code"] == "site.not_found"


async def test_a_site_is_changed_in_part(admin: httpx.AsyncClient) -> None:
    made = await admin.post("/api/v1/sites", json={"name": "A", "latitude": 41.3})
    url = f"/api/v1/sites/{made.json()['id']}"
    await admin.post("/api/v1/sites", json={"name": "B"})
    changed = await admin.patch(url, json={"time_zone": "Asia/Tashkent", "latitude": None})
    assert changed.json() == {
        **made.json(), "time_zone": "Asia/Tashkent", "latitude": None,
    }  # fmt: skip
    assert (await admin.patch(url, json={"name": "b"})).json()["code"] == "site.exists"
    assert (await admin.patch(url, json={})).json()["name"] == "A"
    for wrong in (
        {"latitude": True},
        {"time_zone": "Mars/Base"},
        {"time_zone": "../etc/passwd"},
        {"name": None},
    ):
        assert (await admin.patch(url, json=wrong)).status_code == 422


async def test_a_deleted_station_leaves_its_history(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    await tell(world, station)
    now = world.clock()
    clock = ClockCorrected(UUID(int=7), UUID(int=1), Milliseconds(5), ClockQuality.SYNCED)
    facts = (SecurityEvent(UUID(int=5), stamp(now), "Opened", "door"), clock)
    billing = BillingBatch(OUTBOX, 1, 1, stamp(now), facts)
    late = Delivery(station.id, station.tenant_id, OUTBOX, now, Stream.BILLING, billing)
    assert (await admin.delete("/api/v1/stations/CP-1")).status_code == 204
    assert (world.link.forgotten, world.link.published) == ([station.id], 1)
    assert (await admin.get("/api/v1/stations/CP-1")).status_code == 404
    assert (await admin.delete("/api/v1/stations/CP-1")).status_code == 404
    assert await names(admin) == []
    assert (await admin.get("/api/v1/evses")).json()["items"] == []
    assert len(await world.commit(late)) == 1, "an agent's last facts are taken"
    await tell(world, station, evses=0)
    (event,) = [
        one
        for one in (await admin.get("/api/v1/events")).json()["items"]
        if one["kind"] == "station.security"
    ]
    assert event["station"] == "CP-1"
    again = await admin.post("/api/v1/stations", json={"station": "CP-1"})
    assert (again.status_code, again.json()["evses"]) == (201, [])


async def test_another_tenants_things_cannot_be_changed(
    world: Any, admin: httpx.AsyncClient
) -> None:
    await world.station("CP-9", tenant=2)
    async with await world.client(Role.ADMIN, 2) as stranger:
        site = (await stranger.post("/api/v1/sites", json={"name": "S"})).json()["id"]
        for url in (f"/api/v1/sites/{site}", "/api/v1/stations/CP-9"):
            assert (await admin.patch(url, json={"name": "mine"})).status_code == 404
            assert (await admin.delete(url)).status_code == 404
            assert (await stranger.get(url)).status_code == 200
