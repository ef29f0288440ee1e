"""The transactions' routes."""

from __future__ import annotations

from base64 import b64decode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import yaml

from cloud.kernel.facts import Delivery
from cloud.stations.api import StationRef, to_ms
from protocols.agent_link import (
    BillingBatch,
    ChargingState,
    ClockQuality,
    IdToken,
    RemoteStart,
    RemoteStop,
    SignedMoment,
    SignedValue,
    Stamp,
    Stream,
    TransactionEvent,
    TransactionEventType,
    Trigger,
)
from protocols.quantities import Milliseconds, WattHours

OCMF: dict[str, str] = yaml.safe_load((Path(__file__).parents[2] / "vectors/ocmf.yaml").read_text())
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


async def started(
    world: Any,
    station: StationRef,
    at: datetime,
    *,
    token: str = "A",
    ended: bool = False,
    signed: tuple[SignedValue, ...] = (),
) -> UUID:
    stamp = Stamp(Milliseconds(to_ms(at)), Milliseconds(0), UUID(int=1), ClockQuality.SYNCED)
    event = TransactionEvent(
        id=uuid4(),
        transaction=uuid4(),
        type=TransactionEventType.ENDED if ended else TransactionEventType.STARTED,
        seq_no=0,
        at=stamp,
        trigger=Trigger.AUTHORIZED,
        evse=1,
        started=stamp,
        charging_state=ChargingState.CHARGING,
        energy_wh=WattHours(0),
        meter_wh=WattHours(0),
        id_token=IdToken(token),
        signed=signed or msgspec.UNSET,
    )
    batch = BillingBatch(UUID(int=2), 1, 1, stamp, (event,))
    await world.commit(
        Delivery(station.id, station.tenant_id, UUID(int=2), NOON, Stream.BILLING, batch)
    )
    return event.transaction


