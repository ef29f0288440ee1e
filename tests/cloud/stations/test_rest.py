"""Sites, stations, claims and commands over REST."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from cloud.communication.api import Presence
from cloud.kernel.database import Database
from cloud.kernel.facts import Delivery
from cloud.kernel.http import Role
from cloud.stations.api import StationRef, to_ms
from cloud.stations.registration import Policy
from protocols.agent_link import (
    BillingBatch,
    ChargingState,
    ClockQuality,
    ConnectorStatus,
    EvseDescription,
    EvseStatus,
    Hello,
    LinkUse,
    NetworkUse,
    SecurityEvent,
    SetAvailability,
    SetLimit,
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


def status(at: datetime, evse: int = 1, **changes: Any) -> EvseStatus:
    known: dict[str, Any] = {
        "status": ConnectorStatus.OCCUPIED,
        "charging_state": ChargingState.CHARGING,
        "offered_ma": MilliAmperes(16_000),
        "limited_by": "cable",
        "measured_at": stamp(at),
    }
    return EvseStatus(evse=evse, at=stamp(at), **{**known, **changes})


def state(
    station: StationRef, now: datetime, seq: int, *facts: Any, outbox: UUID = OUTBOX
) -> Delivery:
    batch = StateBatch(outbox, seq, 1, stamp(now), facts)
    return Delivery(station.id, station.tenant_id, outbox, now, Stream.STATE, batch)


def greeting(now: datetime, *evses: EvseDescription) -> Hello:
    return Hello(OUTBOX, (UUID(int=1),), stamp(now), {}, "1.0", evses, (), 0)


def online(world: Any, station: StationRef) -> None:
    world.link.present[station.id] = Presence(online=True, last_seen=world.clock())


# --------------------------------------------------------------------------- sites, stations


async def test_sites_are_made_listed_and_found(admin: httpx.AsyncClient) -> None:
    assert (await admin.get("/api/v1/sites")).json() == {"items": [], "next": None}
    made = await admin.post(
        "/api/v1/sites",
        json={"name": "Чорсу", "address": "Тошкент", "latitude": 41.3, "longitude": 69.2},
    )
    assert made.status_code == 201
    await admin.post("/api/v1/sites", json={"name": "Registan"})
    again = await admin.post("/api/v1/sites", json={"name": "чорсу"})
    assert (again.status_code, again.json()["code"]) == (409, "site.exists")
    found = (await admin.get("/api/v1/sites", params={"text": "ЧОРСУ"})).json()["items"]
    assert [site["name"] for site in found] == ["Чорсу"]
    one = await admin.get(f"/api/v1/sites/{made.json()['id']}")
    assert one.json() == made.json()
    assert (await admin.get("/api/v1/sites/999")).status_code == 404


async def test_a_created_station_comes_with_a_code_once(admin: httpx.AsyncClient) -> None:
    made = await admin.post("/api/v1/stations", json={"station": "UZ*1 а", "name": "Nord"})
    assert made.status_code == 201, made.text
    assert len(made.json()["claim"]["code"]) == 17
    shown = (await admin.get("/api/v1/stations/UZ*1 а")).json()
    assert "claim" not in shown
    assert (shown["registration"], shown["online"], shown["evses"]) == ("expected", False, [])
    again = await admin.post("/api/v1/stations", json={"station": "UZ*1 а"})
    assert (again.status_code, again.json()["code"]) == (409, "station.exists")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"station": ""}, "body.station"),
        ({"station": "x" * 49}, "body.station"),
        ({"station": "a/b"}, "body.station"),
        ({"station": "tab\t"}, "body.station"),
        ({"station": "CP", "site": 0}, "body.site"),
        ({"station": "CP", "colour": "red"}, "body.colour"),
        ({}, "body.station"),
    ],
)
async def test_a_wrong_field_is_named(
    admin: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    answer = await admin.post("/api/v1/stations", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert field in [one["field"] for one in answer.json()["params"]["fields"]]


async def test_lists_are_cut_filtered_and_in_order(world: Any, admin: httpx.AsyncClient) -> None:
    site = (await admin.post("/api/v1/sites", json={"name": "S"})).json()["id"]
    for name in ("b", "a", "c"):
        await admin.post("/api/v1/stations", json={"station": name, "name": name * 3})
    await admin.patch("/api/v1/stations/c", json={"site": site})
    first = (await admin.get("/api/v1/stations", params={"limit": 2})).json()
    rest = await admin.get("/api/v1/stations", params={"limit": 2, "cursor": first["next"]})
    assert [one["station"] for one in [*first["items"], *rest.json()["items"]]] == ["a", "b", "c"]
    assert rest.json()["next"] is None
    by_site = (await admin.get("/api/v1/stations", params={"site": site})).json()["items"]
    assert [one["station"] for one in by_site] == ["c"]
    by_text = (await admin.get("/api/v1/stations", params={"text": "BB"})).json()["items"]
    assert [one["station"] for one in by_text] == ["b"]
    registered = await admin.get("/api/v1/stations", params={"registration": "registered"})
    assert registered.json()["items"] == []


async def test_another_tenants_station_is_not_there(world: Any, admin: httpx.AsyncClient) -> None:
    await world.station("CP-9", tenant=2)
    assert (await admin.get("/api/v1/stations")).json()["items"] == []
    assert (await admin.get("/api/v1/stations/CP-9")).status_code == 404
    taken = await admin.post("/api/v1/stations", json={"station": "CP-9"})
    assert taken.status_code == 409


# --------------------------------------------------------------------------- live state


async def test_state_has_age_source_and_staleness(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    online(world, station)
    now = world.clock()
    hello = greeting(now, EvseDescription(1, 3, MilliAmperes(32_000), WattHours(1), True, 2))
    async with world.database.commit_unit() as cursor:
        await world.stations.hello(cursor, 1, station.id, hello)
    network = NetworkUse(
        "wwan0", {"wwan0": LinkUse(5, 700, metered=True, trouble="no carrier")}, 1000, 1
    )
    agent = StationStatus(stamp(now), "1.0", {"main": "ABB"}, 4, 0, 17, 4096, network=network)
    told = await world.commit(state(station, now, 1, status(now), agent))
    assert [event.kind for event in told] == ["evse.status"]
    world.clock.forward(seconds=20)
    online(world, station)
    shown = (await admin.get("/api/v1/stations/CP-1")).json()
    (evse,) = shown["evses"]
    assert (evse["max_ma"], evse["connectors"]) == (32_000, [1, 2])
    assert evse["state"]["value"]["charging_state"] == "Charging"
    assert (evse["state"]["age_s"], evse["state"]["source"]) == (20, "board")
    assert not evse["state"]["stale"]
    assert (shown["agent"]["boards"], shown["agent"]["pending_telemetry"]) == ({"main": "ABB"}, 17)
    assert shown["agent"]["network"] == {
        "in_use": "wwan0",
        "links": {
            "wwan0": {
                "today_bytes": 5,
                "month_bytes": 700,
                "metered": True,
                "trouble": "no carrier",
            }
        },
        "monthly_budget_bytes": 1000,
        "level": 1,
    }
    silent = StationStatus(stamp(now), "1.0", {"main": "ABB"}, 4, 0, 17, 4096)
    await world.commit(state(station, now, 2, silent))
    shown = (await admin.get("/api/v1/stations/CP-1")).json()
    assert shown["agent"]["network"] is None
    world.clock.forward(minutes=5)
    (evse,) = (await admin.get("/api/v1/stations/CP-1")).json()["evses"]
    assert evse["state"]["stale"]


async def test_latest_state_wins_whatever_the_order(world: Any, admin: httpx.AsyncClient) -> None:
    station, now = await world.station(), world.clock()

    async def value() -> str:
        shown = (await admin.get("/api/v1/stations/CP-1")).json()
        return str(shown["evses"][0]["state"]["value"]["status"])

    await world.commit(
        state(station, now, 5, status(now)),
        state(station, now, 4, status(now, status=ConnectorStatus.FAULTED)),
    )
    assert await value() == "Occupied"
    assert await world.commit(state(station, now, 3, status(now, error="E"))) == []
    again = await world.commit(state(station, now, 6, status(now)))
    assert again == []
    other = status(now, status=ConnectorStatus.AVAILABLE)
    await world.commit(state(station, now, 1, other, outbox=UUID(int=3)))
    assert await value() == "Available"


async def test_a_security_event_is_kept_once_and_told(world: Any) -> None:
    station, now = await world.station(), world.clock()
    fact = SecurityEvent(uuid4(), stamp(now), "InvalidFirmware", "signature does not hold")
    batch = BillingBatch(OUTBOX, 1, 1, stamp(now), (fact,))
    told = await world.commit(
        Delivery(station.id, station.tenant_id, OUTBOX, now, Stream.BILLING, batch)
    )
    assert [(event.kind, event.data["type"]) for event in told] == [
        ("station.security", "InvalidFirmware")
    ]


# --------------------------------------------------------------------------- commands


async def test_limit_and_availability_become_commands(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    base = "/api/v1/stations/CP-1/commands"
    limit = {"evse": 1, "limit_ma": 10_000, "valid_s": 60}
    accepted = await admin.post(f"{base}/set-limit", json=limit)
    assert accepted.status_code == 202
    assert accepted.json()["status_url"] == f"/api/v1/commands/{accepted.json()['command']}"
    lifted = await admin.post(f"{base}/set-limit", json={"evse": 0, "limit_ma": None})
    assert lifted.status_code == 202
    closed = await admin.post(f"{base}/set-availability", json={"operative": False})
    assert closed.status_code == 202
    assert [action for _, action in world.link.sent] == [
        SetLimit(1, MilliAmperes(10_000), Milliseconds(60_000)),
        SetLimit(0, None, Milliseconds(900_000)),
        SetAvailability(0, False),
    ]
    assert {sent for sent, _ in world.link.sent} == {station.id}


async def test_a_command_for_an_evse_that_is_not_there_is_refused(
    world: Any, admin: httpx.AsyncClient
) -> None:
    station, now = await world.station(), world.clock()
    hello = greeting(now, EvseDescription(1, 1, MilliAmperes(16_000), WattHours(1), True))
    async with world.database.commit_unit() as cursor:
        await world.stations.hello(cursor, 1, station.id, hello)
    limit = {"evse": 2, "limit_ma": 6000}
    answer = await admin.post("/api/v1/stations/CP-1/commands/set-limit", json=limit)
    assert (answer.status_code, answer.json()["code"]) == (404, "evse.not_found")
    assert world.link.sent == []


# --------------------------------------------------------------------------- joining


async def test_a_code_lets_in_once(
    world: Any, admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    made = (await admin.post("/api/v1/stations", json={"station": "CP.1"})).json()
    claim = {"station": "CP.1", "code": made["claim"]["code"].lower()}
    wrong = await anybody.post("/api/v1/claims", json={**claim, "code": "WRONG"})
    assert (wrong.status_code, wrong.json()["code"]) == (403, "claim.refused")
    let_in = await anybody.post("/api/v1/claims", json=claim)
    assert let_in.status_code == 200
    assert let_in.json() == {
        "station": "CP.1",
        "mqtt_url": "mqtts://cloud.example:8883",
        "username": "CP=2E1",
        "password": let_in.json()["password"],
        "ca_pem": "-----BEGIN CERTIFICATE-----",
        "certificate": None,
    }
    assert world.link.published == 1
    assert (await anybody.post("/api/v1/claims", json=claim)).status_code == 403
    shown = (await admin.get("/api/v1/stations/CP.1")).json()
    assert shown["registration"] == "registered"
    another = await admin.post("/api/v1/stations/CP.1/claim-codes")
    assert another.status_code == 201
    renewed = {"station": "CP.1", "code": another.json()["code"]}
    assert (await anybody.post("/api/v1/claims", json=renewed)).status_code == 200


async def test_a_code_expires(
    world: Any, admin: httpx.AsyncClient, anybody: httpx.AsyncClient
) -> None:
    made = (await admin.post("/api/v1/stations", json={"station": "CP-1"})).json()
    world.clock.forward(days=31)
    claim = {"station": "CP-1", "code": made["claim"]["code"]}
    answer = await anybody.post("/api/v1/claims", json=claim)
    assert (answer.status_code, answer.json()["params"]["why"]) == (403, "expired")


async def test_who_tries_too_often_is_slowed_down(world: Any, anybody: httpx.AsyncClient) -> None:
    claim = {"station": "CP-1", "code": "GUESS"}
    answers = [(await anybody.post("/api/v1/claims", json=claim)).status_code for _ in range(21)]
    assert answers == [403] * 20 + [429]
    world.clock.now += timedelta(seconds=3)
    assert (await anybody.post("/api/v1/claims", json=claim)).status_code == 403


async def test_open_lets_strangers_in_but_not_into_a_known_station(
    world_of: Any, database: Database
) -> None:
    world = world_of(database, Policy.OPEN)
    async with await world.client(None) as client:
        first = await client.post("/api/v1/claims", json={"station": "NEW"})
        assert first.status_code == 200
        second = await client.post("/api/v1/claims", json={"station": "NEW"})
        assert second.status_code == 403


async def test_pending_waits_for_an_operator(world_of: Any, database: Database) -> None:
    world = world_of(database, Policy.PENDING)
    async with await world.client(None) as client, await world.client(Role.OPERATOR) as operator:
        asked = await client.post("/api/v1/claims", json={"station": "NEW"})
        assert asked.status_code == 202
        claim = {"station": "NEW", "code": asked.json()["code"]}
        waiting = await client.post("/api/v1/claims", json=claim)
        assert (waiting.status_code, waiting.json()["code"]) == (202, None)
        stranger = await client.post("/api/v1/claims", json={"station": "NEW"})
        assert stranger.status_code == 403
        listed = (await operator.get("/api/v1/pending")).json()["items"]
        assert [one["station"] for one in listed] == ["NEW"]
        assert (await operator.post("/api/v1/pending/NEW/approval")).status_code == 200
        assert (await operator.get("/api/v1/pending")).json()["items"] == []
        assert (await client.post("/api/v1/claims", json=claim)).status_code == 200
        gone = await operator.post("/api/v1/pending/NEW/approval")
        assert gone.status_code == 404


async def test_a_rejected_station_may_ask_again(world_of: Any, database: Database) -> None:
    world = world_of(database, Policy.PENDING)
    async with await world.client(None) as client, await world.client(Role.OPERATOR) as operator:
        await client.post("/api/v1/claims", json={"station": "NEW"})
        assert (await operator.delete("/api/v1/pending/NEW")).status_code == 204
        assert (await operator.get("/api/v1/stations/NEW")).status_code == 404
        asked = await client.post("/api/v1/claims", json={"station": "NEW"})
        assert asked.status_code == 202
