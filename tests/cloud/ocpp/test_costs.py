"""What sessions cost: by the prices of their start, told to stations, shown to people."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.cloud.ocpp.conftest import Ask, Ocpp, Station, serving
from tests.cloud.ocpp.wire import (
    Payload,
    at,
    event_201,
    meter_16,
    moment,
    sample,
    start_16,
    stop_16,
)

V16, V201, V21 = "ocpp1.6", "ocpp2.0.1", "ocpp2.1"
DAY = {"name": "Day", "currency": "EUR", "per_kwh": "0.5", "per_minute": "0.01", "per_session": "1"}


@pytest.fixture
async def prices(ocpp: Ocpp, sql: Ask) -> int:
    """The tariff that has held everywhere for a day."""
    made = await ocpp.api.post("/tariffs", json=DAY)
    assert made.status_code == 201, made.text
    tariff = int(made.json()["id"])
    assigned = await ocpp.api.post("/tariff-assignments", json={"tariff": tariff})
    assert assigned.status_code == 201, assigned.text
    sql("UPDATE tariffs.version SET valid_from = valid_from - interval '1 day'")
    sql("UPDATE tariffs.assignment SET since = since - interval '1 day'")
    return tariff


async def dearer(ocpp: Ocpp, sql: Ask, tariff: int, minutes: float) -> None:
    """Ten times the price for whatever starts that long after the tests' beginning."""
    given = dict.fromkeys(("per_kwh", "per_minute", "per_session"), "10")
    made = await ocpp.api.post(f"/tariffs/{tariff}/versions", json=given)
    assert made.status_code == 201, made.text
    sql("UPDATE tariffs.version SET valid_from = %s WHERE number = 2", at(minutes))


async def said(station: Station, kind: str, seq: int, minutes: float, wh: int) -> Payload:
    return await station.call(
        "TransactionEvent", event_201(kind, seq, minutes, "tx", "T1" if seq == 0 else None, wh)
    )


async def cost_of(ocpp: Ocpp, station: str) -> Any:
    return (await ocpp.transaction(station))["cost"]


async def test_what_starts_without_a_tariff_has_no_cost(ocpp: Ocpp) -> None:
    station = await ocpp.booted("CS", V21)
    await said(station, "Started", 0, 1, 1_000)
    assert "totalCost" not in await said(station, "Ended", 1, 11, 5_000)
    assert await cost_of(ocpp, "CS") is None


@pytest.mark.parametrize("version", [V201, V21])
async def test_the_cost_grows_and_is_final_in_the_end(
    ocpp: Ocpp, prices: int, version: str
) -> None:
    station = await ocpp.booted("CS", version)
    assert "totalCost" not in await said(station, "Started", 0, 1, 1_000)
    running = await said(station, "Updated", 1, 11, 3_000)
    assert running.get("totalCost") == (2.1 if version == V21 else None)
    shown = await cost_of(ocpp, "CS")
    assert shown == {
        "tariff": prices,
        "version": 1,
        "currency": "EUR",
        "total_minor": 210,
        "total": "2.10",
        "tax_minor": 0,
        "parts": [
            {"kind": "session", "amount_minor": 100},
            {"kind": "energy", "amount_minor": 100},
            {"kind": "time", "amount_minor": 10},
        ],
        "final": False,
    }
    final = await said(station, "Ended", 2, 21, 5_000)
    assert final["totalCost"] == 3.2
    assert await said(station, "Ended", 2, 21, 5_000) == final, "a repeat is told the same"
    shown = await cost_of(ocpp, "CS")
    assert (shown["total_minor"], shown["total"], shown["final"]) == (320, "3.20", True)
    (ended,) = await ocpp.events("CS", "transaction.ended")
    assert ended["data"]["cost"] == {"currency": "EUR", "total_minor": 320}


async def test_2_0_1_is_called_with_what_it_has_cost_so_far(
    ocpp: Ocpp, cloud_dsn: str, tmp_path: Path, prices: int
) -> None:
    del prices
    folder = tmp_path / "often"
    folder.mkdir()
    async with serving(cloud_dsn, folder, ocpp_cost_every_s=1) as often:
        station = await often.booted("CS", V201, answers={"CostUpdated": {}})
        await said(station, "Started", 0, 1, 1_000)
        assert await said(station, "Updated", 1, 6, 2_000) == {}
        await station.was_asked("CostUpdated")
        await asyncio.sleep(1.1)  # the next cost is told after a second of real time at the soonest
        await said(station, "Updated", 2, 11, 3_000)
        await ocpp.until(lambda: _soon(len(costs(station)) > 1), "the second cost")
        await said(station, "Ended", 3, 21, 5_000)
        assert costs(station) == [
            {"totalCost": 1.55, "transactionId": "tx"},
            {"totalCost": 2.1, "transactionId": "tx"},
        ]