async def test_what_a_meter_signed_is_read_back_to_the_octet(
    world: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    strange = bytes(range(256))
    signed = (
        SignedValue(SignedMoment.BEGIN, "OCMF", OCMF["begin"].encode(), b"the key"),
        SignedValue(SignedMoment.END, "OCMF", OCMF["end"].encode()),
        SignedValue(SignedMoment.END, "EDL", strange),
    )
    made = await started(world, station, NOON, ended=True, signed=signed)
    detail = (await admin.get(f"/api/v1/transactions/{made}")).json()
    (event,) = detail["events"]
    begin, end, binary = event["signed"]
    assert (begin["moment"], begin["encoding"]) == ("Transaction.Begin", "OCMF")
    assert (begin["text"], end["text"], binary["text"]) == (OCMF["begin"], OCMF["end"], None)
    assert b64decode(end["data"]).decode() == OCMF["end"]
    assert b64decode(binary["data"]) == strange
    assert (b64decode(begin["public_key"]), end["public_key"]) == (b"the key", None)


async def updated(world: Any, station: StationRef, transaction: UUID, seq_no: int) -> None:
    stamp = Stamp(Milliseconds(to_ms(NOON)), Milliseconds(0), UUID(int=1), ClockQuality.SYNCED)
    event = TransactionEvent(
        id=uuid4(),
        transaction=transaction,
        type=TransactionEventType.UPDATED,
        seq_no=seq_no,
        at=stamp,
        trigger=Trigger.METER_VALUE_PERIODIC,
        evse=1,
        started=stamp,
        charging_state=ChargingState.CHARGING,
        energy_wh=WattHours(seq_no),
        meter_wh=WattHours(seq_no),
    )
    batch = BillingBatch(UUID(int=2), 1, 1, stamp, (event,))
    await world.commit(
        Delivery(station.id, station.tenant_id, UUID(int=2), NOON, Stream.BILLING, batch)
    )


async def test_an_empty_list_is_a_list(admin: httpx.AsyncClient) -> None:
    assert (await admin.get("/api/v1/transactions")).json() == {"items": [], "next": None}


async def test_pages_follow_each_other_latest_first(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    made = [await started(world, station, NOON - timedelta(minutes=n // 2)) for n in range(5)]
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        params = {"limit": "2", **({"cursor": cursor} if cursor else {})}
        page = (await admin.get("/api/v1/transactions", params=params)).json()
        assert len(page["items"]) <= 2
        seen += [one["transaction"] for one in page["items"]]
        cursor = page["next"]
    assert sorted(seen) == sorted(map(str, made))
    assert seen[-1] == str(made[4])


async def test_filters_narrow_the_list(world: Any, admin: httpx.AsyncClient) -> None:
    one, two = await world.station("CP-1"), await world.station("CP-2")
    first = await started(world, one, NOON, token="Aa")
    second = await started(world, two, NOON - timedelta(hours=2), token="B", ended=True)

    async def found(**params: str) -> list[str]:
        page = (await admin.get("/api/v1/transactions", params=params)).json()
        return [item["transaction"] for item in page["items"]]

    assert await found(station="CP-1") == [str(first)]
    assert await found(state="ended") == [str(second)]
    assert await found(id_token="aA") == [str(first)]
    assert await found(id_token="nobody's") == []
    assert await found(**{"from": "2026-05-01T11:00:00Z"}) == [str(first)]
    assert await found(to="2026-05-01T11:00:00Z") == [str(second)]
    assert await found(ended_from="2026-05-01T09:00:00Z") == [str(second)]
    assert await found(ended_to="2026-05-01T09:00:00Z") == []
    assert await found(evse="2") == []
    assert await found(min_energy_wh="1") == []
    assert await found(sort="started_at") == [str(second), str(first)]
    site = (await admin.post("/api/v1/sites", json={"name": "Home"})).json()["id"]
    await admin.patch("/api/v1/stations/CP-2", json={"site": site})
    assert await found(site=str(site)) == [str(second)]
    assert await found(site=str(site), station="CP-1") == []


async def test_a_long_transactions_events_come_in_pages(
    world: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    first = await started(world, station, NOON)
    url = f"/api/v1/transactions/{first}"
    for n in range(1, 131):
        await updated(world, station, first, n)
    detail = await admin.get(url)
    assert [event["seq_no"] for event in detail.json()["events"]] == list(range(100))
    more = await admin.get(f"{url}/events", params={"cursor": detail.json()["more_events"]})
    assert [event["seq_no"] for event in more.json()["items"]] == list(range(100, 131))
    sheet = await admin.get(f"{url}/events", params={"format": "csv", "sort": "-seq_no"})
    assert sheet.text.splitlines()[1].split(",")[1] == "130"
    missing = await admin.get(f"/api/v1/transactions/{uuid4()}/events")
    assert missing.status_code == 404


async def test_a_detail_is_tagged_by_what_it_shows(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    url = f"/api/v1/transactions/{(first := await started(world, station, NOON))}"
    seen = {"If-None-Match": (await admin.get(url)).headers["etag"]}
    assert (await admin.get(url, headers=seen)).status_code == 304
    await updated(world, station, first, 1)
    assert (await admin.get(url, headers=seen)).status_code == 200


async def test_the_list_is_a_sheet_when_asked(world: Any, admin: httpx.AsyncClient) -> None:
    station = await world.station()
    await started(world, station, NOON)
    sheet = await admin.get("/api/v1/transactions", headers={"Accept": "text/csv"})
    header, row = sheet.text.splitlines()
    assert header.startswith("transaction,station,evse,connector,state,charging_state,id_token.")
    assert ",CP-1,1,1,open," in row


async def test_unknown_things_are_told(admin: httpx.AsyncClient) -> None:
    missing = await admin.get(f"/api/v1/transactions/{uuid4()}")
    assert (missing.status_code, missing.json()["code"]) == (404, "transaction.not_found")
    nowhere = await admin.get("/api/v1/transactions", params={"station": "CP-9"})
    assert (nowhere.status_code, nowhere.json()["code"]) == (404, "station.not_found")
    bad = await admin.get("/api/v1/transactions", params={"from": "yesterday"})
    assert bad.status_code == 422
    assert bad.json()["params"]["fields"][0]["field"] == "query.from"


async def test_a_remote_start_asks_authorization_first(
    world: Any, admin: httpx.AsyncClient
) -> None:
    await world.station()
    url = "/api/v1/stations/CP-1/commands/remote-start"
    request = {"evse": 1, "id_token": {"value": "04ab"}}
    refused = await admin.post(url, json=request)
    assert (refused.status_code, refused.json()["params"]["decision"]) == (409, "Unknown")
    await admin.post("/api/v1/id-tokens", json={"value": "04AB"})
    accepted = await admin.post(url, json=request)
    assert accepted.status_code == 202
    assert accepted.json()["status_url"].endswith(accepted.json()["command"])
    assert world.link.sent[-1][1] == RemoteStart(1, IdToken("04ab"))


async def test_a_remote_stop_needs_an_open_transaction_of_that_station(
    world: Any, admin: httpx.AsyncClient
) -> None:
    station, other = await world.station("CP-1"), await world.station("CP-2")
    running = await started(world, station, NOON)
    over = await started(world, other, NOON, ended=True)
    url = "/api/v1/stations/{}/commands/remote-stop"
    accepted = await admin.post(url.format("CP-1"), json={"transaction": str(running)})
    assert accepted.status_code == 202
    assert world.link.sent == [(station.id, RemoteStop(running))]
    strange = await admin.post(url.format("CP-2"), json={"transaction": str(running)})
    assert strange.status_code == 404
    ended = await admin.post(url.format("CP-2"), json={"transaction": str(over)})
    assert (ended.status_code, ended.json()["code"]) == (409, "transaction.over")


async def test_an_agents_transaction_costs_what_held_at_its_start(
    world: Any, admin: httpx.AsyncClient
) -> None:
    station = await world.station()
    free = await started(world, station, NOON)
    tariff = {"name": "Day", "currency": "UZS", "per_kwh": "1500", "per_session": "1000"}
    made = (await admin.post("/api/v1/tariffs", json=tariff)).json()
    await admin.post("/api/v1/tariff-assignments", json={"tariff": made["id"]})
    priced = await started(world, station, NOON + timedelta(minutes=1))
    world.clock.forward(minutes=2)
    await admin.post(f"/api/v1/tariffs/{made['id']}/versions", json={"per_kwh": "9000"})
    for transaction in (free, priced):
        await updated(world, station, transaction, 2_000)
    first = (await admin.get(f"/api/v1/transactions/{free}")).json()
    second = (await admin.get(f"/api/v1/transactions/{priced}")).json()
    assert first["cost"] is None
    assert (second["cost"]["version"], second["cost"]["total_minor"]) == (1, 400_000)
    assert (second["cost"]["total"], second["cost"]["final"]) == ("4000", False)