async def test_a_station_that_does_not_take_costs_is_told_once(ocpp: Ocpp, prices: int) -> None:
    del prices
    station = await ocpp.booted("CS", V201)
    station.refuses["CostUpdated"] = "NotImplemented"
    await said(station, "Started", 0, 1, 1_000)
    await said(station, "Updated", 1, 6, 2_000)
    await station.was_asked("CostUpdated")
    for number, kind in enumerate(("Started", "Updated")):
        await station.call("TransactionEvent", event_201(kind, number, 30, "tx-2", None, 5_000))
    await station.call("Heartbeat", {})  # a call to the station would have come before its answer
    assert len(costs(station)) == 1


async def _soon(value: object) -> object:
    return value


def costs(station: Station) -> list[Payload]:
    return [payload for action, payload in station.asked if action == "CostUpdated"]


async def test_a_price_changed_meanwhile_changes_nothing(ocpp: Ocpp, prices: int, sql: Ask) -> None:
    station = await ocpp.booted("CS", V21)
    await said(station, "Started", 0, 1, 1_000)
    await dearer(ocpp, sql, prices, 5)
    assert (await said(station, "Updated", 1, 11, 3_000))["totalCost"] == 2.1
    assert (await said(station, "Ended", 3, 21, 5_000))["totalCost"] == 3.2
    late = event_201("Updated", 2, 16, "tx", None, 4_000, offline=True)
    assert (await station.call("TransactionEvent", late))["totalCost"] == 3.2
    other = event_201("Started", 0, 30, "tx-2", "T1", 5_000)
    await station.call("TransactionEvent", other)
    begun, before = await ocpp.transactions(station="CS")
    assert (before["cost"]["version"], before["cost"]["total_minor"]) == (1, 320)
    assert (begun["cost"]["version"], begun["cost"]["total_minor"]) == (2, 1_000)


async def test_an_end_that_comes_late_is_priced_by_the_start(
    ocpp: Ocpp, prices: int, sql: Ask
) -> None:
    """Its assignment has ended meanwhile, too."""
    station = await ocpp.booted("CP", V16)
    number = (await station.call("StartTransaction", start_16("T1")))["transactionId"]
    (held,) = (await ocpp.get("/tariff-assignments"))["items"]
    assert (await ocpp.api.delete(f"/tariff-assignments/{held['id']}")).status_code == 204
    await dearer(ocpp, sql, prices, 5)
    reading = meter_16(moment(11, sample("3000", "Energy.Active.Import.Register")), number=number)
    await station.call("MeterValues", reading)
    assert (await cost_of(ocpp, "CP"))["total_minor"] == 210
    await station.call("StopTransaction", stop_16(number, 21, 5_000))
    shown = await cost_of(ocpp, "CP")
    assert (shown["total_minor"], shown["version"], shown["final"]) == (320, 1, True)


async def test_a_start_that_comes_last_settles_the_price(ocpp: Ocpp, prices: int, sql: Ask) -> None:
    """The end alone is priced by its own moment, while nothing better is known."""
    await dearer(ocpp, sql, prices, 5)
    station = await ocpp.booted("CS", V21)
    assert (await said(station, "Ended", 1, 21, 5_000))["totalCost"] == 10.0
    await said(station, "Started", 0, 1, 1_000)
    shown = await cost_of(ocpp, "CS")
    assert (shown["version"], shown["total_minor"]) == (1, 320)


async def test_costs_are_columns_of_the_csv(ocpp: Ocpp, prices: int) -> None:
    station = await ocpp.booted("CS", V201)
    await said(station, "Started", 0, 1, 1_000)
    await said(station, "Ended", 1, 11, 3_000)
    got = await ocpp.api.get("/transactions", headers={"Accept": "text/csv"})
    header, line = got.text.splitlines()[:2]
    row = dict(zip(header.split(","), line.split(","), strict=False))
    assert row["cost.total_minor"] == "210"
    assert (row["cost.currency"], row["cost.version"]) == ("EUR", "1")
    assert prices == int(row["cost.tariff"])
